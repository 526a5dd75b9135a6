"""A pipeline whose machines all die goes on from the newest step that all stages have, each machine by itself."""

import random
from typing import Any

import pytest
import torch

from decentral.monitor.events import BatchCounted, Resumed, StagePlaced
from decentral.sim.faults import Fault, Kind
from decentral.sim.tape import FaultTape
from decentral.sim.world import peer_id
from tests.sim.pipelines import Life, PipelineRecord, PipelineScenario, simulate_pipeline, unfinished

#: Three stages and a head; a batch takes about 0.2 s, and a round ends every 0.6 s.
PIPELINE: dict[str, Any] = {
    "num_stages": 3,
    "num_spares": 0,
    "rounds": 14,
    "inner_steps": 3,
    "checkpoint_s": 1.5,
    "healing": "checkpoint",
    "resumes": True,
    "until_s": 600.0,
}


def play(*faults: Any, **changes: Any) -> PipelineRecord:
    """Whatever happens, everybody who is there at the end has done all steps."""
    scenario = PipelineScenario(**{**PIPELINE, **changes})
    tape = FaultTape(faults)
    record = simulate_pipeline(scenario, tape)
    assert tape.unfired() == ()
    assert unfinished(scenario, record) == []
    return record


def all_die(at_s: float, num_machines: int, back: int | None = None) -> tuple[Fault, Fault]:
    """All machines, of which the first ``back`` come back."""
    return (
        Fault(Kind.KILL, at_s, tuple(range(num_machines))),
        Fault(Kind.START, at_s + 3.0, tuple(range(num_machines if back is None else back))),
    )


def later(record: PipelineRecord) -> list[Life]:
    """Lives after the end of all."""
    return [life for life in record.lives if life.over]


def weights(record: PipelineRecord) -> dict[str, torch.Tensor]:
    """Those of the run's end."""
    outcomes = [outcome for outcomes in record.outcomes.values() for outcome in outcomes.values()]
    return {name: value for outcome in outcomes for name, value in outcome.anchors.items()}


def batches(lives: list[Life], stage: int) -> list[tuple[int, int, int]]:
    """Step, slot and batch of what was counted at a stage, in order; by how many does not matter."""
    events = [event for life in lives for event in life.events(BatchCounted) if event.stage == stage and event.indices]
    return sorted({(event.step, event.slot, event.batch) for event in events})


def test_all_go_on_from_the_same_step_as_if_nothing_had_happened() -> None:
    """To the bit: one micro-batch at a time, as else sums depend on what comes first."""
    changes = {"num_microbatches": 2, "pipeline": {"in_flight": 1}}
    record, undisturbed = play(*all_die(9.0, 4), **changes), play(**changes)
    resumed = [event for life in later(record) for event in life.events(Resumed)]
    (step,) = {event.step for event in resumed}
    assert len(resumed) == 4
    assert 0 < step < 14 * 3
    for stage in range(4):
        assert batches(later(record), stage) == [(n, 0, n) for n in range(step, 14 * 3)]
    ended, expected = weights(record), weights(undisturbed)
    assert ended.keys() == expected.keys()
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


@pytest.mark.parametrize("seed", [0, pytest.param(range(1, 30), marks=pytest.mark.slow)])
def test_two_replicas_of_all_stages_whenever_they_die(seed: int | range) -> None:
    for number in seed if isinstance(seed, range) else (seed,):
        at_s = random.Random(number).uniform(8.0, 16.0)
        record = play(*all_die(at_s, 8), num_replicas=2, rounds=20, seed=number)
        resumed = [event for life in later(record) for event in life.events(Resumed)]
        assert len({event.step for event in resumed}) == 1, f"seed {number}"
        assert len(resumed) == 8, f"seed {number}"
        heads = [event for life in later(record) for event in life.events(StagePlaced) if event.stage == 0]
        assert sorted(event.slot for event in heads) == [0, 1]
        for stage in range(4):
            counted = [(slot, batch) for _, slot, batch in batches(later(record), stage)]
            assert len(set(counted)) == len(counted), f"seed {number}: stage {stage} counted a batch twice"


def test_a_stage_whose_disk_is_lost_comes_from_the_spares_copy() -> None:
    faults = (
        Fault(Kind.KILL, 12.0, (0, 1, 2, 3, 4)),
        Fault(Kind.START, 15.0, (0, 1, 3, 4)),
    )
    record = play(*faults, num_spares=1)
    placed = {event.stage: event for life in later(record) for event in life.events(StagePlaced)}
    print(placed)
    assert placed.keys() == {0, 1, 2, 3}
    assert len({event.step for event in placed.values()}) == 1
    assert placed[2].donors == (peer_id(4),)


def test_without_a_checkpoint_of_a_stage_all_wait_for_whoever_has_it() -> None:
    everybody = (0, 1, 2, 3)
    faults = (
        Fault(Kind.KILL, 9.0, everybody),
        Fault(Kind.START, 12.0, (0, 1, 3)),
        Fault(Kind.START, 70.0, (2,)),
    )
    record = play(*faults)
    reasons = {
        process.membership.own.metrics.reason for processes in record.processes.values() for process in processes
    }
    print(reasons)
    placed = [event for life in later(record) for event in life.events(StagePlaced)]
    assert len({event.step for event in placed}) == 1
    assert len(placed) == 4


def test_who_comes_late_takes_up_its_stage_where_the_others_wait() -> None:
    pass
