"""Stragglers where a quorum is enough: nobody waits for them, and their work is neither lost nor counted twice."""

from collections import Counter
from typing import Any

import pytest
import torch

from decentral.codecs.feedback import ErrorFeedback
from decentral.exchange.allreduce.options import AllReduceOptions, Merge
from decentral.exchange.allreduce.participants import Quorum
from decentral.monitor.events import Repaired, RoundMixed, StretchDone
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind, Plan, draw
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.types import PeerId
from scripts.benches.lib.checkers import agreement, check, counted_once, events, finish, progress
from scripts.benches.lib.counting import ADD_UP, Counting

STEP_S, INNER_STEPS = 0.1, 10
ROUND_S = STEP_S * INNER_STEPS


def settings(
    num_workers: int, num_slow: int, pace: float, quorum: Quorum | None, merge: Merge = Merge.MEMBERS, **changes: Any
) -> dict[str, Any]:
    """The last ``num_slow`` workers take ``pace`` times as long for a step."""
    return {
        "mixing": AllReduceOptions(merge, quorum=quorum),
        "seed": 3,
        "num_workers": num_workers,
        "rounds": 20,
        "plan": SyncPlan(INNER_STEPS),
        "step_s": STEP_S,
        "step_sigma": 0.05,
        "paces": {num_workers - 1 - i: pace for i in range(num_slow)},
        "together": True,
        "conditions": Conditions(jitter=0.3),
        **changes,
    }


def round_s(record: Record, peer: PeerId) -> float:
    """Seconds that a worker's round took on average, with all that its training stood still for."""
    lived = [event for journal in record.journals[peer] for event in journal.events]
    trained_s = sum(event.seconds for event in lived if isinstance(event, StretchDone))
    rounds = [event for event in lived if isinstance(event, RoundMixed)]
    return (trained_s + sum(event.held_s for event in rounds)) / len(rounds)


def rounds_counted(record: Record) -> Counter[PeerId]:
    """In how many rounds each worker's work is."""
    mixed = [(peer, event) for peer, event in events(record) if isinstance(event, RoundMixed)]
    return Counter(peer for peer, event in mixed if peer in event.members)


@pytest.mark.parametrize(("num_workers", "num_slow"), [(8, 2), pytest.param(16, 5, marks=pytest.mark.slow)])
def test_nobody_waits_for_those_who_take_twice_as_long(num_workers: int, num_slow: int) -> None:
    by_size = {}
    for quorum in (None, Quorum(num_workers - num_slow, 0.1)):
        scenario = Scenario(**settings(num_workers, num_slow, 2.0, quorum=quorum))
        record = simulate(scenario)
        assert not check(scenario, record, tolerance=0.3)
        by_size[quorum] = round_s(record, scenario.peers[0])
    everybody_s, quorum_s = by_size.values()
    assert everybody_s > 1.9 * ROUND_S
    assert quorum_s < 1.3 * ROUND_S


@pytest.mark.parametrize(("pace", "least", "delay_steps"), [(2.0, 0.3, 0), (10.0, 0.05, 5)])
def test_the_work_of_stragglers_counts(pace: float, least: float, delay_steps: int) -> None:
    plan = SyncPlan(INNER_STEPS, delay_steps=delay_steps)
    scenario = Scenario(**settings(12, 3, pace, plan=plan, mix_alpha=0.5 * bool(delay_steps), quorum=Quorum(8, 0.3)))
    record = simulate(scenario)
    assert not [*agreement(record), *finish(scenario, record), *progress(scenario, record, 0.3)]
    assert round_s(record, scenario.peers[0]) < 1.5 * ROUND_S
    counts = rounds_counted(record)
    for peer in scenario.peers[-3:]:
        assert counts[peer] >= least * scenario.rounds, f"{peer} was counted in {counts[peer]} rounds"


