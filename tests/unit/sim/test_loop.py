import asyncio
import random
import time

import pytest

from decentral.sim.loop import Deadlock, Overrun, Owner, run, virtual_loop


def test_time_jumps_to_the_next_timer_exactly() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(86_400.0)
        first = loop.time()
        await asyncio.sleep(0.1)
        return [first, loop.time()]

    assert run(main(), until_s=1e6) == [86_400.0, 86_400.1]


def test_timers_of_one_moment_run_in_the_order_in_which_they_were_set() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        loop = asyncio.get_running_loop()
        for number in range(100):
            loop.call_at(1.0 + number % 3, order.append, number)
        await asyncio.sleep(5.0)
        return order

    assert run(main(), until_s=10.0) == sorted(range(100), key=lambda number: (number % 3, number))


def test_timeouts_fire_at_their_deadline_and_not_when_work_is_done_in_time() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(2.0):
            await asyncio.sleep(1.5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.sleep(50.0)
        return loop.time()

    assert run(main(), until_s=10.0) == 3.5


def test_thousands_of_cancelled_timers_are_swept_and_the_others_run_in_order() -> None:
    async def main() -> list[int]:
        loop = virtual_loop()
        order: list[int] = []
        moments = random.Random(0).sample(range(5000), 5000)
        timers = {moment: loop.call_at(float(moment), order.append, moment) for moment in moments}
        for moment in moments:
            if moment % 50:
                timers[moment].cancel()
        assert len(loop._timers) < 1000
        await asyncio.sleep(5000.0)
        return order

    assert run(main(), until_s=1e5) == list(range(0, 5000, 50))


def test_a_deadlock_names_the_waiting_tasks_and_where_they_wait() -> None:
    async def wait_for(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        event = asyncio.Event()
        waiter = asyncio.create_task(wait_for(event), name="worker seven")
        await asyncio.sleep(3.0)
        await waiter

    with pytest.raises(Deadlock) as caught:
        run(main(), until_s=10.0)
    assert "virtual time 3.000 s" in str(caught.value)
    assert "worker seven" in str(caught.value)
    assert "wait_for > Event.wait" in str(caught.value)


def test_virtual_time_is_bounded() -> None:
    async def main() -> None:
        for _ in range(1000):
            await asyncio.sleep(1.0)

    with pytest.raises(Overrun, match=r"bound of 100\.000 s"):
        run(main(), until_s=100.0)


def test_iterations_without_time_are_bounded() -> None:
    async def main() -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)

    with pytest.raises(Overrun, match="1000 iterations"):
        run(main(), until_s=100.0, max_iterations=1000)


def test_tasks_left_behind_are_cancelled_and_awaited() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(5.0)
            ended.append("background")

    async def main() -> str:
        task = asyncio.create_task(background())
        await asyncio.sleep(1.0)
        assert not task.done()
        return "result"

    assert run(main(), until_s=2.0) == "result"
    assert ended == ["background"]


def test_a_failed_callback_fails_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_later(1.0, lambda: 1 // 0)
        await asyncio.sleep(2.0)

    with pytest.raises(ExceptionGroup) as caught:
        run(main(), until_s=10.0)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


def test_a_task_that_fails_while_it_is_cancelled_fails_the_run() -> None:
    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("clean-up")

    async def main() -> None:
        task = asyncio.create_task(background())
        await asyncio.sleep(1.0)
        assert not task.done()

    with pytest.raises(ExceptionGroup) as caught:
        run(main(), until_s=10.0)
    assert str(caught.value.exceptions[0]) == "clean-up"


def test_threads_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="no threads"):
            await asyncio.to_thread(time.monotonic)

    run(main(), until_s=10.0)


def test_parts_of_the_simulator_refuse_a_real_loop() -> None:
    async def main() -> None:
        virtual_loop()

    with pytest.raises(RuntimeError, match="only inside"):
        asyncio.run(main())


def test_a_frozen_owner_stops_with_all_it_started_and_catches_up_late() -> None:
    ticks: list[tuple[str, float]] = []

    async def tick(name: str) -> None:
        for _ in range(4):
            await asyncio.sleep(1.0)
            ticks.append((name, asyncio.get_running_loop().time()))

    async def machine(name: str) -> None:
        await asyncio.create_task(tick(name))

    async def main() -> None:
        loop = virtual_loop()
        stopped, free = Owner("stopped"), Owner("free")
        tasks = [loop.create_task(machine(owner.name), context=owner.context()) for owner in (stopped, free)]
        await asyncio.sleep(1.5)
        loop.freeze(stopped)
        await asyncio.sleep(9.0)
        loop.thaw(stopped)
        await asyncio.gather(*tasks)

    run(main(), until_s=100.0)
    assert [at for name, at in ticks if name == "free"] == [1.0, 2.0, 3.0, 4.0]
    assert [at for name, at in ticks if name == "stopped"] == [1.0, 10.5, 11.5, 12.5]


def test_what_is_set_off_takes_its_turn_among_timers_and_waits_with_its_owner() -> None:
    ran: list[tuple[str, float]] = []

    async def main() -> None:
        loop = virtual_loop()
        owner, free = Owner("stopped"), Owner("free").context()

        def note(name: str) -> None:
            ran.append((name, loop.time()))

        loop.set_off(2.0, free, note, "second")
        loop.call_at(2.0, note, "third", context=free)
        loop.set_off(1.0, free, note, "first")
        loop.set_off(1.0, owner.context(), note, "late")
        loop.freeze(owner)
        await asyncio.sleep(3.0)
        loop.thaw(owner)
        await asyncio.sleep(1.0)

    run(main(), until_s=100.0)
    assert ran == [("first", 1.0), ("second", 2.0), ("third", 2.0), ("late", 3.0)]


def test_everybody_frozen_is_a_deadlock_and_winds_up() -> None:
    async def machine() -> None:
        await asyncio.sleep(1.0)

    async def main() -> None:
        owner = Owner("sim-0000")
        loop = virtual_loop()
        task = loop.create_task(machine(), context=owner.context())
        loop.freeze(owner)
        await task

    with pytest.raises(Deadlock, match="frozen: sim-0000"):
        run(main(), until_s=100.0)


def test_a_task_that_refuses_to_end_is_reported() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        task = asyncio.create_task(stubborn(), name="stubborn")
        await asyncio.sleep(1.0)
        assert not task.done()

    with pytest.raises(Deadlock, match="stubborn"):
        run(main(), until_s=10.0)
