import io
import math

import pytest
import torch

from decentral.errors import ConfigError, IncapableError
from decentral.ports.trainer import Seat
from decentral.tensors.layout import Layout
from decentral.workers import lm, machine
from decentral.workers.lm.corpus import load_corpus
from decentral.workers.lm.settings import read_settings
from decentral.workers.lm.trainer import LmTrainer

SETTINGS = {
    "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "context": 32},
    "optimizer": {"warmup_steps": 2, "learning_rate": 1e-2},
    "batch_sequences": 4,
    "val_batches": 2,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("def add(first, second):\n    return first + second\n\n" * 100)
    return str(path)


def _build(text: str, *, run_seed: int = 0, stream_seed: int = 1, **changed) -> LmTrainer:
    seat = Seat(run_seed=run_seed, stream_seed=stream_seed, total_steps=60, data=(text,))
    return lm.build({**SETTINGS, **changed}, seat)


def _copy(trainer: LmTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.parameters().items()}


def test_it_learns(text: str) -> None:
    trainer = _build(text)
    before = trainer.validate()
    report = trainer.train_steps(0, 40)
    assert report.tokens == 40 * 4 * 32
    assert before > 5
    assert trainer.validate() < 2.0
    assert report.grad_norm > 0


def test_workers_start_equal_and_draw_different_text(text: str) -> None:
    first, second = _build(text, stream_seed=1), _build(text, stream_seed=2)
    assert all(value.equal(second.parameters()[name]) for name, value in first.parameters().items())
    assert first.validate() == second.validate()
    assert first.train_steps(0, 1).loss != second.train_steps(0, 1).loss


def test_a_stretch_of_steps_is_the_same_in_pieces(text: str) -> None:
    whole, pieces = _build(text), _build(text)
    whole.train_steps(0, 4)
    pieces.train_steps(0, 1)
    pieces.train_steps(1, 3)
    assert all(value.equal(pieces.parameters()[name]) for name, value in whole.parameters().items())


def test_a_tied_head_appears_once_and_the_order_is_that_of_the_layers(text: str) -> None:
    tied = list(_build(text).parameters())
    untied = list(_build(text, model={**SETTINGS["model"], "tie_embeddings": False}).parameters())
    assert tied[0] == "embedding"
    assert set(untied) - set(tied) == {"head"}
    assert [name for name in tied if name.startswith("blocks.")] == sorted(
        (name for name in tied if name.startswith("blocks.")), key=lambda name: int(name.split(".")[1])
    )
    assert Layout.of(_build(text).parameters(), 2).num_fragments == 2


def test_load_writes_the_named_parameters_and_no_others(text: str) -> None:
    trainer = _build(text)
    before = _copy(trainer)
    trainer.load({"final_norm": torch.full((32,), 2.0)})
    after = trainer.parameters()
    assert after["final_norm"].equal(torch.full((32,), 2.0))
    assert all(before[name].equal(after[name]) for name in before if name != "final_norm")


@pytest.mark.parametrize("wrong", [{"unknown": torch.zeros(32)}, {"embedding": torch.zeros(32)}])
def test_load_refuses_what_does_not_fit_and_changes_nothing(text: str, wrong) -> None:
    trainer = _build(text)
    with pytest.raises(ValueError, match=r"parameter|shape"):
        trainer.load({"final_norm": torch.zeros(32), **wrong})
    assert trainer.parameters()["final_norm"].equal(torch.ones(32))


def test_a_loss_that_is_not_finite_is_reported_and_not_learnt_from(text: str) -> None:
    trainer = _build(text)
    trainer.train_steps(0, 1)
    sound = _copy(trainer)
    trainer.load({"final_norm": torch.full((32,), math.inf)})
    assert math.isnan(trainer.train_steps(1, 2).loss)
    trainer.load({"final_norm": sound["final_norm"]})
    assert all(value.equal(sound[name]) for name, value in trainer.parameters().items())
    assert math.isfinite(trainer.train_steps(3, 1).loss)


def test_weight_decay_is_for_matrices_alone(text: str) -> None:
    with_decay = _build(text, optimizer={"weight_decay": 10.0, "warmup_steps": 0})
    without = _build(text, optimizer={"weight_decay": 0.0, "warmup_steps": 0})
    for trainer in (with_decay, without):
        trainer.load({name: torch.ones_like(value) for name, value in trainer.parameters().items()})
        trainer.train_steps(0, 1)
    for name, value in with_decay.parameters().items():
        assert value.equal(without.parameters()[name]) == (value.ndim == 1), name


def test_the_learning_rate_follows_the_global_step(text: str) -> None:
    early, late = _build(text), _build(text)
    start = _copy(early)
    early.train_steps(2, 1)  # The peak, after the warm-up.
    late.train_steps(59, 1)  # The floor.

    def moved(trainer: LmTrainer) -> float:
        return (trainer.parameters()["embedding"] - start["embedding"]).abs().mean().item()

    assert moved(late) < 0.2 * moved(early)


def test_bf16_stays_close_to_fp32_and_keeps_fp32_weights(text: str) -> None:
    exact, rounded = _build(text), _build(text, precision="bf16")
    assert rounded.validate() == pytest.approx(exact.validate(), rel=1e-2)
    rounded.train_steps(0, 2)
    assert all(value.dtype == torch.float32 for value in rounded.parameters().values())


def test_a_sample_begins_with_its_prompt_and_repeats_by_seed(text: str) -> None:
    trainer = _build(text)
    assert trainer.sample("def ", 20, seed=3).startswith("def ")
    assert trainer.sample("def ", 20, seed=3) == trainer.sample("def ", 20, seed=3)
    assert len(trainer.sample("", 5).encode(errors="replace")) >= 5


def test_what_a_run_is_told_about_itself(text: str) -> None:
    shown = _build(text).describe()
    assert "context 32" in shown
    assert load_corpus((text,), 33).held_out_digest() in shown


def test_a_machine_that_cannot_run_it_says_so(monkeypatch) -> None:
    lm.check({}, "cpu")
    with pytest.raises(ConfigError, match="gpu"):
        lm.check({}, "gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(IncapableError, match="sees 1 CUDA"):
        lm.check({}, "cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(IncapableError, match="mps"):
        lm.check({}, "mps")
    monkeypatch.setattr(machine, "available_bytes", lambda device: 2**20)
    with pytest.raises(IncapableError, match="MiB"):
        lm.check({}, "cpu")
    monkeypatch.setattr(machine, "available_bytes", lambda device: 2**40)
    monkeypatch.setattr(machine, "_has_bf16", lambda kind: False)
    with pytest.raises(IncapableError, match="bf16"):
        lm.check({"precision": "bf16"}, "cpu")


def test_memory_is_estimated_by_parameters_and_batch() -> None:
    small, wide = read_settings({}), read_settings({"batch_sequences": 128})
    assert machine.available_bytes("cpu") > 2**20
    assert small.required_bytes > 36 * small.model.num_parameters
    assert wide.required_bytes > 4 * small.required_bytes


def test_it_goes_on_bit_for_bit_from_its_parameters_and_its_state(text: str) -> None:
    whole, first, second = _build(text), _build(text), _build(text)
    whole.train_steps(0, 6)
    first.train_steps(0, 3)
    file = io.BytesIO()
    torch.save(dict(first.state_dict()), file)
    file.seek(0)
    second.load(_copy(first))
    second.load_state_dict(torch.load(file, weights_only=True))
    second.train_steps(3, 3)
    assert all(value.equal(second.parameters()[name]) for name, value in whole.parameters().items())
