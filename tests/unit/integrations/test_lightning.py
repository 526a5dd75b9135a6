"""The Trainer of Lightning, the real one, with a swarm that only counts."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from decentral.errors import ConfigError
from decentral.integrations.lightning import SwarmCallback
from tests.unit.integrations.fake_swarm import FakeSwarm

pytestmark = [
    # Of what Lightning itself uses of torch.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # Lightning would like more processes than a test has use for.
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),  # of a machine with Slurm
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
]
NUM_BATCHES = 16


class Tokens(LightningModule):
    """Predicts a token from the one before; its embedding is its output layer, and the bias is frozen."""

    def __init__(self, schedule: dict[str, Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(32, 4)
        self.output = nn.Linear(4, 32)
        self.output.weight = self.embedding.weight
        self.output.bias.requires_grad_(False)
        self.schedule = schedule
        self.losses: list[float] = []
        self.rates: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self.output(self.embedding(batch[:, :-1]))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        self.losses.append(loss.item())
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)
        if self.schedule is None:
            return optimizer
        line = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": line, **self.schedule}}


class Validated(Tokens):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)


class Alternating(LightningModule):
    """Two optimizers by hand, as adversaries have them: both make a step with every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one, self.two = nn.Linear(4, 1), nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        loss = (self.one(batch.float()) + self.two(batch.float())).square().mean()
        self.manual_backward(loss)
        if batch_idx % 2:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.one, self.two)]


def loader(columns: int = 4) -> DataLoader[Any]:
    rows = (torch.arange(NUM_BATCHES * 3 * columns) % 32).view(-1, columns)
    return DataLoader(rows, batch_size=3)  # type: ignore[arg-type]


def trainer(swarm: Any, folder: Path, *callbacks: Callback, **changed: Any) -> Trainer:
    defaults = {
        "max_steps": 12,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | changed), callbacks=[SwarmCallback(swarm), *callbacks])


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_steps_of_the_optimizer_are_counted_with_their_loss_and_tokens(tmp_path: Path, micro_batches: int) -> None:
    module = Tokens()
    swarm = FakeSwarm(module, total_steps=6)
    made = trainer(swarm, tmp_path, max_steps=6, accumulate_grad_batches=micro_batches)
    made.fit(module, loader())
    sizes = [micro_batches] * 6 if micro_batches == 1 else [3] * 5 + [1]  # an epoch ends after 16 batches
    assert swarm.tokens == [3 * 4 * num for num in sizes]
    seen = iter(module.losses)
    assert swarm.losses == pytest.approx([sum(next(seen) for _ in range(num)) / num for num in sizes])
    assert made.global_step == 6


def test_tokens_can_be_counted_otherwise(tmp_path: Path) -> None:
    module = Tokens()
    swarm = FakeSwarm(module, total_steps=3)
    made = Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SwarmCallback(swarm, tokens=lambda batch: 7)],
    )
    made.fit(module, loader())
    assert swarm.tokens == [7, 7, 7]


def test_several_optimizers_make_one_step(tmp_path: Path) -> None:
    module = Alternating()
    swarm = FakeSwarm(module, total_steps=5)
    made = trainer(swarm, tmp_path, max_steps=-1, max_epochs=1)
    made.fit(module, loader())
    assert made.global_step == 10
    assert swarm.tokens == [3 * 4 * 2] * 5
    assert None not in swarm.losses


def test_the_trainer_stops_when_the_run_is_over(tmp_path: Path) -> None:
    module = Tokens()
    swarm = FakeSwarm(module, total_steps=100, first_step=97)
    made = trainer(swarm, tmp_path, max_steps=100)
    made.fit(module, loader())
    assert made.global_step == 3
    assert swarm.calls == ["average", "leave"]


@pytest.mark.parametrize("total_steps", [12, 50])
def test_what_is_saved_at_the_end_are_the_swarms_weights(tmp_path: Path, total_steps: int) -> None:
    module = Tokens()
    frozen = module.output.bias.clone()
    swarm = FakeSwarm(module, total_steps)  # 50: the Trainer ends long before the run
    made = trainer(swarm, tmp_path)
    made.fit(module, loader())
    made.save_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "end.ckpt")["state_dict"]
    assert torch.equal(saved["output.bias"], frozen)
    assert (saved["embedding.weight"] == swarm.average_value).all()
    assert (saved["output.weight"] == swarm.average_value).all()
    assert swarm.calls == ["average", "leave"]


