"""When what is due, step by step: syncs that are back in time, late ones, and those that a launch must wait for."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.codec import make_codec
from decentral.engine.judge import TakeStep
from decentral.engine.options import RunOptions
from decentral.engine.replica import Applied
from decentral.engine.syncs import InFlightSync, InFlightSyncs, Landing, Stepped
from decentral.engine.timetable import Timetable
from decentral.exchange.api import Base, Contribution, Verdict
from decentral.exchange.progress import Progress
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.rule import Mixed
from decentral.schedule.plan import SyncPlan
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId, SyncKey

FP32 = make_codec("fp32")
ME = PeerId("me")


class Sky(InFlightSyncs):
    """Syncs that are up for as long as they are told."""

    def __init__(self) -> None:
        self._syncs = {}
        self.back: set[SyncKey] = set()
        """Those whose result is there."""

    def up(self, key: SyncKey, step: int, group: float = 1.0) -> InFlightSync:
        task = SimpleNamespace(done=lambda: key in self.back)
        sync = self._syncs[key.fragment] = InFlightSync(key, step, group, 0.0, cast(Any, None), cast(Any, task))
        return sync

    def down(self, sync: InFlightSync) -> None:
        del self._syncs[sync.key.fragment]


class Desk:
    """A timetable and what it looks at."""

    def __init__(self, plan: SyncPlan, rounds: int = 4, **options: Any) -> None:
        common = RunOptions("run", b"", rounds, plan, DiLoCo(), FP32, FP32)
        self.sky, self.progress = Sky(), Progress(plan.num_fragments)
        self.timetable = Timetable(replace(common, **options), [10] * plan.num_fragments, self.progress, self.sky)

    def launch(self, step: int) -> list[SyncKey]:
        keys = self.timetable.to_launch(step)
        for key in keys:
            self.sky.up(key, step)
        return keys

    def landed(self, fragment: int, landing: Landing) -> None:
        """A sync of a fragment has been and gone."""
        sync = self.sky.up(SyncKey(0, fragment), 0, self.timetable.group_of(fragment))
        self.timetable.landed(sync, landing)
        self.sky.down(sync)

    def land(self, sync: InFlightSync) -> None:
        self.progress.finish(sync.key)
        self.sky.down(sync)


def landing(transfer_s: float = 1.0, waiting_s: float = 0.0) -> Landing:
    mixed = Mixed(torch.zeros(1), (ME,))
    verdict = Verdict(mixed, waiting_s=waiting_s, transfer_s=transfer_s)
    mine = Contribution(torch.zeros(1), 1.0, Base("", torch.zeros(1)))
    end = Stepped(SyncKey(0, 0), verdict, TakeStep(mixed, None, (), again=False), Applied("", 0.0, 0.0))
    return Landing((), end, mine, duration_s=waiting_s + transfer_s, ended_at=0.0)


def asking(num_groups: int) -> Presence:
    metrics = Metrics(num_groups=num_groups)
    return Presence(PeerId("other"), "run", 0, State.TRAINING, 0, 0, "", metrics=metrics)


# -- a whole run ------------------------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> tuple[SyncPlan, int, dict[SyncKey, int]]:
    """A plan, rounds, and how many steps each sync lasts."""
    inner_steps = draw(st.integers(1, 12))
    fragments = draw(st.integers(1, 5))
    groups = draw(st.integers(1, min(inner_steps, fragments)))
    delay = draw(st.integers(0, inner_steps // groups - 1))
    rounds = draw(st.integers(1, 3))
    keys = [SyncKey(r, f) for r in range(rounds) for f in range(fragments)]
    return (
        SyncPlan(inner_steps, fragments, delay, groups),
        rounds,
        {key: draw(st.integers(0, 2 * inner_steps)) for key in keys},
    )


def played(desk: Desk, lasts: dict[SyncKey, int]) -> Iterator[tuple[str, SyncKey, int]]:
    """As the worker does it; inner steps are all that takes time."""
    step, timetable = 0, desk.timetable
    while min(desk.progress.rounds()) < 1 + max(key.round for key in lasts) or desk.sky:
        event = timetable.next_event(step)
        assert event <= timetable.last_step
        step = max(step, event)
        desk.sky.back |= {sync.key for sync in desk.sky if sync.step + lasts[sync.key] <= step}
        for sync in timetable.to_wait_for(step):
            desk.land(sync)
            yield "land", sync.key, step
        for key in timetable.to_launch(step):
            assert desk.sky.get(key.fragment) is None
            desk.sky.up(key, step)
            yield "launch", key, step
        desk.sky.back |= {sync.key for sync in desk.sky if lasts[sync.key] == 0 and sync.step == step}
        for sync in timetable.to_land(step):
            desk.land(sync)
            yield "land", sync.key, step


@given(runs())
def test_every_fragment_is_launched_as_planned_and_lands_when_due_or_when_it_comes(
    case: tuple[SyncPlan, int, dict[SyncKey, int]],
) -> None:
    plan, rounds, lasts = case
    seen = list(played(Desk(plan, rounds), lasts))
    # Waiting takes no steps, so no launch is ever late.
    assert {key: step for what, key, step in seen if what == "launch"} == {key: plan.launch_step(key) for key in lasts}
    assert len(seen) == 2 * len(lasts), "once each"
    for what, key, step in seen:
        if what == "land":
            launched = plan.launch_step(key)
            comes = launched + (max(plan.delay_steps, lasts[key]) if plan.delay_steps else 0)
            assert step == min(comes, launched + plan.inner_steps, rounds * plan.inner_steps)


@given(runs())
def test_eager_fragments_land_just_before_their_next_launch(case: tuple[SyncPlan, int, dict[SyncKey, int]]) -> None:
    plan, rounds, lasts = case
    seen = list(played(Desk(plan, rounds, eager=Eager(0.7, 0.5)), lasts))
    order = [(key.fragment, what, key.round) for what, key, _ in seen]
    assert sorted(order, key=lambda each: each[0]) == [
        (fragment, what, r)
        for fragment in range(plan.num_fragments)
        for r in range(rounds)
        for what in ("launch", "land")
    ]
    for what, key, step in seen:
        if what == "land":
            assert step == min(plan.launch_step(key) + plan.inner_steps, rounds * plan.inner_steps)


# -- single answers ---------------------------------------------------------------------------------------------------


def test_without_overlap_what_was_launched_lands_at_once() -> None:
    desk = Desk(SyncPlan(10, 2))
    assert desk.timetable.next_event(0) == desk.timetable.next_launches == 5
    assert desk.launch(5) == [SyncKey(0, 0)]
    assert [sync.key for sync in desk.timetable.to_land(5)] == [SyncKey(0, 0)], "though it is not back"


def test_with_overlap_nothing_lands_before_it_is_back() -> None:
    desk = Desk(SyncPlan(10, 1, 3))
    (key,) = desk.launch(7)
    assert desk.timetable.next_event(7) == 10
    assert desk.timetable.to_land(10) == []
    assert desk.timetable.next_event(10) == 11, "it is looked for after every step"
    desk.sky.back.add(key)
    assert desk.timetable.next_event(10) == 10
    assert len(desk.timetable.to_land(10)) == 1
    assert desk.timetable.to_land(9) == [], "nor before it is due"


def test_the_next_launch_waits_for_the_sync_before() -> None:
    desk = Desk(SyncPlan(10, 2, 2))
    desk.launch(3)
    assert desk.timetable.next_launch(0) == 13
    assert desk.timetable.to_wait_for(12) == []
    assert desk.timetable.to_launch(13) == [SyncKey(0, 1)], "the other one, overdue, does not"
    (sync,) = desk.timetable.to_wait_for(13)
    desk.land(sync)
    assert desk.timetable.to_launch(13) == [SyncKey(0, 1), SyncKey(1, 0)], "in the order of the plan"


def test_at_the_last_step_everything_must_land_and_nothing_is_launched_any_more() -> None:
    desk = Desk(SyncPlan(10, 2, 2), rounds=1)
    first, second = (desk.launch(step)[0] for step in (3, 8))
    assert desk.timetable.last_step == 10
    assert desk.timetable.next_event(9) == 10
    assert [sync.key for sync in desk.timetable.to_wait_for(10)] == [first, second]
    for sync in desk.timetable.to_wait_for(10):
        desk.land(sync)
    assert desk.timetable.to_launch(1000) == []


def test_a_worker_that_has_jumped_launches_what_it_jumped_over() -> None:
    desk = Desk(SyncPlan(12, 3), rounds=9)
    desk.progress.resume([5, 4, 4])
    assert desk.launch(61) == [SyncKey(4, 1), SyncKey(4, 2)]
    assert desk.timetable.next_launches == 64


# -- what follows the link --------------------------------------------------------------------------------------------


def test_overlap_follows_the_syncs_and_the_steps() -> None:
    desk = Desk(SyncPlan(20), auto_delay=True)
    assert desk.timetable.delay_steps == 1
    desk.timetable.stepped(0.5)
    desk.landed(0, landing(transfer_s=3.0))
    assert desk.timetable.delay_steps == 6
    desk.launch(20)
    assert desk.timetable.next_event(20) == 26
    desk.timetable.stepped(1.0)
    assert desk.timetable.next_event(20) == 23, "also of what is on its way"
    fixed = Desk(SyncPlan(20, 1, 2))
    fixed.timetable.stepped(0.5)
    fixed.landed(0, landing(transfer_s=3.0))
    assert fixed.timetable.delay_steps == 2


def grouped(transfer_s: float, *, plan: SyncPlan | None = None, **options: Any) -> Desk:
    """One sync of one of eight fragments, by itself, is measured with steps of a second."""
    desk = Desk(plan or SyncPlan(40, 8), auto_groups=True, **options)
    desk.timetable.stepped(1.0)
    desk.landed(0, landing(transfer_s))
    desk.progress.finish(SyncKey(0, 0))
    return desk


def finish_round(desk: Desk) -> None:
    desk.progress.resume([1] * desk.progress.num_fragments)


def test_launches_change_with_a_round_and_not_within() -> None:
    desk = grouped(transfer_s=1.25)
    assert desk.timetable.follow_the_link(lambda: []) == 2, "ten seconds for everything, five at a time"
    assert desk.timetable.plan.num_groups == 8
    finish_round(desk)
    assert desk.timetable.follow_the_link(lambda: []) == 2
    assert desk.timetable.plan.num_groups == 2
    assert [desk.timetable.next_launch(f) for f in range(8)] == [60, 80] * 4


def test_syncs_of_the_round_before_do_not_put_the_change_off() -> None:
    desk = grouped(transfer_s=1.25)
    for fragment in range(1, 8):
        desk.sky.up(SyncKey(0, fragment), 40)
    assert desk.timetable.follow_the_link(lambda: []) == 2
    assert desk.timetable.plan.num_groups == 2


@pytest.mark.parametrize(("others", "groups"), [((1, 1), 2), ((4, 3), 4), ((99,), 8)])
def test_the_slowest_link_decides(others: tuple[int, ...], groups: int) -> None:
    desk = grouped(transfer_s=1.25)
    finish_round(desk)
    assert desk.timetable.follow_the_link(lambda: map(asking, others)) == 2, "what it tells others is its own wish"
    assert desk.timetable.plan.num_groups == groups


def test_launches_leave_room_for_the_overlap_of_the_plan() -> None:
    desk = grouped(transfer_s=1.25, plan=SyncPlan(16, 8, 1))
    finish_round(desk)
    desk.timetable.follow_the_link(lambda: [asking(8)])
    assert desk.timetable.plan.num_groups == 8
    tight = grouped(transfer_s=1.25, plan=SyncPlan(16, 8, 3, 2))
    finish_round(tight)
    tight.timetable.follow_the_link(lambda: [asking(8)])
    assert tight.timetable.plan.num_groups == 4


def test_launches_stay_where_they_are_to_stay() -> None:
    desk = Desk(SyncPlan(40, 8))
    desk.timetable.stepped(1.0)
    desk.landed(0, landing(1.25))
    finish_round(desk)
    assert desk.timetable.follow_the_link(lambda: [asking(2)]) == 8
    assert desk.timetable.plan.num_groups == 8
