"""Workers that stop and go on: alone bit for bit by every method, whole swarms that die at once, one that is back."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from decentral.codecs.codec import make_codec
from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.feedback import ErrorFeedback
from decentral.engine.options import Every
from decentral.exchange.gossip.options import GossipOptions, RandomSwaps
from decentral.exchange.server.options import ServerOptions
from decentral.monitor.events import StretchDone
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.ef21 import Ef21
from decentral.outer.follow import Follow
from decentral.outer.noloco import NoLoCo
from decentral.outer.sparseloco import SparseLoCo
from decentral.schedule.plan import SyncPlan
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.world import Machine, peer_id

FP32, INT8, INT4 = map(make_codec, ("fp32", "int8-b8", "int4-b8"))
LOSSY: dict[str, Any] = {"codec": "int8-b8", "feedback": ErrorFeedback}
THREE = SyncPlan(12, 3, 3)
STEPWISE = Every(steps=1)
ALONE = peer_id(0)

METHODS: dict[str, dict[str, Any]] = {
    "local-sgd": {"rule": DiLoCo(lr=1.0, momentum=0.0), "plan": SyncPlan(5)},
    "diloco": {"plan": SyncPlan(10)},
    "diloco int8": {"plan": SyncPlan(10), **LOSSY},
    "ef21": {"rule": Ef21(DiLoCo(lr=0.7, momentum=0.5)), "codec": "int4-b8", "feedback": Ef21Feedback},
    "sparseloco": {"rule": SparseLoCo(), "codec": "topk6-4bit", "feedback": lambda num: ErrorFeedback(num, decay=0.95)},
    "streaming": {"plan": THREE, **LOSSY},
    "streaming, blended": {"plan": THREE, "mix_alpha": 0.5},
    "overlap": {"plan": SyncPlan(10, 1, 4), "mix_alpha": 0.5},
    "eager": {"plan": SyncPlan(10), "eager": Eager(lr=0.7, momentum=0.5)},
    "eager streaming": {"plan": SyncPlan(12, 3), "eager": Eager(lr=0.7, momentum=0.5), **LOSSY},
    "noloco": {"plan": SyncPlan(5), "rule": NoLoCo(), "mixing": GossipOptions(INT8, INT4), **LOSSY},
    "random swaps": {
        "plan": SyncPlan(5),
        "rule": DiLoCo(lr=0.7, momentum=0.5, nesterov=False),
        "mixing": GossipOptions(FP32, FP32, swaps=RandomSwaps(1.0)),
    },
    "server": {
        "plan": SyncPlan(6),
        "rule": Follow(),
        "mixing": ServerOptions(lr=0.7, momentum=0.5, every=3, share=0.1),
    },
    "server, lossy, in fragments": {
        "plan": SyncPlan(12, 3),
        "rule": Follow(),
        "mixing": ServerOptions(lr=0.7, momentum=0.5, every=2),
        **LOSSY,
    },
}


def swarm(num_workers: int, **settings: Any) -> Scenario:
    """Whose inner optimizers and data have a state that shows if it is forgotten."""
    usual: dict[str, Any] = {"rounds": 4, "momentum": 0.5, "save_every": STEPWISE}
    return Scenario(7, num_workers, **{**usual, **settings})


def weights(record: Record, number: int = 0) -> torch.Tensor:
    anchors = record.outcomes[peer_id(number)].anchors
    return torch.cat([anchors[name].flatten() for name in sorted(anchors)])


def losses(record: Record, number: int = 0) -> dict[int, float]:
    """Of a worker's stretches, by the step at which each ended."""
    journal = record.journals[peer_id(number)][-1]
    return {event.step: event.loss for event in journal.events if isinstance(event, StretchDone)}


# -- one process ------------------------------------------------------------------------------------------------------


def check_resumes(method: str, aside_s: float, num_states: int) -> None:
    """Go on from that many states of a run, evenly spread."""
    scenario = swarm(1, machines={ALONE: Machine(aside_s=aside_s)}, **METHODS[method])
    whole = simulate(scenario)
    expected, states = losses(whole), whole.states[ALONE]
    assert len(states) > 3
    for state in states[1 :: max(1, len(states) // num_states)]:
        again = simulate(replace(scenario, restored={ALONE: state}, save_every=Every()))
        assert torch.equal(weights(again), weights(whole)), state.step
        rest = {ended: loss for ended, loss in expected.items() if ended > state.step}
        assert losses(again) == pytest.approx(rest), state.step
        assert again.outcomes[ALONE].tokens == whole.outcomes[ALONE].tokens


@pytest.mark.parametrize("method", METHODS)
def test_one_that_resumes_ends_as_if_it_had_never_stopped(method: str) -> None:
    check_resumes(method, 0.0, num_states=3)


@pytest.mark.parametrize("method", ["streaming, blended", "overlap", "eager streaming"])
def test_what_was_on_its_way_goes_on(method: str) -> None:
    """Where an exchange takes some steps, states are taken in the middle of it."""
    check_resumes(method, 0.03, num_states=6)


@pytest.mark.slow
@pytest.mark.parametrize("aside_s", [0.0, 0.03])
@pytest.mark.parametrize("method", METHODS)
def test_one_resumes_from_any_step(method: str, aside_s: float) -> None:
    check_resumes(method, aside_s, num_states=1000)