def test_what_is_validated_and_kept_at_the_last_step_are_the_swarms_weights(tmp_path: Path) -> None:
    module = Validated()
    swarm = FakeSwarm(module, total_steps=12)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    made = trainer(swarm, tmp_path, keep, enable_checkpointing=True, val_check_interval=4)
    made.fit(module, loader(), loader())
    kept = {step: torch.load(tmp_path / f"step={step}.ckpt")["state_dict"]["embedding.weight"] for step in (8, 12)}
    assert not (kept[8] == swarm.average_value).all()
    assert (kept[12] == swarm.average_value).all()


@pytest.mark.parametrize("frequency", [1, 4])
def test_a_late_joiner_begins_in_the_middle_of_the_schedule(tmp_path: Path, frequency: int) -> None:
    def rates(first_step: int) -> list[float]:
        module = Tokens({"interval": "step", "frequency": frequency})
        trainer(FakeSwarm(module, 12, first_step), tmp_path).fit(module, loader())
        return module.rates

    whole = rates(0)
    assert whole == pytest.approx([0.1 * (1 - step // frequency / 40) for step in range(12)])
    assert rates(8) == pytest.approx(whole[8:])


def test_a_schedule_by_epochs_is_left_alone(tmp_path: Path) -> None:
    module = Tokens({"interval": "epoch"})
    trainer(FakeSwarm(module, 12, 8), tmp_path).fit(module, loader())
    assert module.rates == [0.1] * 4


@pytest.mark.parametrize("fault", [RuntimeError("of the user's"), KeyboardInterrupt()])
def test_a_failure_leaves_the_swarm(tmp_path: Path, fault: BaseException) -> None:
    module = Tokens()
    swarm = FakeSwarm(module, total_steps=12)

    class Failing(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if swarm.global_step == 2:
                raise fault

    kind = RuntimeError if isinstance(fault, RuntimeError) else SystemExit  # Lightning's answer to Ctrl-C
    with pytest.raises(kind):
        trainer(swarm, tmp_path, Failing()).fit(module, loader())
    assert swarm.calls == ["leave"]
    assert swarm.global_step == 2


def test_a_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    module = Tokens()
    first = trainer(FakeSwarm(module, 2), tmp_path)
    first.fit(module, loader())
    first.save_checkpoint(tmp_path / "two.ckpt")
    swarm = FakeSwarm(module, 12)
    with pytest.raises(ConfigError, match="goes on from a checkpoint"):
        trainer(swarm, tmp_path).fit(module, loader(), ckpt_path=tmp_path / "two.ckpt")
    assert swarm.calls == ["leave"]


def test_another_module_than_the_swarms_is_refused(tmp_path: Path) -> None:
    swarm = FakeSwarm(Tokens(), 12)
    with pytest.raises(ConfigError, match="trains none of the model's shared parameters"):
        trainer(swarm, tmp_path).fit(Tokens(), loader())
    assert swarm.calls == ["leave"]


def test_several_processes_are_refused(tmp_path: Path) -> None:
    module = Tokens()
    swarm = FakeSwarm(module, 12)
    made = trainer(swarm, tmp_path, devices=2, strategy="ddp_spawn")
    with pytest.raises(ConfigError, match="2 processes or devices"):
        made.callbacks[0].setup(made, module, "fit")


@pytest.mark.parametrize(("max_steps", "text"), [(12, ""), (5, "for 5 steps, and the swarm's run has 12 left")])
def test_a_trainer_that_ends_before_the_run_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, max_steps: int, text: str
) -> None:
    module = Tokens()
    with caplog.at_level(logging.WARNING, logger="decentral"):
        trainer(FakeSwarm(module, 12), tmp_path, max_steps=max_steps).fit(module, loader())
    said = [record.getMessage() for record in caplog.records if record.name == "decentral"]
    assert len(said) == bool(text)
    assert text in "".join(said)
