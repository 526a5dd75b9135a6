"""What goes wrong at one worker while fragments are on their way."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.feedback import ErrorFeedback
from decentral.errors import DivergedError
from decentral.monitor.events import Repaired, RoundMixed, SatOut, Stopped
from decentral.ports.trainer import Trainer
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind
from decentral.sim.world import SimPeer
from decentral.state.snapshot import Snapshot
from decentral.types import PeerId, SyncKey
from tests.unit.engine.swarm import FOUNDER, PEERS, SECOND, THIRD, Plan, Seen, ordinary, simulate
from tests.unit.engine.test_replica import apply, founded, mixed, state
from tests.unit.engine.test_rounds import Diverging

#: Three layers, three launches a round, five steps of overlap at most.
THREE: dict[str, Any] = {"plan": SyncPlan(12, 3, 2), "mix_alpha": 0.5}
#: All fragments are launched together.
TOGETHER: dict[str, Any] = {"plan": SyncPlan(12, 3, 2, 1), "mix_alpha": 0.5}


def nan_once(at_step: int) -> dict[PeerId, Callable[[SimPeer], Trainer]]:
    return {THIRD: lambda peer: ordinary(peer, nan_at_step=at_step)}


@pytest.mark.parametrize("options", [THREE, TOGETHER, {**TOGETHER, "auto_delay": True}])
@pytest.mark.parametrize("at_step", [27, 29, 32])
def test_values_that_are_not_finite_once_cost_one_launch_of_each_fragment_at_most(
    options: dict[str, Any], at_step: int
) -> None:
    seen = simulate(Plan(rounds=5, trainers=nan_once(at_step), options=options))
    assert not seen.errors
    sat_out = [(event.round, event.reason) for event in seen.of(SatOut, THIRD)]
    assert 1 <= len(sat_out) <= 3
    assert {round_ for round_, _ in sat_out} == {2}
    assert not seen.of(Repaired, THIRD)
    check_agreement_of_fragments(seen)
    last = [m for m in seen.of(RoundMixed, FOUNDER) if m.round == 4]
    assert [m.members for m in last] == [PEERS] * 3, "it is in again"


@pytest.mark.parametrize("options", [THREE, TOGETHER])
def test_who_never_has_finite_values_gives_up_in_the_third_round(options: dict[str, Any]) -> None:
    seen = simulate(Plan(rounds=8, trainers={THIRD: lambda peer: Diverging(ordinary(peer))}, options=options))
    assert set(seen.errors) == {THIRD}
    assert isinstance(seen.errors[THIRD], DivergedError)
    assert max(event.round for event in seen.of(SatOut, THIRD)) == 2
    check_agreement_of_fragments(seen, FOUNDER, SECOND)


def check_agreement_of_fragments(seen: Seen, *peers: PeerId) -> None:
    """As ``check_agreement``, of every fragment by itself."""
    peers = peers or PEERS
    assert len({seen.outcomes[peer].digest for peer in peers}) == 1
    digests: dict[tuple[int, int], set[str]] = {}
    for peer in peers:
        for event in seen.of(RoundMixed, peer):
            digests.setdefault((event.round, event.fragment), set()).add(event.digest)
    assert all(len(found) == 1 for found in digests.values())


# -- asked to stop while fragments are on their way -------------------------------------------------------------------


#: Every sync lasts several steps of a tenth of a second.
FAR = dict.fromkeys(itertools.combinations(PEERS, 2), 0.1)
LOSSY: dict[str, Any] = {
    "codec": make_codec("int4-b8"),
    "mean_codec": make_codec("int8-b8"),
    "feedback": ErrorFeedback,
}


def residuals(seen: Seen) -> dict[str, Tensor]:
    """What the third worker still had to send in the end."""
    own = seen.states[THIRD].own.items()
    return {name.removeprefix("residual/"): value for name, value in own if name.startswith("residual/")}


@pytest.mark.parametrize("at_s", [6.05, 6.25, 6.55])
def test_what_is_on_its_way_still_counts_when_a_worker_is_asked_to_stop(at_s: float) -> None:
    plan = Plan(rounds=10, stops={THIRD: at_s}, latencies=FAR, options={**THREE, **LOSSY})
    seen = simulate(plan)
    assert not seen.errors
    assert seen.ended_s[THIRD] <= at_s + 3.0
    (stopped,) = seen.of(Stopped, THIRD)
    assert (stopped.reason, seen.outcomes[THIRD].done) == ("asked to stop", False)
    ended = {(m.round, m.fragment) for m in seen.of(RoundMixed, THIRD)}
    assert {(key.round, key.fragment) for key, peer in seen.weights if peer == THIRD} <= ended, (
        "all that it sent counts"
    )
    assert residuals(seen).keys() == seen.outcomes[THIRD].anchors.keys()
    assert any(value.any() for value in residuals(seen).values())
    check_agreement_of_fragments(seen, FOUNDER, SECOND)
    assert not seen.of(Repaired, FOUNDER)


def test_a_worker_that_is_asked_to_stop_does_not_wait_for_others_for_ever() -> None:
    sleep = [Fault(Kind.PAUSE, 6.0, (number,), 40.0) for number in (0, 1)]
    plan = Plan(rounds=10, stops={THIRD: 6.6}, options={**THREE, **LOSSY}, faults=sleep)
    seen = simulate(plan)
    assert not seen.errors
    assert not seen.unfired
    assert seen.ended_s[THIRD] <= 22.0, "eight seconds for what is on its way, and some to say goodbye"
    assert not seen.outcomes[THIRD].done
    assert any(value.any() for value in residuals(seen).values())
    check_agreement_of_fragments(seen, FOUNDER, SECOND)


# -- digests ----------------------------------------------------------------------------------------------------------


def test_digests_of_a_history_that_was_given_up_are_forgotten() -> None:
    """A worker that went ahead alone and was brought back must not show what it once held where a round begins."""
    replica, _ = founded(num_fragments=2)
    for round_ in range(3):
        for fragment, values in enumerate(((2.0, 2.0), (2.0,))):
            apply(replica, SyncKey(round_, fragment), mixed(*values), None)
    assert replica.digest_of(3)
    back = [state(1.0, 2.0), state(3.0)]
    replica.adopt(Snapshot(10, tuple(back)))
    assert replica.digest_of(2)
    assert replica.digest_of(3) == ""
