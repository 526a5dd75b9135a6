"""Two processes that are one worker take the steps that one process takes on the same rows."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from decentral.errors import ConfigError, IncapableError
from decentral.ports.trainer import Seat
from decentral.tensors.nested import whole
from decentral.workers import hf
from decentral.workers.hf.trainer import HfTrainer
from tests.support.hf import make_folder, write_rows
from tests.unit.run.test_ranks import NUM_RANKS, in_group

STEPS = 3


def settings_of(folder: Path, **changed: Any) -> dict[str, Any]:
    optimizer = {"learning_rate": 1e-2, "warmup_steps": 0}
    given = {"batch_sequences": 4, "seq_len": 16, "optimizer": optimizer, "model": {"name": str(folder)}}
    return hf.resolve({**given, "data": {"prefetch": 0, "held_out": 0.1, "document_mask": True}, **changed})


def seat_of(folder: Path, rows: Path) -> Seat:
    return Seat(5, 2, total_steps=20, data=(str(rows),), model=str(folder), founding=True)


def life(trainer: HfTrainer) -> list[Any]:
    """Losses and tokens of some steps, the loss on what is held out, where it is in the data, and all values."""
    reports = [trainer.train_steps(step, 1) for step in range(STEPS)]
    told = [[report.loss, report.tokens] for report in reports]
    state, values = dict(trainer.state_dict()), [whole(value).tolist() for value in trainer.parameters().values()]
    return [told, trainer.validate(), state["data"], values]


def of_ranks(settings: Mapping[str, Any], seat: Seat, inner: str) -> Callable[[], list[Any]]:
    return lambda: life(hf.build(settings, replace(seat, rank=dist.get_rank(), num_ranks=NUM_RANKS, inner=inner)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inner", "lora", "micro", "name"),
    [
        *(("fsdp", 0, 0, "AdamW"), ("fsdp", 2, 1, "AdamW"), ("ddp", 0, 1, "AdamW"), ("ddp", 2, 0, "AdamW")),
        *(("fsdp", 0, 0, "Muon"), ("ddp", 0, 0, "Muon")),
    ],
)
def test_ranks_are_one_process(inner: str, lora: int, micro: int, name: str, tmp_path: Path) -> None:
    folder, rows = make_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    changed: dict[str, Any] = {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "name": name}}
    if lora:
        changed["lora"] = {"rank": lora}
    # Muon makes its steps in bf16, of gradients that differ in their last bits.
    near, close = (1e-5, 1e-4) if name == "AdamW" else (5e-4, 2e-3)
    settings, seat = settings_of(folder, micro_batch=micro, **changed), seat_of(folder, rows)
    told, loss, position, values = life(hf.build(settings, seat))
    first, second = in_group(tmp_path, of_ranks(settings, seat, inner))
    for step, (alone, *parts) in enumerate(zip(told, first[0], second[0], strict=True)):
        tokens = sum(part[1] for part in parts)
        assert tokens == alone[1], step
        assert sum(part[0] * part[1] for part in parts) / tokens == pytest.approx(alone[0], abs=near), step
    assert first[1] == second[1] == pytest.approx(loss, abs=near)
    assert (first[2], second[2]) == (position, {})
    for one, other, expected in zip(first[3], second[3], values, strict=True):
        assert one == other
        torch.testing.assert_close(torch.tensor(one), torch.tensor(expected), rtol=0, atol=close)


def out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("no room")


def fails_in(backward: bool, trainer: HfTrainer) -> None:
    """Let it run out of memory in the first of its layers, with more than one sequence, there or on the way back."""

    def behind(layer: torch.nn.Module, given: Any, x: torch.Tensor) -> None:
        if len(x) > 1 and torch.is_grad_enabled():
            x.register_hook(out_of_memory) if backward else out_of_memory()

    trainer._model.model.layers[0].post_attention_layernorm.register_forward_hook(behind)


@pytest.mark.slow
@pytest.mark.parametrize(("inner", "backward"), [("ddp", False), ("fsdp", False), ("fsdp", True)])
def test_a_rank_without_memory(inner: str, backward: bool, tmp_path: Path) -> None:
    """All ranks take smaller parts, before they are in a pass together, and the batch is what it was."""
    folder, rows = make_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    settings, seat = settings_of(folder), seat_of(folder, rows)

    def narrow() -> list[Any]:
        trainer = hf.build(settings, replace(seat, rank=dist.get_rank(), num_ranks=NUM_RANKS, inner=inner))
        if dist.get_rank() == 1:
            fails_in(backward, trainer)
        return [*life(trainer), trainer.state_dict()["rows"]]

    told, loss, _, values = life(hf.build(settings, seat))
    first, second = in_group(tmp_path, narrow)
    for alone, *parts in zip(told, first[0], second[0], strict=True):
        assert sum(loss * tokens for loss, tokens in parts) / alone[1] == pytest.approx(alone[0], abs=1e-5)
    assert first[1] == second[1] == pytest.approx(loss, abs=1e-5)
    for one, expected in zip(first[3], values, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(expected), rtol=0, atol=1e-4)
    assert first[4] == second[4] == 1


@pytest.mark.slow
def test_what_cannot_be_given_up_says_what_to_do(tmp_path: Path) -> None:
    """Later than in the first steps the other ranks are in the pass as well."""
    folder, rows = make_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    settings, seat = settings_of(folder), seat_of(folder, rows)

    def refused() -> str:
        trainer = hf.build(settings, replace(seat, rank=dist.get_rank(), num_ranks=NUM_RANKS, inner="fsdp"))
        trainer.train_steps(0, 2)
        trainer._model.model.layers[0].register_forward_hook(out_of_memory)
        with pytest.raises(IncapableError) as raised:
            trainer.train_steps(2, 1)
        return raised.value.hint

    assert set(in_group(tmp_path, refused)) == {"Begin with fewer: --set task.settings.micro_batch=1."}


def test_a_batch_that_cannot_be_dealt_out_is_refused(tmp_path: Path) -> None:
    folder, rows = make_folder(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    seat = replace(seat_of(folder, rows), rank=1, num_ranks=3)
    with pytest.raises(ConfigError, match="batch_sequences is 4, which 3 processes cannot deal out evenly"):
        hf.build(settings_of(folder), seat)
