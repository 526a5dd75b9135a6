"""Two of eight workers lie: the others end where they would have ended without them, bit-equal, and say who it was."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decentral.exchange.allreduce.options import AllReduceOptions, Merge
from decentral.exchange.server.options import ServerOptions
from decentral.exchange.wire import MIN_SHARD_VALUES
from decentral.monitor.events import Restrained, RoundAborted, RoundMixed
from decentral.outer.follow import Follow
from decentral.schedule.plan import SyncPlan
from decentral.sim.scenario import Record, Scenario, simulate
from scripts.benches.lib.attacks import liars

WORKERS, LIARS, VALUES = 8, (3, 6), 6_000
Lie = str
STREAMING = {"plan": SyncPlan(12, 3, 2), "mix_alpha": 0.5}


def played(attack: Lie, **settings: Any) -> tuple[Scenario, Record]:
    settings = {"rounds": 6, "min_workers": WORKERS, "together": True, "num_values": VALUES, **settings}
    scenario = Scenario(3, WORKERS, meddle=liars(attack, LIARS), **settings)
    return scenario, simulate(scenario)


def anchors(scenario: Scenario, record: Record) -> list[Mapping[str, Tensor]]:
    """Of the honest, which are all the same."""
    outcomes = [record.outcomes[scenario.peers[i]] for i in range(WORKERS) if i not in LIARS]
    assert len({outcome.digest for outcome in outcomes}) == 1
    return [outcome.anchors for outcome in outcomes]


def off(scenario: Scenario, record: Record) -> float:
    """Distance from the goal over the goal's, of the anchor of all."""
    return distance(scenario, anchors(scenario, record)[0])


def distance(scenario: Scenario, agreed: Mapping[str, Tensor]) -> float:
    """Of an anchor from the goal over the goal's."""
    values_N = torch.cat([agreed[f"layers.{number}"] for number in range(scenario.num_tensors)]).numpy()
    goal_N = scenario.problem.goal
    return float(np.linalg.norm(values_N - goal_N) / np.linalg.norm(goal_N))


def found(record: Record, scenario: Scenario, observer: int = 0) -> list[Restrained]:
    events = record.journals[scenario.peers[observer]][0].events
    return [event for event in events if isinstance(event, Restrained)]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="rounds"),
        pytest.param(STREAMING, id="streaming", marks=pytest.mark.slow),
        pytest.param({"codec": "int4-b128"}, id="int4", marks=pytest.mark.slow),
    ],
)
def test_honest_workers_are_never_restrained_and_bounds_change_no_bit(settings: dict[str, Any]) -> None:
    scenario, bounded = played("", **settings)
    _, free = played("", mixing=AllReduceOptions(bound=0.0), **settings)
    assert not found(bounded, scenario)
    assert bounded.outcomes[scenario.peers[0]].digest == free.outcomes[scenario.peers[0]].digest


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        ("negate", "against"),
        ("huge", "wild"),
        pytest.param("negate-1e6", "wild", marks=pytest.mark.slow),
        pytest.param("scale-3", "length", marks=pytest.mark.slow),
        pytest.param("weight-1e6", "weight", marks=pytest.mark.slow),
        pytest.param("free-rider", "nothing", marks=pytest.mark.slow),
    ],
)
def test_two_of_eight_are_restrained_and_named_by_everybody(attack: Lie, kind: str) -> None:
    scenario, lied = played(attack)
    # The goal is the mean of all; of the honest alone it is another, and once near it they no longer agree.
    assert off(scenario, lied) < 0.35
    liars = {scenario.peers[i] for i in LIARS}
    for observer in range(WORKERS):
        first = [event for event in found(lied, scenario, observer) if event.round == 0]
        assert {(event.peer, event.kind, event.share) for event in first} == {(peer, kind, 1.0) for peer in liars}


@pytest.mark.parametrize(
    "attack",
    [
        "donor",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("false-deaths", "replay")),
    ],
)
def test_who_lies_about_other_things_than_values_holds_up_no_more_than_some_rounds(attack: Lie) -> None:
    """Joiners ask liars for a state; all are said to be dead; all is sent again."""
    scenario, lied = played(attack, rounds=12, together=False)
    assert off(scenario, lied) < 0.35
    for number in set(range(WORKERS)) - set(LIARS):
        events = lied.journals[scenario.peers[number]][0].events
        assert sum(isinstance(event, RoundMixed) for event in events) >= 8


