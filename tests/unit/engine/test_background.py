"""Work beside other work: how it ends, and how what fails in it ends the other."""

import asyncio

import pytest

from decentral.engine.background import Background, unless
from decentral.sim.loop import run


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")


async def fails() -> None:
    await asyncio.sleep(1.0)
    raise OSError("beside")


def test_it_ends_with_the_body() -> None:
    ended: list[str] = []

    async def main() -> None:
        async with Background() as beside:
            beside.begin(forever(ended))
            await asyncio.sleep(1.0)
            assert not ended

    run(main(), until_s=10.0)
    assert ended == ["ended"]


def test_what_fails_ends_the_body_at_once_as_the_exception_that_it_is() -> None:
    ended: list[str] = []

    async def main() -> None:
        async with Background() as beside:
            beside.begin(forever(ended))
            beside.begin(fails())
            try:
                await asyncio.sleep(100.0)
            finally:
                assert asyncio.get_running_loop().time() == 1.0

    with pytest.raises(OSError, match="beside"):
        run(main(), until_s=200.0)
    assert ended == ["ended"]


def test_groups_of_groups_come_down_to_the_exception() -> None:
    async def nested() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())

    async def main() -> None:
        async with Background() as beside:
            beside.begin(nested())
            await asyncio.sleep(100.0)

    with pytest.raises(OSError, match="beside"):
        run(main(), until_s=200.0)


def test_what_the_body_raises_counts_before_what_it_has_to_end() -> None:
    async def sulks() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("because it had to end")

    async def main() -> None:
        async with Background() as beside:
            beside.begin(sulks())
            await asyncio.sleep(1.0)
            raise ValueError("the body")

    with pytest.raises(ValueError, match="the body"):
        run(main(), until_s=10.0)


def test_a_cancelled_body_ends_what_is_beside_it() -> None:
    ended: list[str] = []

    async def body() -> None:
        async with Background() as beside:
            beside.begin(forever(ended))
            await asyncio.sleep(100.0)

    async def main() -> None:
        task = asyncio.create_task(body())
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    run(main(), until_s=200.0)
    assert ended == ["ended"]


@pytest.mark.parametrize("stops_at_s", [0.5, 5.0])
def test_work_is_left_where_it_stands_when_somebody_asks_to_stop(stops_at_s: float) -> None:
    did: list[float] = []

    async def work() -> None:
        await asyncio.sleep(2.0)
        did.append(asyncio.get_running_loop().time())

    async def main() -> float:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(stops_at_s, stop.set)
        await unless(stop, work())
        return asyncio.get_running_loop().time()

    assert run(main(), until_s=10.0) == min(stops_at_s, 2.0)
    assert did == ([2.0] if stops_at_s > 2 else [])


def test_what_the_work_raises_is_raised() -> None:
    async def main() -> None:
        await unless(asyncio.Event(), fails())

    with pytest.raises(OSError, match="beside"):
        run(main(), until_s=10.0)