@pytest.mark.parametrize("pace", [2.0, pytest.param(3.3, marks=pytest.mark.slow), 10.0])
def test_every_step_counts_once(pace: float) -> None:
    scenario = Counting(**settings(9, 3, pace, Quorum(6, 0.2), Merge.SENDERS, rule=ADD_UP["rule"]))
    record = simulate(scenario)
    assert not [*agreement(record), *finish(scenario, record), *counted_once(scenario, record)]
    taken = torch.tensor([scenario.taken[number] for number in range(9)], dtype=torch.float32)
    anchors = [scenario.counted(record.outcomes[peer].anchors) for peer in scenario.peers]
    # Whoever ends last has everything but the work after which there was no round any more.
    missing = torch.stack([taken - anchor for anchor in anchors]).amin(0)
    assert float(missing[:, :6].amax()) <= INNER_STEPS
    assert float(missing.amax()) <= 3 * INNER_STEPS, f"lost: {missing}"


def test_who_missed_a_round_gets_its_mean_and_not_the_whole_state() -> None:
    values = 4096
    scenario = Scenario(**settings(8, 2, 2.0, quorum=Quorum(6, 0.1), num_values=values, codec="int8-b128"))
    record = simulate(scenario)
    happened = [(peer, event) for peer, event in events(record) if peer in scenario.peers[-2:]]
    missed = [event for peer, event in happened if isinstance(event, RoundMixed) and peer not in event.members]
    assert len(missed) >= 10
    assert sum(isinstance(event, Repaired) for _, event in happened) <= 2
    received = max(e.received_bytes for peer, e in happened if isinstance(e, RoundMixed) and peer == scenario.peers[-1])
    # A repair is 8 bytes a value, the anchor and its momentum; a mean is 1.03, and a reducer's share comes on top.
    assert received < 3.5 * values * scenario.rounds


def test_fragments_that_keep_norms_and_weights_by_rate() -> None:
    """All options together, with three fragments under way at once."""
    plan = SyncPlan(12, num_fragments=3, delay_steps=2)
    options = {"merge": Merge.RADIAL, "weight_by": "token-rate", "codec": "int8-b8", "feedback": ErrorFeedback}
    scenario = Scenario(**settings(10, 3, 2.0, plan=plan, mix_alpha=0.5, quorum=Quorum(6, 0.3), **options))
    record = simulate(scenario)
    assert not [*agreement(record), *finish(scenario, record), *progress(scenario, record, 0.4)]
    counts = rounds_counted(record)
    for peer in scenario.peers[-3:]:
        assert counts[peer] >= 0.3 * 3 * scenario.rounds, f"{peer} was counted {counts[peer]} times"


def faulty(seed: int) -> tuple[Scenario, Record]:
    """Eight to twelve workers, a third of them slow; 5 % loss, two crashes with restarts, a pause, a late joiner."""
    num_workers = 8 + seed % 5
    scenario = Scenario(
        **settings(
            num_workers,
            num_workers // 3,
            (2.0, 10.0)[seed % 2],
            seed=seed,
            rounds=50,
            latest=1,
            quorum=Quorum(num_workers // 2 + 1, 0.3),
            plan=SyncPlan(INNER_STEPS, delay_steps=3 * (seed // 2 % 2)),
        )
    )
    faults = draw(seed, range(scenario.num_workers - 1), Plan(5.0, 25.0, num={Kind.KILL: 2, Kind.PAUSE: 1}, loss=0.05))
    tape = FaultTape([*faults, Fault(Kind.START, 12.0, (scenario.num_workers - 1,))])
    return scenario, simulate(scenario, tape, until_s=3000.0)


def assert_holds(seed: int) -> None:
    scenario, record = faulty(seed)
    violations = [*agreement(record), *finish(scenario, record), *progress(scenario, record, 0.4)]
    assert not violations, f"seed {seed}: {violations}"


@pytest.mark.parametrize("seed", range(1))
def test_survives_drawn_faults(seed: int) -> None:
    assert_holds(seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_survives_more_drawn_faults() -> None:
    for seed in range(1, 24):
        assert_holds(seed)
