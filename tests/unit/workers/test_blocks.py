import pytest
import torch

from decentral.errors import ConfigError, DataError, IncapableError
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Seat
from decentral.workers import lm, machine
from decentral.workers.lm.corpus import load_corpus
from decentral.workers.lm.settings import read_settings

SETTINGS = {
    "model": {"d_model": 32, "num_layers": 4, "num_heads": 2, "context": 32},
    "batch_sequences": 8,
    "val_batches": 3,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("".join(f"def add{number}(first):\n    return first + {number}\n\n" for number in range(200)))
    return str(path)


def _seat(*data: str, run_seed: int = 0, stream_seed: int = 1) -> Seat:
    return Seat(run_seed=run_seed, stream_seed=stream_seed, total_steps=60, data=data)


def _blocks(*data: str, run_seed: int = 0, stream_seed: int = 1, num_microbatches: int = 4, **changed) -> ModelBlocks:
    seat = _seat(*data, run_seed=run_seed, stream_seed=stream_seed)
    return lm.blocks({**SETTINGS, **changed}, seat, num_microbatches)


def _weights(blocks: ModelBlocks) -> dict[str, torch.Tensor]:
    parts = [HeadCompute(blocks), StageCompute(blocks, 0, 1), StageCompute(blocks, 1, 4)]
    return {name: value for part in parts for name, value in part.parameters().items()}


@pytest.mark.parametrize("tied", [True, False])
def test_all_parts_together_are_the_file_of_the_whole_model(text: str, tied: bool) -> None:
    settings = {**SETTINGS, "model": {**SETTINGS["model"], "tie_embeddings": tied}}
    blocks = _blocks(text, model=settings["model"])
    trainer = lm.build(settings, _seat(text))
    weights = _weights(blocks)
    assert weights.keys() == trainer.parameters().keys()
    trainer.load(weights)

    head, stage, source = HeadCompute(blocks), StageCompute(blocks, 0, 4), blocks.data()
    losses = []
    for index in range(source.num_held_out):
        inputs, targets = source.held_out(index)
        reached = stage.forward((0, 0, index), head.embed((0, 0, index), inputs, train=False), train=False)
        assert reached.shape == blocks.activation_shape
        losses.append(head.loss((0, 0, index), reached, targets, train=False)[0])
    assert sum(losses) / len(losses) == pytest.approx(trainer.validate(), abs=1e-5)


def test_a_part_starts_the_same_wherever_it_is_built() -> None:
    whole, alone = _weights(_blocks()), StageCompute(_blocks(stream_seed=7), 2, 3).parameters()
    assert all(value.equal(whole[name]) for name, value in alone.items())
    assert not whole["blocks.2.up"].equal(whole["blocks.1.up"])
    assert not whole["blocks.2.up"].equal(_weights(_blocks(run_seed=1))["blocks.2.up"])
    torch.manual_seed(5)
    assert _weights(_blocks())["embedding"].equal(whole["embedding"])


def test_weights_start_as_those_of_the_whole_model_do(text: str) -> None:
    untied = {**SETTINGS["model"], "tie_embeddings": False}
    mine, theirs = _weights(_blocks(model=untied)), lm.build({**SETTINGS, "model": untied}, _seat(text)).parameters()
    for name, value in theirs.items():
        assert mine[name].std(correction=0).item() == pytest.approx(value.std(correction=0).item(), rel=0.1), name
        assert mine[name].mean().item() == pytest.approx(value.mean().item(), abs=0.02), name


def test_a_successor_of_a_head_draws_the_same_windows(text: str) -> None:
    first, second = _blocks(text, stream_seed=1).data(), _blocks(text, stream_seed=2).data()
    second.batch(0, 6, 1)
    inputs, targets = first.batch(0, 7, 1)
    assert inputs.shape == (2, 32)
    assert inputs[:, 1:].equal(targets[:, :-1])
    assert all(mine.equal(theirs) for mine, theirs in zip((inputs, targets), second.batch(0, 7, 1), strict=True))
    for other in (first.batch(1, 7, 1), first.batch(0, 8, 1), first.batch(0, 7, 0)):
        assert not inputs.equal(other[0])
    assert not inputs.equal(_blocks(text, run_seed=1).data().batch(0, 7, 1)[0])


def test_micro_batches_are_parts_of_one_batch_however_many_there_are(text: str) -> None:
    def drawn(num_microbatches: int) -> torch.Tensor:
        source = _blocks(text, num_microbatches=num_microbatches).data()
        return torch.cat([source.batch(2, 5, index)[0] for index in range(num_microbatches)])

    assert drawn(1).shape == (8, 32)
    assert drawn(4).equal(drawn(1))
    assert drawn(8).equal(drawn(1))


def test_held_out_windows_are_those_of_the_trainer(text: str) -> None:
    source, corpus = _blocks(text).data(), load_corpus((text,), 33)
    expected = torch.cat([corpus.held_out_batch(index, 3, 8, 33) for index in range(3)])
    parts = [torch.cat((inputs, targets[:, -1:]), dim=1) for inputs, targets in map(source.held_out, range(12))]
    assert source.num_held_out == 12
    assert torch.cat(parts).equal(expected)


def test_bf16_stays_close_to_fp32_and_passes_on_fp32(text: str) -> None:
    untied = {**SETTINGS["model"], "tie_embeddings": False}
    outcomes = []
    for precision in ("fp32", "bf16"):
        blocks = _blocks(text, precision=precision, model=untied)
        head, stage = HeadCompute(blocks), StageCompute(blocks, 0, 4)
        stage.load({name: value + 0.1 for name, value in stage.parameters().items()})
        key, (inputs, targets) = (0, 0, 0), blocks.data().batch(0, 0, 0)
        y = stage.forward(key, head.embed(key, inputs))
        loss, gradient = head.loss(key, y, targets)
        gradient = stage.backward(key, gradient)
        assert {y.dtype, gradient.dtype} == {torch.float32}
        outcomes.append((loss, y))
    (exact, y), (rounded, y_rounded) = outcomes
    assert rounded == pytest.approx(exact, rel=2e-2)
    assert not y.equal(y_rounded)


def test_micro_batches_must_be_equal() -> None:
    with pytest.raises(ConfigError, match="batch_sequences is 8 with 3 micro-batches") as caught:
        _blocks(num_microbatches=3)
    assert "multiple" in caught.value.hint
    with pytest.raises(ConfigError, match="batch_sequnces"):
        _blocks(batch_sequnces=3)
    blocks = _blocks(num_microbatches=2)
    assert blocks.activation_shape == (4, 32, 32)
    assert blocks.num_tokens == 128


def test_data_is_read_by_heads_alone() -> None:
    blocks = _blocks("nowhere.txt")
    StageCompute(blocks, 0, 1)
    with pytest.raises(DataError, match="nowhere"):
        blocks.data()


def test_what_the_inner_optimizer_is_told() -> None:
    optimizer = {"learning_rate": 0.5, "warmup_steps": 10, "floor_fraction": 0.1, "clip_norm": 7.0}
    blocks = _blocks(optimizer=optimizer)
    assert blocks.learning_rate(10) == 0.5
    assert blocks.learning_rate(60) == pytest.approx(0.05)
    assert blocks.clip_norm == 7.0


def test_memory_is_that_of_what_is_held(monkeypatch) -> None:
    settings = read_settings(SETTINGS)
    parts = [settings.required_bytes_of(0, ends=True), *[settings.required_bytes_of(1, ends=False)] * 4]
    assert sum(parts) == settings.required_bytes

    blocks = _blocks()
    monkeypatch.setattr(machine, "available_bytes", lambda device: sum(parts[:3]))
    blocks.check(2, True, "cpu")
    blocks.check(2, False, "cpu")
    with pytest.raises(IncapableError, match="MiB") as caught:
        blocks.check(3, True, "cpu")
    assert "fewer layers" in caught.value.hint
    with pytest.raises(IncapableError) as caught:
        blocks.check(4, True, "cpu")
    assert "fewer layers" not in caught.value.hint
    monkeypatch.setattr(machine, "available_bytes", lambda device: sum(parts[1:3]))
    blocks.check(2, False, "cpu")
    with pytest.raises(IncapableError):
        blocks.check(2, True, "cpu")
