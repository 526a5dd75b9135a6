"""A ruined run comes back by itself, together; whoever alone takes it for ruined changes nothing for the others."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.feedback import ErrorFeedback
from decentral.engine.worker import Worker
from decentral.errors import DivergedError
from decentral.monitor.events import Event, Repaired, RolledBack, RoundAborted, RoundMixed, Validated
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.ef21 import Ef21
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.world import SimPeer
from decentral.types import PeerId
from scripts.benches.lib.checkers import check
from tests.sim.hardships import hardships

E = TypeVar("E", bound=Event)
Meddle = Callable[[int, Worker, SimPeer], None]

WORKERS, ROUNDS, STEPS = 4, 24, 10


def spoilt(factor: float, spells: tuple[tuple[int, int], ...]) -> Meddle:
    """All multiply their parameters by ``factor`` with every step between these."""

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        trainer: Any = worker._parts.model
        train_steps = trainer.train_steps

        def train(first_step: int, count: int) -> Any:
            report = train_steps(first_step, count)
            hit = [step for step in range(first_step, first_step + count) if any(a <= step < b for a, b in spells)]
            trainer._x_N *= np.float32(factor) ** len(hit)
            return report

        trainer.train_steps = train

    return meddle


def says(losses: Mapping[int, Callable[[int, float], float]]) -> Meddle:
    """Some find other losses, by how often they have validated and what they should have found; all explode."""
    explode = spoilt(1.3, ((120, 140),))

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        explode(number, worker, peer)
        trainer: Any = worker._parts.model
        validate, times = trainer.validate, 0

        def other() -> float:
            nonlocal times
            times += 1
            return losses[number](times, validate())

        if number in losses:
            trainer.validate = other

    return meddle


def told(record: Record, peer: PeerId, kind: type[E]) -> list[E]:
    return [event for life in record.journals[peer] for event in life.events if isinstance(event, kind)]


def mine(record: Record) -> list[Repaired]:
    """Of the second worker."""
    return told(record, PeerId("sim-0001"), Repaired)


def scenario(meddle: Meddle, **settings: Any) -> Scenario:
    usual = {
        "plan": SyncPlan(STEPS),
        "together": True,
        "min_workers": WORKERS,
        "eval_every_rounds": 1,
        "rolls_back": True,
        "rule": DiLoCo(lr=1.0, momentum=0.0),
        "num_values": 600,
    }
    return Scenario(3, WORKERS, ROUNDS, meddle=meddle, **{**usual, **settings})


METHODS = [
    pytest.param({}, id="rounds"),
    pytest.param({"rule": DiLoCo(lr=0.7, momentum=0.5), "momentum": 0.5}, id="momentum"),
    pytest.param({"plan": SyncPlan(12, 3, 2), "mix_alpha": 0.5}, id="streaming"),
    pytest.param({"codec": "int4-b128", "feedback": ErrorFeedback}, id="error feedback"),
    pytest.param(
        {"codec": "int8-b8-sr", "feedback": Ef21Feedback, "rule": Ef21(DiLoCo(lr=0.7, momentum=0.5))}, id="changes"
    ),
    pytest.param({"eager": Eager(lr=0.7, momentum=0.5), "rule": DiLoCo(lr=0.7, momentum=0.5)}, id="eager"),
]


@pytest.mark.parametrize("settings", METHODS)
def test_a_run_that_explodes_goes_on_from_its_best_anchor_and_ends_as_good(settings: dict[str, Any]) -> None:
    played = scenario(spoilt(1.3, ((120, 140),)), **settings)
    record = simulate(played)
    assert not check(played, record, tolerance=0.4)
    rolled = [told(record, peer, RolledBack) for peer in played.peers]
    assert [len(events) for events in rolled] == [1] * WORKERS
    assert len({(event.round, event.to_round) for [event] in rolled}) == 1
    losses = [event.val_loss for event in told(record, played.peers[0], Validated)]
    [back] = rolled[0]
    assert back.val_loss == min(losses[: back.round])
    assert losses[back.round - 1] > 10 * back.val_loss
    assert losses[-1] < 2 * back.val_loss


def test_without_it_the_same_run_ends() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        simulate(scenario(spoilt(1.3, ((120, 140),)), rolls_back=False, eval_every_rounds=1))
    assert all(isinstance(failure, DivergedError) for failure in caught.value.exceptions)


@pytest.mark.parametrize("settings", METHODS[:-1])  # eager workers have gone on from an anchor every second time
def test_values_that_are_not_finite_are_ruin_if_all_have_them_and_go_on_having_them(settings: dict[str, Any]) -> None:
    played = scenario(spoilt(math.nan, ((120, 165),)), **settings)
    record = simulate(played)
    assert not check(played, record, tolerance=0.4)
    for peer in played.peers:
        [event] = told(record, peer, RolledBack)
        assert "not finite in 3 rounds in a row" in event.reason


def test_a_run_is_not_rolled_back_twice_to_the_same_anchor() -> None:
    """What explodes again before it was any better would explode for ever."""
    with pytest.raises(ExceptionGroup) as caught:
        simulate(scenario(spoilt(1.3, ((120, 10_000),))))
    assert {str(failure).partition(" is ")[0] for failure in caught.value.exceptions} == {"the validation loss"}


def test_a_run_is_rolled_back_three_times_at_most() -> None:
    spells = tuple([(first, first + 20) for first in (40, 80, 120, 160)])
    assert simulate(scenario(spoilt(1.3, spells[:3])))
    with pytest.raises(ExceptionGroup) as caught:
        simulate(scenario(spoilt(1.3, spells)))
    assert all(isinstance(failure, DivergedError) for failure in caught.value.exceptions)


def test_who_takes_a_sound_run_for_ruined_is_repaired_and_nobody_else_hears_of_it() -> None:
    doubt = says({1: lambda times, loss: 99.0 if times in (6, 7) else loss})
    played = scenario(doubt)
    record = simulate(played)
    assert not check(played, record, tolerance=0.4)
    rolled = {peer: [event.round for event in told(record, peer, RolledBack)] for peer in played.peers}
    assert rolled == {peer: [7, 14] if peer == played.peers[1] else [14] for peer in played.peers}
    # Its best anchor is not theirs the second time. In the round after it has gone back it waits for them.
    assert [event.reason for event in mine(record)] == ["out-of-sync"] * 2
    assert [event.round for event in told(record, played.peers[1], RoundAborted)] == [7, 8, 14, 15]
    assert not any(told(record, peer, Repaired) for peer in played.peers if peer != played.peers[1])


@pytest.mark.parametrize("finds", [lambda times, loss: math.nan, lambda times, loss: 1.0 / times])
def test_who_cannot_tell_or_finds_all_well_goes_back_with_the_others(finds: Callable[[int, float], float]) -> None:
    played = scenario(says({1: finds}))
    record = simulate(played)
    assert not check(played, record, tolerance=0.4)
    assert [len(told(record, peer, RolledBack)) for peer in played.peers] == [1, 0, 1, 1]
    # Nothing is left of its work, which was done in a ruined model: that would be found unsound.
    assert [event.reason for event in mine(record)] == ["out-of-sync"]
    assert played.peers[1] in told(record, played.peers[0], RoundMixed)[-1].members


@pytest.mark.parametrize("settings", [METHODS[0], METHODS[2], METHODS[3]])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 13))])
def test_a_run_with_crashes_and_losses_on_the_way_comes_back_as_well(seed: int, settings: dict[str, Any]) -> None:
    hard, tape = hardships(seed, WORKERS + 1, (3.0, 30.0))
    hard |= {"min_workers": 3, "save_every": Every(steps=7), "together": False, "patient": True}
    played = scenario(spoilt(1.3, ((250, 272),)), **{**settings, **hard})
    played = replace(played, seed=seed, num_workers=WORKERS + 1, rounds=45)
    record = simulate(played, tape)
    assert not check(played, record, tolerance=0.4)
    assert sum(bool(told(record, peer, RolledBack)) for peer in played.peers) > WORKERS / 2
    for peer in played.peers:
        assert min(event.val_loss for event in told(record, peer, Validated)[-5:]) < 1e-3
