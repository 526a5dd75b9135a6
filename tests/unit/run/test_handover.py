"""Two threads that hand steps and work to each other."""

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from decentral.adapters.clock import RealClock
from decentral.errors import TrainerError
from decentral.ports.trainer import Steps
from decentral.run.handover import HandOver, Stretch
from decentral.run.network import NetworkThread

Submit = Callable[[Coroutine[Any, Any, Any]], "Future[Any]"]


@pytest.fixture
def network() -> Iterator[NetworkThread]:
    thread = NetworkThread()
    yield thread
    thread.close()


@pytest.fixture
def hand() -> Iterator[HandOver]:
    clock = RealClock()
    yield HandOver(clock)
    clock.close()


async def engine(hand: HandOver, counts: list[int], stop: asyncio.Event) -> list[Steps]:
    """Asks for so many steps, one after the other."""
    taken, first = [], 100
    for count in counts:
        taken.append(await hand.take(first, count, stop))
        first += count
    hand.over()
    return taken


def test_steps_are_reported_as_they_were_granted(hand: HandOver, network: NetworkThread) -> None:
    asked = network.submit(engine(hand, [2, 3], asyncio.Event()))
    seen = []
    for number in range(5):
        hand.stepped(10 * number, float(number), grad_norm=1.0)
        seen.append(hand.global_step)
    first, second = asked.result(10)
    assert (first.count, first.report.tokens, first.report.loss) == (2, 10, 1.0)
    assert (second.count, second.report.tokens) == (3, 90)
    assert second.report.loss == pytest.approx((20 * 2 + 30 * 3 + 40 * 4) / 90)
    assert second.report.grad_norm == pytest.approx(1.0)
    assert seen == [101, 102, 103, 104, 105]


def test_the_step_of_a_run_is_known_before_the_first_grant(hand: HandOver, network: NetworkThread) -> None:
    hand.begin_at(100)
    assert hand.global_step == 100
    network.submit(engine(hand, [1], asyncio.Event()))
    hand.stepped(1)
    assert hand.global_step == 101


def test_a_loss_that_is_a_tensor_is_added_up_without_being_read(hand: HandOver, network: NetworkThread) -> None:
    asked = network.submit(engine(hand, [2], asyncio.Event()))
    hand.stepped(1, torch.tensor(2.0))
    hand.stepped(3, torch.tensor(4.0))
    assert asked.result(10)[0].report.loss == pytest.approx(3.5)


def test_a_loss_counts_as_it_was_when_it_was_told() -> None:
    stretch, loss = Stretch(), torch.tensor(2.0)
    stretch.add(10, loss, grad_norm=0.5)
    loss.fill_(9.0)
    assert stretch.report().loss == 2.0


def test_steps_without_a_loss_do_not_count_for_the_mean(hand: HandOver, network: NetworkThread) -> None:
    asked = network.submit(engine(hand, [2], asyncio.Event()))
    hand.stepped(5)
    hand.stepped(5, 3.0)
    report = asked.result(10)[0].report
    assert (report.tokens, report.loss) == (10, 3.0)


def test_nothing_known_is_not_a_number(hand: HandOver, network: NetworkThread) -> None:
    asked = network.submit(engine(hand, [1], asyncio.Event()))
    hand.stepped(0)
    assert math.isnan(asked.result(10)[0].report.loss)


def test_work_is_done_on_the_loops_thread_between_steps(hand: HandOver, network: NetworkThread) -> None:
    async def play() -> list[str]:
        names = [await hand.run(lambda: threading.current_thread().name)]
        await hand.take(0, 1, asyncio.Event())
        names.append(await hand.run(lambda: threading.current_thread().name))
        hand.over()
        return names

    played = network.submit(play())
    hand.stepped(1)
    assert played.result(60) == [threading.current_thread().name] * 2


def test_work_does_not_wait_for_the_end_of_a_grant(hand: HandOver, network: NetworkThread) -> None:
    begun = threading.Event()

    async def play() -> None:
        grant = asyncio.create_task(hand.take(0, 1_000_000, asyncio.Event()))
        await asyncio.sleep(0)
        work = asyncio.create_task(hand.run(lambda: "done"))
        await asyncio.sleep(0)
        begun.set()
        assert await work == "done"
        hand.over()
        grant.cancel()

    played = network.submit(play())
    assert begun.wait(60)
    hand.stepped(1)
    played.result(60)


def test_an_engine_that_has_ended_does_not_hold_the_loop(hand: HandOver, network: NetworkThread) -> None:
    hand.over()
    for _ in range(3):
        hand.stepped(1, 1.0)
    assert hand.global_step == 3


def test_who_stands_still_reports_what_it_has(hand: HandOver, network: NetworkThread) -> None:
    async def asked_for_many() -> Steps:
        return await hand.take(0, 1000, asyncio.Event())

    asked = network.submit(asked_for_many())
    while hand.global_step < 4:
        hand.stepped(1, 2.0)
    assert hand.wait_for(asked).count == 4


def test_a_loop_that_hangs_is_not_waited_for_after_the_signal_to_stop(hand: HandOver, network: NetworkThread) -> None:
    async def play() -> Steps:
        stop = asyncio.Event()
        stop.set()
        return await hand.take(0, 10, stop)

    assert network.submit(play()).result(10).count == 0


def test_a_fault_in_the_users_own_function_is_raised_where_the_user_is(hand: HandOver, network: NetworkThread) -> None:
    def broken() -> None:
        try:
            raise KeyError("text")
        except KeyError as err:
            raise TrainerError(err, "validating") from err

    async def play() -> None:
        await hand.run(broken)

    played = network.submit(play())
    with pytest.raises(KeyError, match="text"):
        hand.stepped(1)
    with pytest.raises(TrainerError):
        played.result(60)


def test_a_fault_of_our_own_is_not_raised_into_the_loop(hand: HandOver, network: NetworkThread) -> None:
    async def play() -> None:
        try:
            await hand.run(lambda: 1 // 0)
        finally:
            hand.over()

    played = network.submit(play())
    hand.stepped(1)
    with pytest.raises(ZeroDivisionError):
        played.result(60)
