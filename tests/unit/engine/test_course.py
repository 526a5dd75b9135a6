"""Where a worker goes on: after launches, after rounds that it missed, and where the exchange sends it."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from decentral.engine.course import Course
from decentral.engine.judge import KeepWork, TakeStep, judge
from decentral.engine.options import RunOptions
from decentral.engine.replica import Applied
from decentral.engine.syncs import InFlightSync, Landing, Stepped
from decentral.engine.timetable import Timetable
from decentral.exchange.api import Aborted, Base, Contribution, Exchange, Onward, Reason, Restrained, Verdict
from decentral.exchange.bounds import Kind
from decentral.exchange.progress import Progress
from decentral.outer.diloco import DiLoCo
from decentral.outer.rule import Mixed
from decentral.ports.trainer import StepReport
from decentral.schedule.plan import SyncPlan
from decentral.types import PeerId, SyncKey
from tests.unit.engine.test_timetable import FP32, Sky

ME, OTHER = PeerId("me"), PeerId("other")


class Told(Exchange):
    """Says what it was told to say."""

    def __init__(self, progress: Progress, onward: Onward, skip: int | None) -> None:
        super().__init__(progress)
        self._onward, self._skip = onward, skip

    async def start(self) -> None: ...

    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        raise NotImplementedError

    def onward(self) -> Onward:
        return self._onward

    def steps_to_skip(self, left: int, lead: int, own_pace_s: float, paces_s: Callable[[], Sequence[float]]) -> int:
        return super().steps_to_skip(left, lead, own_pace_s, paces_s) if self._skip is None else self._skip


def course_of(
    plan: SyncPlan, onward: Onward | None = None, *, skip: int | None = None, own_steps: bool = True
) -> tuple[Course, Progress]:
    """A course in a run of ten rounds, at time 100 s."""
    progress, options = Progress(plan.num_fragments), RunOptions("run", b"", 10, plan, DiLoCo(), FP32, FP32)
    timetable = Timetable(options, [10] * plan.num_fragments, progress, cast(Any, Sky()))
    clock = SimpleNamespace(monotonic=lambda: 100.0)
    exchange = Told(progress, onward or Onward(), skip)
    return Course(timetable, exchange, cast(Any, clock), 1.0, own_steps=own_steps), progress


def trained(course: Course, steps: int, step_s: float = 1.0) -> None:
    course.trained(StepReport(tokens=8 * steps, loss=2.0, grad_norm=1.0), steps, steps * step_s)


def sync_at(step: int) -> InFlightSync:
    return InFlightSync(SyncKey(0, 0), step, 1.0, 0.0, cast(Any, None), cast(Any, None))


def test_steps_and_stretches() -> None:
    course, _ = course_of(SyncPlan(10))
    assert list(course.found(0)) == [0]
    assert (course.step, course.round, course.chunk(10)) == (0, 0, 1), "one step, to see how long it takes"
    trained(course, 1, step_s=0.25)
    assert (course.step, course.chunk(10), course.chunk(3)) == (1, 4, 2)
    trained(course, 4, step_s=0.25)
    done = course.end_stretch()
    assert done is not None
    assert (done.step, done.tokens, done.loss, done.seconds) == (5, 40, 2.0, 1.25)
    assert course.pace_s == 2.5, "of a whole round"
    assert course.end_stretch() is None


@pytest.mark.parametrize(("donor_step", "step"), [(22, 22), (90, 29), (12, 20)])
def test_a_newcomer_goes_on_at_its_donors_step_but_takes_one_before_the_next_launch(donor_step: int, step: int) -> None:
    course, progress = course_of(SyncPlan(10))
    course.adopt(19, [1], PeerId("donor"), donor_step, overdue=False)
    trained(course, 1)
    progress.resume([2])
    course.launched(list)
    assert course.step == step


@pytest.mark.parametrize(("overdue", "step"), [(False, 12), (True, 19)])
def test_who_has_enough_work_goes_on_right_before_the_launch(overdue: bool, step: int) -> None:
    course, progress = course_of(SyncPlan(10))
    course.adopt(12, [1], PeerId("donor"), 12, overdue=overdue)
    assert (course.step, progress.rounds()) == (step, (1,))


def test_an_exchange_may_leave_steps_out() -> None:
    course, progress = course_of(SyncPlan(10), skip=5)
    course.found(10)
    assert progress.rounds() == (1,)
    course.launched(lambda: [1.0])
    assert course.step == 15


def test_who_missed_rounds_goes_on_where_the_others_are() -> None:
    course, _ = course_of(SyncPlan(10))
    course.found(10)
    trained(course, 4)
    verdict = Verdict(Mixed(torch.zeros(1), (OTHER,)), transfer_s=1.0, missed=True)
    stepped = Stepped(SyncKey(2, 0), verdict, TakeStep(cast(Any, None), None, None, again=False), Applied("", 0.0, 0.0))
    mine = Contribution(torch.zeros(1), 1.0, Base("", torch.zeros(1)))
    course.passed(sync_at(10), Landing((stepped,), stepped, mine, 5.0, ended_at=98.0))
    assert course.step == 30 + 3, "launch of round 2, and 3 s in which the others have trained"


def test_the_round_of_the_others() -> None:
    course, progress = course_of(SyncPlan(10, 2), Onward(round=5))
    course.found(10)
    assert course.go_on(list) == 5
    assert (course.step, progress.rounds()) == (50, (5, 5))


@pytest.mark.parametrize(("due_in_s", "own_steps", "step"), [(3.0, True, 17), (math.nan, True, 12), (3.0, False, 12)])
def test_a_sync_that_is_due_earlier(due_in_s: float, own_steps: bool, step: int) -> None:
    course, _ = course_of(SyncPlan(10), Onward(due_in_s=due_in_s), own_steps=own_steps)
    course.found(10)
    trained(course, 2)
    assert course.go_on(list) is None
    assert course.step == step


# -- verdicts ---------------------------------------------------------------------------------------------------------


def judged(verdict: Verdict, weight: float = 1.0, round_: int = 3) -> TakeStep | KeepWork:
    mine = Contribution(torch.zeros(2), weight, Base("", torch.zeros(2)))
    return judge(SyncKey(round_, 0), mine, verdict, ME, rounds=10)


def test_a_mean_with_ours_in_it() -> None:
    sent_N, mixed = torch.ones(2), Mixed(torch.zeros(2), (ME, OTHER), missed=((0, 1),))
    found = judged(Verdict(mixed, sent_N))
    assert isinstance(found, TakeStep)
    assert (found.mixed is mixed, found.sent_N is sent_N) == (True, True)
    assert (found.uncounted, found.again, found.unsound) == (((0, 1),), False, False)


@pytest.mark.parametrize(("relative", "unsound"), [(False, True), (True, False)])
def test_only_whole_values_tell_of_a_broken_machine(relative: bool, unsound: bool) -> None:
    """A change of what was brought before may be many times as long as those of others."""
    mixed = Mixed(torch.full((2,), 0.01), (ME, OTHER), relative=relative)
    verdict = Verdict(mixed, torch.ones(2), restrained=(Restrained(ME, Kind.WILD, 40.0, 1.0),))
    mine = Contribution(torch.ones(2), 1.0, Base("", torch.zeros(2)))
    found = judge(SyncKey(3, 0), mine, verdict, ME, rounds=10)
    assert isinstance(found, TakeStep)
    assert found.unsound is unsound


def test_a_mean_without_ours() -> None:
    mixed = Mixed(torch.zeros(2), (OTHER,))
    found = judged(Verdict(mixed, torch.ones(2)))
    assert isinstance(found, TakeStep)
    assert found.mixed is mixed
    assert (found.sent_N, found.uncounted, found.again, found.counted) == (None, None, False, False)


@pytest.mark.parametrize(("weight", "round_", "again"), [(1.0, 3, True), (0.0, 3, False), (1.0, 9, False)])
def test_work_for_a_round_that_was_over_goes_on_if_there_is_any_and_a_round_for_it(
    weight: float, round_: int, again: bool
) -> None:
    found = judged(Verdict(Mixed(torch.zeros(2), (OTHER,)), missed=True), weight, round_)
    assert isinstance(found, TakeStep)
    assert found.again == again


@pytest.mark.parametrize("reason", Reason)
def test_another_anchor_has_to_be_repaired_and_nothing_else(reason: Reason) -> None:
    aborted = Aborted(reason)
    assert judged(Verdict(aborted)) == KeepWork(aborted, repair=reason in (Reason.BEHIND, Reason.OUT_OF_SYNC))
