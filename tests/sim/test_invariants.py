"""Whole swarms under drawn faults. A failure names its seed; ``faulty(seed)`` plays it again."""

import functools
from collections import Counter
from typing import Any

import pytest

from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.feedback import ErrorFeedback
from decentral.monitor.events import Repaired, RoundMixed
from decentral.outer.diloco import DiLoCo
from decentral.outer.ef21 import Ef21
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Kind, Plan, draw
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from scripts.benches.lib.checkers import agreement, check, counted_once, reunion
from scripts.benches.lib.counting import ADD_UP, Counting
from tests.sim.hardships import hardships

#: Virtual seconds in which faults happen, and rounds that take well beyond their end.
FAULTS_S = (5.0, 30.0)
ROUNDS = 60
TOLERANCE = 0.4
"""RMS distance from the goal; the swarm starts at about 1."""


#: How values travel; seeds take turns.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"codec": "int4-b8", "feedback": ErrorFeedback},
    {"codec": "int8-b8-sr", "feedback": Ef21Feedback, "rule": Ef21(DiLoCo(lr=0.7, momentum=0.5))},
)


@functools.lru_cache(maxsize=4)
def faulty(seed: int) -> tuple[Scenario, FaultTape, Record]:
    """Five to eight workers."""
    num_workers = 5 + seed % 4
    settings, tape = hardships(seed, num_workers, FAULTS_S, late_s=12.0)
    scenario = Scenario(seed, num_workers, rounds=ROUNDS, **settings, **VARIANTS[seed % len(VARIANTS)])
    return scenario, tape, simulate(scenario, tape, until_s=3000.0)


def assert_holds(seed: int) -> None:
    scenario, tape, record = faulty(seed)
    violations = check(scenario, record, tolerance=TOLERANCE)
    assert not violations, f"seed {seed}: {violations}"
    # A partition that found everybody it separates busy with something else has had no effect; all others must have.
    assert len(tape.unfired()) <= 1, f"seed {seed}: {tape.unfired()} had no effect"


@pytest.mark.parametrize("seed", range(3))
def test_survives_drawn_faults(seed: int) -> None:
    assert_holds(seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_survives_two_hundred_seeds(first: int) -> None:
    for seed in range(first, first + 20):
        assert_holds(seed)


#: Kinds that all together tear many rounds.
MESS = Counter(
    [
        Kind.KILL,
        Kind.KILL,
        Kind.PAUSE,
        Kind.MUTE,
        Kind.DEAF,
        Kind.HALF_OPEN,
        Kind.SLOW,
        Kind.DUPLICATE,
        Kind.REORDER,
        Kind.CLOCK,
    ]
)


@pytest.mark.parametrize(
    ("seed", "plan", "step_s"),
    [
        (11, SyncPlan(10), 0.1),
        pytest.param(11, SyncPlan(12, 3), 1 / 12, marks=pytest.mark.slow),
    ],
)
def test_work_of_an_aborted_round_that_others_have_counted_is_not_counted_again(
    seed: int, plan: SyncPlan, step_s: float
) -> None:
    """A reducer dies, one who asks for its answer gets none, and others had it: it repairs, and must not bring more."""
    num_workers = 5 + seed % 3
    settings = {**ADD_UP, "plan": plan, "step_s": step_s, "conditions": Conditions(jitter=0.3)}
    scenario = Counting(seed, num_workers, 45, **settings)
    tape = FaultTape(draw(seed, range(num_workers), Plan(5.0, 28.0, MESS, loss=0.05, slow_bytes_per_s=2e4)))
    record = simulate(scenario, tape, until_s=3000.0)
    assert not [*agreement(record), *reunion(scenario, record), *counted_once(scenario, record)]


def test_faults_make_work_for_the_repair() -> None:
    """Else the checkers would pass on swarms that nothing ever happened to."""
    _, _, record = faulty(1)
    journals = [(peer, journal) for peer, lives in record.journals.items() for journal in lives]
    events = [(peer, event) for peer, journal in journals for event in journal.events]
    assert any(isinstance(event, Repaired) for _, event in events)
    mixed = [(peer, event) for peer, event in events if isinstance(event, RoundMixed)]
    assert any(event.absent for _, event in mixed)
    assert any(peer not in event.members for peer, event in mixed), "somebody got the mean of a round it had missed"


def test_same_seed_same_run() -> None:
    first, second = faulty(1)[2], faulty.__wrapped__(1)[2]
    assert first.world.network.trace.digest() == second.world.network.trace.digest()
    assert first.ended_at_s == second.ended_at_s
    assert faulty(2)[2].world.network.trace.digest() != first.world.network.trace.digest()
