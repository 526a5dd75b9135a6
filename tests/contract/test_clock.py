"""The contract of ports.clock.Clock, on memory and on hivemind."""

import asyncio
from functools import partial

import pytest

from tests.support.harness import Harness, World


def test_work_is_carried_out_in_order_and_its_outcome_comes_back(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        clock = (await world.peer("a")).clock
        order: list[int] = []

        def work(number: int) -> int:
            order.append(number)
            return number * number

        results = await asyncio.gather(*(clock.run(partial(work, number)) for number in range(20)))
        assert order == list(range(20))
        assert results == [n * n for n in range(20)]
        with pytest.raises(ZeroDivisionError):
            await clock.run(lambda: 1 // 0)
        assert await clock.run(lambda: "goes on") == "goes on"

    harness.run(scenario)


def test_work_aside_is_carried_out_in_its_own_order(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        clock = (await world.peer("a")).clock
        order: list[int] = []
        await asyncio.gather(*(clock.run_aside(partial(order.append, number)) for number in range(20)))
        assert order == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await clock.run_aside(lambda: 1 // 0)
        assert await clock.run_aside(lambda: "goes on") == "goes on"

    harness.run(scenario)


def test_work_on_the_disk_is_carried_out_in_its_own_order(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        clock = (await world.peer("a")).clock
        order: list[int] = []
        await asyncio.gather(*(clock.run_on_disk(partial(order.append, number)) for number in range(20)))
        assert order == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await clock.run_on_disk(lambda: 1 // 0)
        assert await clock.run_on_disk(lambda: "goes on") == "goes on"

    harness.run(scenario)


def test_time_only_goes_forward(harness: Harness) -> None:
    async def scenario(world: World) -> None:
        clock = (await world.peer("a")).clock
        moments = []
        for _ in range(5):
            moments.append(clock.monotonic())
            await asyncio.sleep(0.01)
        assert moments == sorted(moments)
        assert moments[-1] > moments[0]
        assert clock.wall() > 0

    harness.run(scenario)
