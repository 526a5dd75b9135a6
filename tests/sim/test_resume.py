"""Workers that stop and go on: alone bit for bit by every method, whole swarms that die at once, one that is back."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from decentral.codecs.codec import make_codec
from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.feedback import ErrorFeedback
from decentral.exchange.gossip.options import GossipOptions, RandomSwaps
from decentral.exchange.server.options import ServerOptions
from decentral.monitor.events import Resumed, RoundMixed, StretchDone
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.ef21 import Ef21
from decentral.outer.follow import Follow
from decentral.outer.noloco import NoLoCo
from decentral.outer.sparseloco import SparseLoCo
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.world import Machine, peer_id
from decentral.state.worker_state import WorkerState
from scripts.benches.lib.checkers import agreement, events, finish, reunion, spread_of
from scripts.benches.lib.counting import ADD_UP, ADD_UP_AT_SERVERS, Counting

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
        # A stretch of which the state has steps is told of where it ends, be it at this very step.
        told_up_to = state.step - (state.facts["course"]["steps"] > 0)
        rest = {ended: loss for ended, loss in expected.items() if ended > told_up_to}
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


# -- swarms -----------------------------------------------------------------------------------------------------------

COMMON = [name for name in METHODS if "noloco" not in name and "swaps" not in name and "server" not in name]


@pytest.mark.parametrize("method", COMMON)
def test_all_that_died_at_once_go_on_together(method: str) -> None:
    """From states of the same step, in the middle of a round: anchors are equal, and every round has all members."""
    scenario = swarm(3, together=True, min_workers=3, conditions=Conditions(latency_s=0.02), **METHODS[method])
    whole = simulate(scenario)
    step = scenario.plan.step_of_round(1) + scenario.plan.inner_steps - 2
    restored = {
        peer: next(state for state in reversed(states) if state.step <= step) for peer, states in whole.states.items()
    }
    assert len({state.step for state in restored.values()}) == 1
    again = simulate(replace(scenario, restored=restored, save_every=Every()))
    assert not [*agreement(again), *reunion(scenario, again)]
    members = [event.members for _, event in events(again) if isinstance(event, RoundMixed)]
    assert members
    assert {len(each) for each in members} == {3}
    assert torch.equal(weights(again), weights(whole)), "nobody could tell that there was a pause"


@pytest.mark.parametrize(
    "method",
    [
        "noloco",
        *(pytest.param(method, marks=pytest.mark.slow) for method in ("random swaps", "server")),
        "server, lossy, in fragments",
    ],
)
def test_those_without_a_common_anchor_go_on_together_too(method: str) -> None:
    scenario = swarm(3, together=True, **{**METHODS[method], "rounds": 16, "save_every": Every(steps=7)})
    whole = simulate(scenario)
    restored = {peer: states[len(states) // 2] for peer, states in whole.states.items()}
    again = simulate(replace(scenario, restored=restored, save_every=Every()))
    assert not list(finish(scenario, again))
    assert spread_of(again) < 1.5 * spread_of(whole) + 0.05


COUNTED: dict[str, dict[str, Any]] = {
    "all-reduce": dict(ADD_UP),
    "streaming": {**ADD_UP, "plan": THREE},
    "servers": dict(ADD_UP_AT_SERVERS),
}


def some(num: int, *, of: int) -> list[Any]:
    """The first seeds, and the others if there is time."""
    return [*range(num), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(num, of))]


def check_counted_once(method: str, seed: int, faults: Sequence[Fault]) -> None:
    """Workers that are killed come back from states of this round or the one before."""
    settings = {"rounds": 14, "machines": {peer_id(2): Machine(aside_s=0.01)}, **COUNTED[method]}
    scenario = Counting(seed, 3, save_every=Every(steps=(7, 13, 16)[seed % 3]), **settings)
    tape = FaultTape(faults)
    record = simulate(scenario, tape, until_s=600.0)
    assert tape.exhausted()
    assert not list(finish(scenario, record))
    for peer, outcome in record.outcomes.items():
        assert float(scenario.places(outcome.anchors).max()) <= 1.0, f"{peer} has a step twice"


@pytest.mark.parametrize("seed", some(3, of=6))
@pytest.mark.parametrize("method", COUNTED)
def test_one_that_is_killed_and_back_brings_no_step_twice(method: str, seed: int) -> None:
    at_s = 4.0 + 0.37 * seed
    victim = seed % 3
    faults = [Fault(Kind.KILL, at_s, (victim,)), Fault(Kind.START, at_s + (0.05, 0.6, 3.0)[seed % 3], (victim,))]
    check_counted_once(method, seed, faults)


@pytest.mark.parametrize("seed", some(1, of=4))
@pytest.mark.parametrize("method", COUNTED)
def test_all_are_killed_and_come_back_and_no_step_counts_twice(method: str, seed: int) -> None:
    """Their states are of different ages: whoever is first goes on from its own, the others join it."""
    at_s = 5.0 + 0.43 * seed
    faults = [Fault(Kind.KILL, at_s, (0, 1, 2))]
    faults += [Fault(Kind.START, at_s + 1.0 + 0.3 * place, ((seed + place) % 3,)) for place in range(3)]
    check_counted_once(method, seed, faults)


# -- another shape ----------------------------------------------------------------------------------------------------


#: Each method is left once and taken up once; with every second of these pairs once in all, if there is no time.
PAIRS = list(pairwise([*METHODS, next(iter(METHODS))]))


@pytest.mark.parametrize(
    ("before", "after"), [*PAIRS[::2], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS[1::2])]
)
def test_a_run_goes_on_by_another_method(before: str, after: str) -> None:
    """Three workers, as long as the rest of the run is by the new one's count."""
    scenario = swarm(3, together=True, **METHODS[before])
    whole = simulate(scenario)
    restored = {peer: states[len(states) // 2] for peer, states in whole.states.items()}
    changed = swarm(3, together=True, **{"rounds": 12, **METHODS[after]})
    again = simulate(replace(changed, restored=restored, save_every=Every()))
    assert not list(finish(changed, again))
    for peer, state in restored.items():
        (resumed,) = [event for event in again.journals[peer][0].events if isinstance(event, Resumed)]
        assert (resumed.step, resumed.tokens, resumed.dropped_steps) == (state.step, state.tokens, 0)
        old, new = scenario.plan, changed.plan
        same = (old.inner_steps, old.num_fragments) == (new.inner_steps, new.num_fragments)
        assert same or resumed.round == min(new.rounds_after(state.step))
    assert spread_of(again) < 1.0


CUTS = {
    "whole": {"plan": SyncPlan(10)},
    "in three": {"plan": THREE},
    "blended": {"plan": SyncPlan(12, 1, 5), "mix_alpha": 0.5},
    "in longer rounds": {"plan": SyncPlan(20, 3, 5)},
}


CHANGES = [
    ("whole", "in three"),
    ("in three", "whole"),
    ("in three", "in longer rounds"),
    ("blended", "in longer rounds"),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_no_step_is_lost_or_counted_twice_when_a_run_is_cut_otherwise(before: str, after: str) -> None:
    """Whatever is on its way when the state is taken: all of it is in the anchor after a round by the new cut."""
    scenario = Counting(3, 1, rounds=4, save_every=STEPWISE, **ADD_UP, **CUTS[before])
    states = simulate(scenario).states[ALONE]
    for state in states[3 :: len(states) // 4]:
        changed = Counting(3, 1, rounds=12, restored={ALONE: state}, **ADD_UP, **CUTS[after])
        changed.problem.taken[0] = state.tokens
        ended = simulate(changed).outcomes[ALONE]
        places = changed.places(ended.anchors)[:, 0]
        held = (scenario.places(state.anchors) > 0)[:, 0] | (local_places(scenario, state) > 0)[:, 0]
        assert float(places.max()) <= 1.0 + 1e-5, state.step
        assert torch.all(places[held] > 0), state.step


def local_places(scenario: Counting, state: WorkerState) -> torch.Tensor:
    return scenario.places({name: state.own[f"local/{name}"] for name in state.anchors})
