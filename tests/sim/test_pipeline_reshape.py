"""A pipeline whose machines all die goes on with another number of stages, cut out of what the old ones have saved."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from decentral.engine.recut import out_of_whole, whole
from decentral.monitor.events import Resumed, StagePlaced
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import HEAD
from decentral.ports.model_blocks import ModelBlocks
from decentral.sim.faults import Fault, Kind
from decentral.sim.world import peer_id
from tests.sim.pipelines import MemoryStore, PipelineRecord, tiny_blocks
from tests.sim.test_pipeline_resume import all_die, batches, later, play, weights

ROUNDS, INNER_STEPS = 14, 3


def unclipped(charge: Callable[[float], None]) -> ModelBlocks:
    """Six blocks. A stage's gradient is clipped by itself: cut otherwise, its blocks would take other steps."""
    return replace(tiny_blocks(6, lambda: charge(0.01)), clip_norm=math.inf)


#: Three stages of two blocks and a head, one micro-batch at a time, as else sums depend on what comes first.
SIX: dict[str, Any] = {
    "blocks_per_stage": 2,
    "model": unclipped,
    "num_microbatches": 2,
    "pipeline": {"in_flight": 1},
    "rounds": ROUNDS,
}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    return weights(play(**SIX))


def check(
    record: PipelineRecord,
    num_stages: int,
    undisturbed: dict[str, torch.Tensor],
    kept: str = "inner optimizer and data position",
) -> int:
    """It went on from one step, nothing was counted twice or left out, and it ended as if it had not been stopped."""
    resumed = [event for life in later(record) for event in life.events(Resumed)]
    (step,) = {event.step for event in resumed}
    assert 0 < step < ROUNDS * INNER_STEPS
    for stage in range(num_stages + 1):
        assert batches(later(record), stage) == [(n, 0, n) for n in range(step, ROUNDS * INNER_STEPS)]
    ended = weights(record)
    assert ended.keys() == undisturbed.keys()
    assert all(torch.allclose(ended[name], value, atol=1e-5) for name, value in undisturbed.items())
    assert all(kept in event.kept for event in resumed)
    return step


def placed(record: PipelineRecord) -> dict[int, int]:
    """The machine that held each stage in its last life."""
    numbers = {peer_id(number): number for number in range(9)}
    return {event.stage: numbers[life.peer] for life in later(record) for event in life.events(StagePlaced)}


def test_fewer_stages_go_to_those_who_have_most_of_them(undisturbed: dict[str, torch.Tensor]) -> None:
    record = play(*all_die(9.0, 4), **SIX, stages_later=2)
    check(record, 2, undisturbed)
    assert placed(record) == {0: 0, 1: 1, 2: 3}
    told = {line for life in later(record) for event in life.events(Resumed) for line in event.anew}
    assert "the stage: its blocks come from 2 of another cut" in told


@pytest.mark.parametrize("at_s", [20.0, pytest.param(50.0, marks=pytest.mark.slow)])
def test_more_stages_of_other_sizes_go_to_machines_that_come_anew(
    at_s: float, undisturbed: dict[str, torch.Tensor]
) -> None:
    """The fifth is no member of the run before: it fetches its blocks, with their optimizer, from others' disks.

    It comes while the others still wait for everybody whom they knew, or when they are at work.
    """
    late = {"num_spares": 1, "late": frozenset({4}), "wanted": {4: ()}}
    record = play(*all_die(9.0, 4), Fault(Kind.START, at_s, (4,)), **SIX, **late, stages_later=4)
    check(record, 4, undisturbed)
    assert sorted(placed(record).values()) == [0, 1, 2, 3, 4]


def test_a_stage_for_which_nobody_comes_is_taken_by_who_has_it(undisturbed: dict[str, torch.Tensor]) -> None:
    record = play(*all_die(9.0, 4), **SIX, stages_later=6)
    check(record, 6, undisturbed)
    assert placed(record) == {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3}


def test_with_a_torn_checkpoint_all_go_on_from_the_step_before(
    undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = check(play(*all_die(9.0, 4), **SIX, stages_later=1), 1, undisturbed)
    monkeypatch.setattr(MemoryStore, "verify", lambda store: store.saved.get(2, [None]).pop(0))
    assert check(play(*all_die(9.0, 4), **SIX, stages_later=1), 1, undisturbed) < whole


def test_what_became_a_whole_model_goes_on_in_stages_as_if_it_had_always_been_in_some(
    undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checkpoints of one step are put together to one of the whole model, and only that is left, on one disk."""
    stores: list[MemoryStore] = []
    begin = MemoryStore.__init__

    def listed(store: MemoryStore, path: str = "blocks") -> None:
        begin(store, path)
        stores.append(store)

    def turn(_: MemoryStore) -> None:
        saved = [states for store in stores for states in store.saved.values()]
        if len(saved) < 4:
            return
        step = max(set.intersection(*({state.step for state in states} for states in saved)))
        one = whole([state for states in saved for state in states if state.step == step])
        for store in stores:
            store.saved.clear()
        cut = CutInForce(num_blocks=6)
        stores[1].saved = {stage: [out_of_whole(one, cut, span)] for stage, span in enumerate((HEAD, (0, 6)))}

    monkeypatch.setattr(MemoryStore, "__init__", listed)
    monkeypatch.setattr(MemoryStore, "verify", turn)
    check(play(*all_die(9.0, 4), **SIX, stages_later=2), 2, undisturbed, kept="inner optimizer")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", range(0, 20, 5))
def test_drawn_cuts_replicas_and_deaths(start: int, undisturbed: dict[str, torch.Tensor]) -> None:
    """Of replicas each has its own gradients: those who end alike have counted every batch once."""
    for seed in range(start, start + 5):
        draw = random.Random(seed)
        num_stages, num_replicas, num_spares = draw.choice([1, 2, 3, 6]), draw.randint(1, 2), draw.randint(0, 1)
        num_machines = (num_stages + 1) * num_replicas + num_spares
        changes = {
            "num_stages": num_stages,
            "blocks_per_stage": 6 // num_stages,
            "num_replicas": num_replicas,
            "num_spares": num_spares,
            "stages_later": draw.randint(1, 6),
            "seed": seed,
        }
        at_s = draw.uniform(3.0 + num_machines / 2, 8.0 + num_machines / 2)
        try:
            record = play(*all_die(at_s, num_machines), **{**SIX, "rounds": 25, **changes})
        except Exception as err:
            raise AssertionError(f"seed {seed}") from err
        resumed = [event for life in later(record) for event in life.events(Resumed)]
        assert len({event.step for event in resumed}) == 1, f"seed {seed}"
        for stage in range(changes["stages_later"] + 1):
            counted = [(slot, batch) for _, slot, batch in batches(later(record), stage)]
            assert len(set(counted)) == len(counted), f"seed {seed}: stage {stage} counted a batch twice"
            assert max(batch for _, batch in counted) == 25 * INNER_STEPS - 1, f"seed {seed}: stage {stage}"
