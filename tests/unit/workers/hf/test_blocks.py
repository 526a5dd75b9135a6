"""Models of transformers in pieces: what stages compute, and where it is refused to cut a model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from decentral.errors import ConfigError, IncapableError, MismatchError
from decentral.pipeline.compute import StageCompute
from decentral.ports.model_blocks import BatchSource, ModelBlocks
from decentral.ports.trainer import Seat
from decentral.workers import hf, machine
from decentral.workers.hf import sources
from decentral.workers.hf.cutting import find
from decentral.workers.hf.trainer import HfTrainer
from tests.support.hf import make_config, make_folder, make_tokenizer, write_rows
from tests.unit.pipeline.models import NUM_BLOCKS, Pipeline

MICROBATCHES = 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def both(folder: Path, rows: Path, **changed: Any) -> tuple[HfTrainer, ModelBlocks]:
    """The model of a folder in one process and in pieces. A stage clips its own gradients, so that none is clipped."""
    optimizer = {"learning_rate": 0.002, "warmup_steps": 0, "clip_norm": 1e9}
    given = {"batch_sequences": 4, "seq_len": 16, "optimizer": optimizer, "data": {"prefetch": 0}, **changed}
    given["model"] = {"name": str(folder), "from_scratch": not (folder / "model.safetensors").exists()}
    settings = hf.resolve(given)
    seat = Seat(5, 2, total_steps=20, data=(str(rows),), model=str(folder), founding=True)
    return hf.build(settings, seat), hf.blocks(settings, seat, MICROBATCHES)


def flat(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def ensure_equal_steps(pipeline: Pipeline, source: BatchSource, trainer: HfTrainer) -> None:
    """Three steps of stages and of one process: losses are equal to 1e-5."""
    order = [number for number, _ in enumerate(pipeline.stages, 1)]
    for step in range(3):
        batch = [source.batch(0, step, index) for index in range(MICROBATCHES)]
        loss = pipeline.run(batch, MICROBATCHES * [order], number=step)
        for part in pipeline.parts:
            part.apply([0], MICROBATCHES, step)
        assert loss == pytest.approx(trainer.train_steps(step, 1).loss, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "weights", "mask"),
    [
        ("llama", True, True),
        ("gpt2", False, False),
        pytest.param("llama", False, False, marks=pytest.mark.slow),
        pytest.param("gpt2", True, True, marks=pytest.mark.slow),
        pytest.param("qwen2", True, True, marks=pytest.mark.slow),
        pytest.param("mistral", True, True, marks=pytest.mark.slow),
    ],
)
def test_four_stages_are_one_process(kind: str, weights: bool, mask: bool, rows: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, kind, weights=weights, num_layers=NUM_BLOCKS)
    trainer, blocks = both(folder, rows, data={"prefetch": 0, "document_mask": mask})
    pipeline, source = Pipeline(blocks, 4), blocks.data()
    assert pipeline.parameters().keys() == trainer.parameters().keys()
    for name, value in pipeline.parameters().items():
        assert torch.equal(value, trainer.parameters()[name]), name
    ensure_equal_steps(pipeline, source, trainer)
    for name, value in pipeline.parameters().items():
        torch.testing.assert_close(value, trainer.parameters()[name], rtol=0, atol=1e-5)
    held_out = [source.held_out(index) for index in range(source.num_held_out)]
    loss = pipeline.run(held_out, len(held_out) * [[1, 2, 3, 4]], number=9)
    assert loss == pytest.approx(trainer.validate(), abs=1e-5)


def test_muon_in_stages_takes_the_steps_of_one_process(rows: Path, tmp_path: Path) -> None:
    """It steps the blocks' matrices; the head, which has none but embedding and output layer, is AdamW's."""
    optimizer = {"name": "Muon", "learning_rate": 0.002, "warmup_steps": 0, "clip_norm": 1e9}
    trainer, blocks = both(make_folder(tmp_path, num_layers=NUM_BLOCKS), rows, optimizer=optimizer)
    pipeline, source, before = Pipeline(blocks, 2), blocks.data(), flat(trainer.parameters())
    kinds = [[type(each).__name__ for each in part._optimizers] for part in pipeline.parts]
    assert kinds == [["AdamW"], ["AdamW", "Muon"], ["AdamW", "Muon"]]
    ensure_equal_steps(pipeline, source, trainer)
    moved, apart = flat(trainer.parameters()) - before, flat(pipeline.parameters()) - flat(trainer.parameters())
    assert apart.norm() < 0.02 * moved.norm()  # Muon makes matrices orthogonal in bf16


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"precision": "bf16"}, {"activation_checkpointing": True}])
def test_how_a_block_is_computed_is_as_in_one_process(changed: Mapping[str, Any], rows: Path, tmp_path: Path) -> None:
    trainer, blocks = both(make_folder(tmp_path, num_layers=NUM_BLOCKS), rows, **changed)
    pipeline, source = Pipeline(blocks, 2), blocks.data()
    batch = [source.batch(0, 0, index) for index in range(MICROBATCHES)]
    loss = pipeline.run(batch, MICROBATCHES * [[1, 2]])
    assert loss == pytest.approx(trainer.train_steps(0, 1).loss, rel=1e-4)
    assert {value.dtype for value in pipeline.parameters().values()} == {torch.float32}


def test_dropout_is_for_training_alone(rows: Path, tmp_path: Path) -> None:
    config = make_config("gpt2", num_layers=NUM_BLOCKS)
    config.embd_pdrop = config.resid_pdrop = 0.5
    config.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    _, blocks = both(tmp_path, rows)
    pipeline, (inputs, _) = Pipeline(blocks, 1), blocks.data().batch(0, 0, 0)

    def reached(*, train: bool) -> torch.Tensor:
        x = pipeline.head.embed((0, 0, 0), inputs, train=train)
        return pipeline.stages[0].forward((0, 0, 0), x, train=train)

    assert torch.equal(reached(train=False), reached(train=False))
    assert not torch.equal(reached(train=True), reached(train=True))


def test_a_stage_reads_its_own_blocks_alone(rows: Path, tmp_path: Path) -> None:
    _, blocks = both(make_folder(tmp_path, num_layers=NUM_BLOCKS), rows)
    file = tmp_path / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if name.startswith("model.layers.2.")}
    save_file(weights, file, {"format": "pt"})
    held = StageCompute(blocks, 2, 3).parameters()
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], value) for name, value in weights.items())
    with pytest.raises(ConfigError, match=r"lack 9 parameters .* such as model\.layers\.1\."):
        StageCompute(blocks, 1, 2)


def test_whoever_asks_gets_the_same_batch(rows: Path, tmp_path: Path) -> None:
    _, blocks = both(make_folder(tmp_path, weights=False), rows)
    first, successor = blocks.data(), blocks.data()
    drawn = [first.batch(1, number, index) for number in range(3) for index in range(MICROBATCHES)]
    for number, index in ((2, 1), (2, 0), (0, 1)):  # a head that died, and one that comes back
        for mine, theirs in zip(successor.batch(1, number, index), drawn[2 * number + index], strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(first.batch(0, 0, 0)[0], drawn[0][0])
    assert drawn[0][0].shape == blocks.activation_shape[:2]
    assert first.num_held_out > 0
    assert first.held_out(0)[0].shape == blocks.activation_shape[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_heads_read_each_row_once(tmp_path: Path, *, streaming: bool) -> None:
    """Two heads that were expected share an epoch; a third one reads rows a second time, in another order."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {row} of many, all of them alike"}) + "\n" for row in range(120)))
    folder = make_folder(tmp_path / "model", weights=False)
    data = {"prefetch": 0, "held_out": 0, "streaming": streaming}
    settings = hf.resolve({"batch_sequences": 4, "data": data, "model": {"name": str(folder), "from_scratch": True}})
    seat = Seat(5, 2, total_steps=20, data=(str(rows),), model=str(folder), num_heads=2)
    source, tokenizer = hf.blocks(settings, seat, 1).data(), make_tokenizer()

    def texts(slot: int, count: int) -> list[str]:
        ids = torch.cat([source.batch(slot, number, 0)[0].flatten() for number in range(count)])
        return tokenizer.decode(ids).split("</s>")[:-1]

    one, other, third = texts(0, 4), texts(1, 4), texts(2, 4)
    assert min(len(one), len(other)) > 10
    assert len(set(one)) == len(one)
    assert not set(one) & set(other)
    assert third[:10] != one[:10] or streaming
    assert texts(0, 4) == one  # of a successor, and after a resume


