"""A pipeline whose machines all die goes on from the newest step that all stages have, each machine by itself."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from decentral.engine.pipeline_process import PipelineProcess
from decentral.monitor.events import BatchCounted, Resumed, StagePlaced, StretchDone
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


_MORE_SEEDS = [pytest.param(range(start, start + 5), marks=pytest.mark.slow) for start in range(1, 20, 5)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seeds", [(0,), *_MORE_SEEDS])
def test_two_replicas_of_all_stages_whenever_they_die(seeds: Sequence[int]) -> None:
    for seed in seeds:
        at_s = random.Random(seed).uniform(8.0, 16.0)
        record = play(*all_die(at_s, 8), num_replicas=2, rounds=20, seed=seed)
        resumed = [event for life in later(record) for event in life.events(Resumed)]
        assert len({event.step for event in resumed}) == 1, f"seed {seed}"
        placed = [event for life in later(record) for event in life.events(StagePlaced)]
        assert sorted(event.stage for event in placed) == [0, 0, 1, 1, 2, 2, 3, 3], f"seed {seed}"
        assert sorted(event.slot for event in placed if event.stage == 0) == [0, 1], f"seed {seed}"
        for stage in range(4):
            counted = [(slot, batch) for _, slot, batch in batches(later(record), stage)]
            assert len(set(counted)) == len(counted), f"seed {seed}: stage {stage} counted a batch twice"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", range(0, 20, 5))
def test_deaths_of_all_one_after_the_other(start: int) -> None:
    """Also while the run is just being brought back; with machines that come back one by one, and a spare."""
    for seed in range(start, start + 5):
        draw = random.Random(seed)
        num_replicas, num_spares = draw.randint(1, 2), draw.randint(0, 1)
        machines = tuple(range(4 * num_replicas + num_spares))
        faults, at_s = [], 3.0 + len(machines) / 2
        for _ in range(draw.randint(1, 3)):
            at_s += draw.choice([draw.uniform(3.0, 8.0), draw.uniform(0.5, 3.0)])
            faults.append(Fault(Kind.KILL, at_s, machines))
            at_s += 1.0
            delays = sorted((draw.choice([0.0, draw.uniform(0.0, 3.0)]), machine) for machine in machines)
            faults += [Fault(Kind.START, at_s + delay_s, (machine,)) for delay_s, machine in delays]
            at_s += delays[-1][0]
        changes = {"num_replicas": num_replicas, "num_spares": num_spares, "rounds": 40, "seed": seed}
        try:
            record = play(*faults, **changes, healing=draw.choice(["checkpoint", "auto"]))
        except Exception as err:
            raise AssertionError(f"seed {seed}") from err
        steps = [event.step for life in later(record) for event in life.events(StretchDone)]
        assert max(steps) == 40 * 3, f"seed {seed}"


def test_a_stage_whose_disk_is_lost_comes_from_the_spares_copy() -> None:
    faults = Fault(Kind.KILL, 12.0, (0, 1, 2, 3, 4)), Fault(Kind.START, 15.0, (0, 1, 3, 4))
    record = play(*faults, num_spares=1)
    placed = {event.stage: event for life in later(record) for event in life.events(StagePlaced)}
    assert placed.keys() == {0, 1, 2, 3}
    assert len({event.step for event in placed.values()}) == 1
    assert placed[2].donors == (peer_id(4),)


def test_without_a_checkpoint_of_a_stage_all_wait_for_whoever_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: set[str] = set()
    monkeypatch.setattr(PipelineProcess, "_explain", lambda process, what: told.add(what))
    faults = (
        Fault(Kind.KILL, 9.0, (0, 1, 2, 3)),
        Fault(Kind.START, 12.0, (0, 1, 3)),
        Fault(Kind.START, 70.0, (2,)),
    )
    record = play(*faults)
    placed = [event for life in later(record) for event in life.events(StagePlaced)]
    assert len({event.step for event in placed}) == 1
    assert sorted(event.stage for event in placed) == [0, 1, 2, 3]
    assert f"nobody here has a checkpoint of stage 2 at step {placed[0].step}" in told
    assert min(life.began_at_s for life in later(record)) < 15.0
    assert record.ended_at_s > 70.0
