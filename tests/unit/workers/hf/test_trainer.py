"""The trainer on tiny models of transformers, fed from memory."""

import io
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from decentral.ports.trainer import Seat
from decentral.workers.hf.model import architecture_of, build_model, config_from
from decentral.workers.hf.settings import read_settings
from decentral.workers.hf.trainer import HfTrainer
from tests.support.hf import make_config, make_tokenizer
from tests.unit.workers.hf.feed import Feed

SEAT = Seat(1, 2, total_steps=20)
OPTIMIZER = {"learning_rate": 1e-2, "warmup_steps": 2, "weight_decay": 0.01}
KINDS = ("llama", "gpt2")


def all_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def made(kind: str = "llama", feed: Feed | None = None, **settings: Any) -> HfTrainer:
    """A trainer of a tiny model drawn from a seed, with batches of four sequences."""
    read = read_settings({"batch_sequences": 4, "optimizer": OPTIMIZER, **settings})
    model = build_model(config_from(architecture_of(make_config(kind))), 1)
    return HfTrainer(read, SEAT, model, all_of, make_tokenizer(), feed or Feed(4))


def values(trainer: HfTrainer) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trainer.parameters().values()])


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_it_takes_the_steps_of_a_plain_loop(kind: str) -> None:
    trainer, feed = made(kind), Feed(4)
    plain = build_model(make_config(kind), 1).train()
    matrices = [p for p in plain.parameters() if p.ndim >= 2]
    vectors = [p for p in plain.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    losses = []
    for step in range(3):
        loss = plain(**next(feed)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        rate = read_settings({"optimizer": OPTIMIZER}).optimizer.learning_rate_at(step, 20)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    report = trainer.train_steps(0, 3)
    assert report.loss == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert report.tokens == 3 * 4 * 15  # the first token of a sequence is not predicted
    for name, value in plain.named_parameters():
        torch.testing.assert_close(trainer.parameters()[name], value.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(kind: str) -> None:
    trainer = made(kind, optimizer={**OPTIMIZER, "name": "Muon"})
    before = {name: value.clone() for name, value in trainer.parameters().items()}
    trainer.train_steps(0, 1)
    kinds = {name: entry["class"] for name, entry in trainer.state_dict()["optimizer"].items()}
    blocks = ("model.layers.", "transformer.h.")
    assert kinds == {
        name: "Muon" if name.startswith(blocks) and value.ndim == 2 else "AdamW" for name, value in before.items()
    }
    assert set(kinds.values()) == {"Muon", "AdamW"}
    assert not any(torch.equal(value, before[name]) for name, value in trainer.parameters().items())


@pytest.mark.slow
@pytest.mark.timeout(600)  # to compile takes a busy machine minutes
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of what compiles, by its own parts
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # likewise
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changed", [{"micro_batch": 1}, {"micro_batch": 3}, {"activation_checkpointing": True}, {"compile": True}]
)
def test_how_a_batch_is_computed_changes_no_step(kind: str, changed: Mapping[str, Any]) -> None:
    """Also where rows have unequally many counted tokens, and one has none."""
    counted = (16, 3, 1, 9)
    whole, other = made(kind, Feed(4, counted=counted)), made(kind, Feed(4, counted=counted), **changed)
    expected, found = whole.train_steps(0, 2), other.train_steps(0, 2)
    assert found.tokens == expected.tokens == 2 * (15 + 2 + 0 + 8)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    torch.testing.assert_close(values(other), values(whole), rtol=1e-3, atol=1e-4)
    assert other.validate() == pytest.approx(whole.validate(), rel=1e-5)


def test_out_of_memory_halves_what_goes_through_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, whole = made(), made()
    seen = []
    loss = HfTrainer._loss

    def limited(self: HfTrainer, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(batch["input_ids"]))
        if len(batch["input_ids"]) > 1 and self is trainer:
            raise torch.OutOfMemoryError("no room")
        return loss(self, batch)

    monkeypatch.setattr(HfTrainer, "_loss", limited)
    report = trainer.train_steps(0, 2)
    assert seen == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert report.loss == pytest.approx(whole.train_steps(0, 2).loss, rel=1e-6)
    torch.testing.assert_close(values(trainer), values(whole), rtol=1e-3, atol=1e-4)
    resumed = made()
    resumed.load_state_dict(trainer.state_dict())
    seen.clear()
    resumed.train_steps(2, 1)
    assert seen == [1, 1, 1, 1]  # it is not found out anew


@pytest.mark.slow
def test_no_memory_for_one_sequence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: HfTrainer, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(HfTrainer, "_loss", never)
    with pytest.raises(torch.OutOfMemoryError):
        made().train_steps(0, 1)


def test_a_state_goes_on_as_if_nothing_had_happened() -> None:
    whole, first, second = made(), made(), made()
    whole.train_steps(0, 4)
    first.train_steps(0, 2)
    file = io.BytesIO()
    torch.save(dict(first.state_dict()), file)
    file.seek(0)
    second.load({name: value.clone() for name, value in first.parameters().items()})
    second.load_state_dict(torch.load(file, weights_only=True))
    second.train_steps(2, 2)
    assert torch.equal(values(second), values(whole))


@pytest.mark.slow
def test_bf16_computes_in_it_and_keeps_masters() -> None:
    trainer = made(precision="bf16")
    exact = made().train_steps(0, 2).loss
    found = trainer.train_steps(0, 2).loss
    assert found != exact
    assert found == pytest.approx(exact, rel=0.02)
    assert {value.dtype for value in trainer.parameters().values()} == {torch.float32}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was() -> None:
    trainer = made()
    trainer.train_steps(0, 1)
    name, value = next(iter(trainer.parameters().items()))
    trainer.load({name: torch.full_like(value, math.nan)})
    before = values(trainer).clone()
    assert math.isnan(trainer.train_steps(1, 1).loss)
    torch.testing.assert_close(values(trainer), before, equal_nan=True)


@pytest.mark.slow
def test_shared_are_tied_weights_once_and_by_layer() -> None:
    names = list(made("llama").parameters())
    assert "lm_head.weight" not in names
    assert "model.layers.1.self_attn.q_proj.weight" in names


@pytest.mark.slow
def test_it_continues_a_text() -> None:
    text = made().sample("the dog", num_bytes=40)
    assert text.startswith("the dog")
    assert text == made().sample("the dog", num_bytes=40)