def test_what_cannot_be_cut_is_told(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llama cannot be cut .* no list of two blocks or more of one kind"):
        both(make_folder(tmp_path / "one", weights=False, num_layers=1), rows)
    folder = make_folder(tmp_path / "model")
    with pytest.raises(ConfigError, match="adapter is not trained in stages"):
        both(folder, rows, lora={"rank": 2})
    with pytest.raises(ConfigError, match="4 with 3 micro-batches"):
        hf.blocks(hf.resolve({"model": {"name": str(folder)}, "batch_sequences": 4}), Seat(1, 2, 3), 3)


class _Sideways(nn.Module):
    """A model of blocks that are given something of the text as well, or are called in another way."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self._of = forward

    @property
    def base_model(self) -> nn.Module:
        return self

    def initialize_weights(self) -> None:
        pass

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return self._of(self.blocks, self.embedding(input_ids))


def _residual(blocks: nn.ModuleList, x: torch.Tensor) -> Any:
    y = x
    for block in blocks:
        y = block(y)
    return (x + y,)


def _in_between(blocks: nn.ModuleList, x: torch.Tensor) -> Any:
    for block in blocks:
        x = 2 * block(x)
    return (x,)


def _beside(blocks: nn.ModuleList, x: torch.Tensor) -> Any:
    y = x
    for block in blocks:
        y = block(y, first=x)
    return (y,)


def _with_a_state(blocks: nn.ModuleList, x: torch.Tensor) -> Any:
    for block in blocks:
        x, _ = block(x)
    return (x,)


def _backwards(blocks: nn.ModuleList, x: torch.Tensor) -> Any:
    for block in reversed(blocks):
        x = block(x)
    return (x,)


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (_residual, "not the last alone that the output is computed of"),
        (_in_between, "block 1 is not given just what comes out of block 0"),
        (_beside, "block 0 is given more of the text"),
        (_with_a_state, "in blocks, more comes out than hidden states"),
        (_backwards, r"\[2, 1, 0\] are called"),
    ],
)
def test_a_model_whose_blocks_do_not_follow_each_other_is_refused(
    forward: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decentral.workers.hf.cutting.empty", lambda config: _Sideways(forward))
    with pytest.raises(ConfigError, match=why):
        find(make_config("llama"))


def test_weights_of_all_stages_are_those_of_the_founder(rows: Path, tmp_path: Path) -> None:
    folder, other = make_folder(tmp_path / "model"), make_folder(tmp_path / "other", seed=1)
    settings = hf.resolve({"model": {"name": str(folder)}})
    seat = Seat(1, 2, 3, model=str(folder))
    found = hf.blocks(settings, replace(seat, founding=True), 2).settings()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "copy", max_shard_size="20KB")
    settings["model"] |= {"digest": found["model.digest"]}
    again = hf.blocks(settings, replace(seat, model=str(tmp_path / "copy")), 2)  # of several files, with an index
    assert again.settings() == {}
    with pytest.raises(MismatchError, match="its stages would not be of one model"):
        hf.blocks(settings, replace(seat, model=str(other)), 2)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():  # the last value of a tensor, whichever it is
        changed = value.clone()
        changed.view(-1)[-1] += 1e-3
        save_file({**weights, name: changed}, other / "model.safetensors", {"format": "pt"})
        with pytest.raises(MismatchError):
            sources.ensure_same_weights(str(other), found["model.digest"], download=False)
    (other / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights as safetensors"):
        hf.blocks(settings, replace(seat, model=str(other)), 2)
    with pytest.raises(ConfigError, match="path of another machine"):
        hf.blocks(settings, Seat(1, 2, 3), 2)


def test_a_founder_of_stages_without_memory_downloads_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    blocks = hf.blocks(hf.resolve({"model": {"name": str(folder)}}), Seat(1, 2, 3, model=str(folder), founding=True), 2)
    monkeypatch.setattr(machine, "available_bytes", lambda device: 2**12)
    monkeypatch.setattr(sources, "cached_file", lambda *args, **kwargs: pytest.fail("was fetched"))
    with pytest.raises(IncapableError, match="takes about"):
        blocks.settings()
