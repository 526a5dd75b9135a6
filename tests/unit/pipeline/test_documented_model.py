"""The model in stages of docs/tasks.md, as it stands there."""

import re
from pathlib import Path

import pytest

from decentral.pipeline.compute import Key
from decentral.ports.model_blocks import BatchSource, ModelBlocks
from decentral.ports.trainer import Seat
from tests.unit.pipeline.models import Pipeline

TASKS = (Path(__file__).parents[3] / "docs/tasks.md").read_text()


def _documented(num_microbatches: int) -> ModelBlocks:
    names: dict[str, object] = {"__name__": "deep"}
    (code,) = re.findall(r"```python\n(# deep\.py\n.*?)```", TASKS, re.DOTALL)
    exec(code, names)
    make = names["blocks"]
    assert callable(make)
    blocks = make({}, Seat(run_seed=1, stream_seed=2, total_steps=100), num_microbatches)
    assert isinstance(blocks, ModelBlocks)
    return blocks


def _held_out_loss(pipeline: Pipeline, source: BatchSource) -> float:
    losses = []
    for index in range(source.num_held_out):
        key: Key = (0, 0, index)
        inputs, targets = source.held_out(index)
        x = pipeline.head.embed(key, inputs, train=False)
        for stage in pipeline.stages:
            x = stage.forward(key, x, train=False)
        losses.append(pipeline.head.loss(key, x, targets, train=False)[0])
    return sum(losses) / len(losses)


def test_it_learns_in_stages() -> None:
    num_microbatches = 2
    blocks = _documented(num_microbatches)
    source, pipeline = blocks.data(), Pipeline(blocks, 2)
    assert pipeline.head.embed((0, 0, 0), source.batch(0, 0, 0)[0], train=False).shape == blocks.activation_shape
    before = _held_out_loss(pipeline, source)
    for step in range(150):
        batch = [source.batch(0, step, index) for index in range(num_microbatches)]
        pipeline.run(batch, [(1, 2)] * num_microbatches, number=step)
        for part in pipeline.parts:
            part.apply([0], num_microbatches, step)
    assert _held_out_loss(pipeline, source) < 0.1 * before


def test_a_piece_is_the_same_wherever_it_is_built() -> None:
    first, second = (Pipeline(_documented(2), num_stages).parameters() for num_stages in (1, 4))
    assert first.keys() == second.keys()
    assert all(value.equal(second[name]) for name, value in first.items())


@pytest.mark.parametrize(("slot", "batch", "index"), [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_its_data_repeats_and_differs_by_slot_batch_and_micro_batch(slot: int, batch: int, index: int) -> None:
    source = _documented(2).data()
    assert source.batch(0, 0, 0)[0].equal(_documented(2).data().batch(0, 0, 0)[0])
    assert not source.batch(0, 0, 0)[0].equal(source.batch(slot, batch, index)[0])