@pytest.mark.parametrize("attack", ["leader-negate", "leader-away", pytest.param("leader", marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, pytest.param(STREAMING, marks=pytest.mark.slow)], ids=["rounds", "streaming"])
@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_leaders_that_name_their_like_alone_or_send_all_others_away_hold_up_no_round(
    attack: Lie, settings: dict[str, Any], together: bool
) -> None:
    scenario, lied = played(attack, rounds=12, together=together, **settings)
    assert off(scenario, lied) < 0.15
    honest = {scenario.peers[number] for number in set(range(WORKERS)) - set(LIARS)}
    for peer in honest:
        events = lied.journals[peer][0].events
        assert not [event for event in events if isinstance(event, RoundAborted)]
        mixed = [event for event in events if isinstance(event, RoundMixed)]
        assert len(mixed) == 12 * settings.get("plan", SyncPlan(12)).num_fragments
        assert all(honest <= set(event.members) for event in mixed)


def test_without_bounds_the_same_lie_ruins_the_run() -> None:
    scenario, lied = played("negate-1e6", mixing=AllReduceOptions(bound=0.0), rounds=2)
    assert off(scenario, lied) > 1e3


def test_values_that_are_not_finite_are_nobodys() -> None:
    scenario, lied = played("nan")
    mixed = [e for e in lied.journals[scenario.peers[0]][0].events if isinstance(e, RoundMixed)]
    liars = {scenario.peers[i] for i in LIARS}
    # What a liar reduces itself it brings there as it is: nothing of it goes over the network.
    assert off(scenario, lied) < 0.3
    assert len(mixed) == 6
    assert all(liars <= {peer for peer, _ in event.absent} | set(event.members) for event in mixed)


def test_means_that_are_not_finite_are_nobodys_and_the_round_goes_on() -> None:
    """What a lying reducer answers is refused by all alike: its shard waits for a round with another reducer."""
    scenario, lied = played("reducer-nan", num_values=8 * MIN_SHARD_VALUES)
    assert off(scenario, lied) < 0.35
    named = {(event.peer, event.kind, event.share) for event in found(lied, scenario)}
    assert named == {(scenario.peers[i], kind, 1 / WORKERS) for i in LIARS for kind in ("mean", "proven")}


@pytest.mark.parametrize(
    ("attack", "kind"), [("reducer-negate", "turned"), pytest.param("reducer-1e6", "mean", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("settings", [{}, pytest.param(STREAMING, marks=pytest.mark.slow)], ids=["rounds", "streaming"])
def test_who_answers_what_is_no_mean_is_named_and_reduces_no_more(
    attack: Lie, kind: str, settings: dict[str, Any]
) -> None:
    scenario, lied = played(attack, num_values=12 * MIN_SHARD_VALUES, rounds=8, **settings)
    assert off(scenario, lied) < 0.35
    liars = {scenario.peers[i] for i in LIARS}
    for number in set(range(WORKERS)) - set(LIARS):
        events = found(lied, scenario, number)
        assert {event.peer for event in events if event.kind == kind and event.round <= 1} == liars
        # But where one of the two leads, which trusts both.
        assert sum(event.peer in liars for event in events) < 8, "leaders give them no shards"


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        ("huge", "wild"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("scale-1e6", "wild"), ("negate", "against"))),
    ],
)
def test_without_rounds_a_server_leaves_out_what_is_far_too_long_or_against_and_names_it(
    attack: Lie, kind: str
) -> None:
    asynchronous = {"rule": Follow(), "mixing": ServerOptions(lr=0.7, momentum=0.5), "rounds": 12}
    scenario, honest = played("", **asynchronous)
    assert not [event for number in range(WORKERS) for event in found(honest, scenario, number)]
    scenario, lied = played(attack, **asynchronous)
    # The goal is the mean of all, the two that are left out among them.
    assert far_off(scenario, honest) < 0.06
    if kind == "wild":  # near the goal honest workers agree no more, and what points against them counts
        assert far_off(scenario, lied) < 0.12
    named = {(event.peer, event.kind) for number in range(WORKERS) for event in found(lied, scenario, number)}
    assert named == {(scenario.peers[number], kind) for number in LIARS}


def far_off(scenario: Scenario, record: Record) -> float:
    """Distance of the furthest honest anchor from the goal over the goal's."""
    outcomes = [record.outcomes[scenario.peers[i]].anchors for i in range(WORKERS) if i not in LIARS]
    return max(distance(scenario, anchors) for anchors in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("merge", [Merge.MEDIAN, Merge.TRIMMED, Merge.CENTRED])
@pytest.mark.parametrize("attack", ["alie", "foe"])
def test_robust_merges_withstand_what_bounds_do_not(attack: Lie, merge: Merge) -> None:
    scenario, lied = played(attack, mixing=AllReduceOptions(merge, num_liars=len(LIARS)))
    assert off(scenario, lied) < 0.5
