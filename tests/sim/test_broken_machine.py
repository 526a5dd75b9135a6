"""An honest worker whose memory is broken: it is found, sits out, takes over what the others have, and goes on."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.feedback import ErrorFeedback
from decentral.engine.worker import Worker
from decentral.errors import DivergedError
from decentral.monitor.events import Event, Repaired, Restrained, RoundMixed, SatOut
from decentral.outer.diloco import DiLoCo
from decentral.outer.ef21 import Ef21
from decentral.schedule.plan import SyncPlan
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.world import SimPeer
from decentral.types import PeerId
from scripts.benches.lib.checkers import check

E = TypeVar("E", bound=Event)

WORKERS, BROKEN, ROUNDS, STEPS = 5, 2, 8, 10
#: The highest bit of a float's exponent: of values below 1 it makes 2^128 times as much.
BIT = 30
CHANGES: dict[str, Any] = {
    "codec": "int8-b8-sr",
    "feedback": Ef21Feedback,
    "rule": Ef21(DiLoCo(lr=0.7, momentum=0.5)),
}


def flips(at: Callable[[int], bool]) -> Callable[[int, Worker, SimPeer], None]:
    """Flip one bit of a parameter after the steps that begin where ``at`` says so."""

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        if number != BROKEN:
            return
        trainer: Any = worker._parts.model
        train_steps = trainer.train_steps

        def flipping(first_step: int, count: int) -> Any:
            with np.errstate(over="ignore", invalid="ignore"):  # what a GPU does not tell either
                report = train_steps(first_step, count)
            if any(at(step) for step in range(first_step, first_step + count)):
                values_N = torch.from_numpy(trainer._x_N)
                values_N.view(torch.int32)[(values_N.abs() - 0.5).abs().argmin()] ^= 1 << BIT
            return report

        trainer.train_steps = flipping

    return meddle


def told(record: Record, peer: PeerId, kind: type[E]) -> list[E]:
    return [event for life in record.journals[peer] for event in life.events if isinstance(event, kind)]


def played(at: Callable[[int], bool], **settings: Any) -> tuple[Scenario, Record]:
    usual = {"plan": SyncPlan(STEPS), "together": True, "min_workers": WORKERS, "num_values": 600, "momentum": 0.5}
    scenario = Scenario(2, WORKERS, ROUNDS, meddle=flips(at), **{**usual, **settings})
    return scenario, simulate(scenario)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="rounds"),
        pytest.param({"plan": SyncPlan(12, 3, 2), "mix_alpha": 0.5}, id="streaming"),
        pytest.param({"codec": "int4-b128", "feedback": ErrorFeedback}, id="error feedback"),
    ],
)
def test_a_flipped_bit_costs_its_worker_a_round_and_nobody_else_anything(settings: dict[str, Any]) -> None:
    scenario, record = played(lambda step: step == 25, **settings)
    broken = scenario.peers[BROKEN]
    assert not check(scenario, record, tolerance=0.4)
    others = [peer for peer in scenario.peers if peer != broken]
    assert {event.peer for peer in others for event in told(record, peer, Restrained)} == {broken}
    repaired = told(record, broken, Repaired)
    assert [event.reason for event in repaired] == ["unsound"]
    assert [event.round for event in told(record, broken, SatOut)] == [2]
    last = told(record, scenario.peers[0], RoundMixed)[-1]
    assert broken in last.members
    assert not any(told(record, peer, Repaired) for peer in scenario.peers if peer != broken)


@pytest.mark.parametrize("settings", [pytest.param({}, id="rounds"), pytest.param(CHANGES, id="changes")])
def test_a_machine_that_is_broken_for_good_ends_and_the_others_train_on(settings: dict[str, Any]) -> None:
    """Of members that send changes it is told once they bring whole values, as after somebody was bounded."""
    with pytest.raises(ExceptionGroup) as caught:
        played(lambda step: step >= 25, **settings)
    (failure,) = caught.value.exceptions
    assert isinstance(failure, DivergedError)
    assert "far from all others' in 3 rounds in a row" in str(failure)
