"""Whole swarms under drawn faults. A failure names its seed; ``faulty(seed)`` plays it again."""

from typing import Any

import pytest

from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.feedback import ErrorFeedback
from decentral.monitor.events import Repaired, RoundMixed
from decentral.outer.diloco import DiLoCo
from decentral.outer.ef21 import Ef21
from decentral.sim.checkers import check
from decentral.sim.faults import Fault, Kind, Plan, draw
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.world import Machine, peer_id

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


def faulty(seed: int) -> tuple[Scenario, FaultTape, Record]:
    """Five to eight workers, 5 % loss, two crashes with restarts, a pause, a partition, a late joiner, wrong clocks."""
    num_workers = 5 + seed % 4
    skews = {1: 600.0, 2: -600.0}
    scenario = Scenario(
        seed,
        num_workers,
        rounds=ROUNDS,
        conditions=Conditions(jitter=0.3),
        machines={peer_id(i): Machine(skew_s=skews.get(i, 0.0), aside_s=0.03 * (seed % 2)) for i in range(num_workers)},
        latest=1,
        **VARIANTS[seed % len(VARIANTS)],
    )
    begin_s, end_s = FAULTS_S
    plan = Plan(begin_s, end_s, num={Kind.KILL: 2, Kind.PAUSE: 1, Kind.CUT: 1}, loss=0.05)
    faults = draw(seed, range(num_workers - 1), plan)
    tape = FaultTape([*faults, Fault(Kind.START, 12.0, (num_workers - 1,))])
    return scenario, tape, simulate(scenario, tape, until_s=3000.0)


def assert_holds(seed: int) -> None:
    scenario, tape, record = faulty(seed)
    violations = check(scenario, record, tolerance=TOLERANCE)
    assert not violations, f"seed {seed}: {violations}"
    # A partition that found everybody it separates busy with something else has had no effect; all others must have.
    assert len(tape.unfired()) <= 1, f"seed {seed}: {tape.unfired()} had no effect"


@pytest.mark.parametrize("seed", range(8))
def test_survives_drawn_faults(seed: int) -> None:
    assert_holds(seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_survives_two_hundred_seeds(first: int) -> None:
    for seed in range(first, first + 20):
        assert_holds(seed)


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
    first, second = faulty(5)[2], faulty(5)[2]
    assert first.world.network.trace.digest() == second.world.network.trace.digest()
    assert first.ended_at_s == second.ended_at_s
    assert faulty(6)[2].world.network.trace.digest() != first.world.network.trace.digest()
