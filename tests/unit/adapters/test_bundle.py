"""The streams of a long call find each other, and are not waited for without end."""

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.adapters.bundle import MAX_STREAMS, STREAM_BYTES, Bundles, Ends, part_sizes
from decentral.sim.loop import run
from decentral.types import PeerId

ME, OTHER = PeerId("me"), PeerId("other")
KEY = bytes(8)


def ends(number: int) -> Ends:
    return cast(Ends, (number, number))


@given(st.integers(0, 20 * STREAM_BYTES), st.integers(1, MAX_STREAMS))
def test_parts_are_the_whole_and_a_short_body_is_one(size: int, num_streams: int) -> None:
    sizes = part_sizes(size, num_streams)
    assert len(sizes) == num_streams
    assert sum(sizes) == size
    assert min(sizes) >= 0
    if size <= STREAM_BYTES:
        assert sizes[0] == size
    else:
        assert max(sizes) - size / num_streams < num_streams


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_streams_find_each_other_in_any_order(order: tuple[int, ...]) -> None:
    async def scenario() -> None:
        bundles, over = Bundles(), asyncio.Event()
        seen: list[Ends] = []

        async def first() -> None:
            async with bundles.gathered(ME, KEY, 3) as further:
                seen.extend(further)
                await over.wait()

        tasks = []
        for number in order:
            tasks.append(asyncio.create_task(bundles.lend(ME, KEY, number, ends(number)) if number else first()))
            await asyncio.sleep(1.0)
        assert seen == [ends(1), ends(2)]
        assert not any(task.done() for task in tasks), "they are lent as long as the call lasts"
        over.set()
        await asyncio.gather(*tasks)
        assert not bundles._bundles

    run(scenario(), until_s=100.0)


def test_a_call_whose_streams_do_not_all_come_ends_and_so_do_they() -> None:
    async def scenario() -> None:
        bundles = Bundles()
        lent = asyncio.create_task(bundles.lend(ME, KEY, 1, ends(1)))
        with pytest.raises(TimeoutError):
            async with bundles.gathered(ME, KEY, 3):
                raise AssertionError("one is missing")
        await lent
        with pytest.raises(TimeoutError):
            await bundles.lend(ME, bytes(7), 1, ends(1))
        assert asyncio.get_running_loop().time() == 20.0
        assert not bundles._bundles

    run(scenario(), until_s=100.0)


def test_nobody_lends_a_stream_to_anothers_call() -> None:
    async def scenario() -> None:
        bundles = Bundles()
        lent = asyncio.create_task(bundles.lend(OTHER, KEY, 1, ends(1)))
        with pytest.raises(TimeoutError):
            async with bundles.gathered(ME, KEY, 2):
                raise AssertionError("that stream is somebody else's")
        with pytest.raises(TimeoutError):
            await lent

    run(scenario(), until_s=100.0)


def test_streams_of_a_refused_call_are_let_go_at_once() -> None:
    async def scenario() -> None:
        bundles = Bundles()
        lent = asyncio.create_task(bundles.lend(ME, KEY, 1, ends(1)))
        await asyncio.sleep(0.1)
        bundles.end(ME, KEY)
        await lent
        await bundles.lend(ME, KEY, 2, ends(2))
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)
        for number in range(1000):
            bundles.end(OTHER, number.to_bytes(8, "big"))
        assert len(bundles._over) < 1000

    run(scenario(), until_s=100.0)
