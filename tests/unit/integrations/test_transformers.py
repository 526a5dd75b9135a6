"""The Trainer of transformers, the real one, with a swarm that only counts."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from decentral.errors import ConfigError, DecentralError
from decentral.integrations.transformers import SwarmCallback
from tests.unit.integrations.fake_swarm import FakeSwarm

CONTEXT = 8
LR = 0.01


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=CONTEXT, n_embd=8, n_layer=1, n_head=1))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=CONTEXT,
    )
    return LlamaForCausalLM(config)


def rows(num: int = 64, masked: int = 0) -> list[dict[str, Tensor]]:
    """Rows of token ids, each the next one's neighbour; the first ``masked`` labels of each are not trained on."""
    ids = [(torch.arange(CONTEXT) + i) % 32 for i in range(num)]
    labels = [row.clone() for row in ids]
    for row in labels:
        row[:masked] = -100
    return [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]


def arguments(folder: Path, **changed: Any) -> TrainingArguments:
    defaults = {
        "max_steps": 6,
        "data_seed": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": LR,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **(defaults | changed))


def trainer(model: nn.Module, swarm: FakeSwarm, args: TrainingArguments, *callbacks: Any, **more: Any) -> Trainer:
    made = Trainer(model, args, train_dataset=rows(), callbacks=[SwarmCallback(swarm), *callbacks], **more)
    made.remove_callback(PrinterCallback)
    return made


class Watch(TrainerCallback):
    """What a Trainer itself knows: losses and learning rates of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.rates.append(logs["learning_rate"])


@pytest.mark.parametrize(
    ("make", "micro_batches", "masked"),
    [
        (gpt2, 3, 5),
        (llama, 1, 5),
        pytest.param(gpt2, 1, 0, marks=pytest.mark.slow),
        pytest.param(llama, 3, 0, marks=pytest.mark.slow),
    ],
)
def test_steps_of_the_optimizer_are_counted_with_their_loss_and_tokens(
    tmp_path: Path, make: Any, micro_batches: int, masked: int
) -> None:
    model, watch = make(), Watch()
    swarm = FakeSwarm(model, total_steps=6)
    args = arguments(tmp_path, gradient_accumulation_steps=micro_batches, logging_steps=1)
    made = Trainer(model, args, train_dataset=rows(masked=masked), callbacks=[SwarmCallback(swarm), watch])
    made.remove_callback(PrinterCallback)
    made.train()
    assert swarm.tokens == [4 * CONTEXT * num for num in [micro_batches] * 5 + [1]]  # an epoch has 16 micro-batches
    assert swarm.losses == pytest.approx(watch.losses, abs=1e-4)
    assert made.state.global_step == 6


class Plain(nn.Module):
    """No model of transformers: returns a tuple, and its own mean loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        out = self.inner(x)
        return {"out": out} if labels is None else {"loss": (out - labels).square().mean(), "out": out}


def points(num: int = 60) -> list[dict[str, Tensor]]:
    return [{"x": torch.tensor([i / num, 1.0]), "labels": torch.tensor([i / num])} for i in range(num)]


def test_any_module_counts_samples_and_the_mean_of_its_losses(tmp_path: Path) -> None:
    model, watch = Plain(), Watch()
    swarm = FakeSwarm(model, total_steps=5)
    args = arguments(tmp_path, max_steps=5, gradient_accumulation_steps=2, logging_steps=1)
    made = Trainer(model, args, train_dataset=points(), callbacks=[SwarmCallback(swarm), watch])
    made.remove_callback(PrinterCallback)
    made.train()
    assert swarm.tokens == [8] * 5
    assert swarm.losses == pytest.approx(watch.losses, abs=1e-4)


def test_a_loss_that_the_trainer_computes_itself_is_not_known(tmp_path: Path) -> None:
    model = gpt2()
    swarm = FakeSwarm(model, total_steps=3)
    args = arguments(tmp_path, max_steps=3, label_smoothing_factor=0.1)
    trainer(model, swarm, args).train()
    assert swarm.losses == [None] * 3
    assert swarm.tokens == [4 * CONTEXT] * 3


def test_the_trainer_stops_when_the_run_is_over(tmp_path: Path) -> None:
    model = gpt2()
    swarm = FakeSwarm(model, total_steps=100, first_step=97)
    made = trainer(model, swarm, arguments(tmp_path, max_steps=100))
    made.train()
    assert made.state.global_step == 3
    assert swarm.num_leaves == 1


@pytest.mark.parametrize("total_steps", [6, 50])
def test_what_is_saved_at_the_end_are_the_swarms_weights(tmp_path: Path, total_steps: int) -> None:
    model = gpt2()
    frozen = model.transformer.wpe.weight.requires_grad_(False).clone()
    swarm = FakeSwarm(model, total_steps)  # 50: the Trainer ends long before the run
    made = trainer(model, swarm, arguments(tmp_path))
    made.train()
    made.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved.pop("transformer.wpe.weight"), frozen)
    assert len(saved) > 10
    assert all((value == swarm.average_value).all() for value in saved.values())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert swarm.calls == ["average", "leave"]


def test_what_is_evaluated_and_kept_at_the_last_step_are_the_swarms_weights(tmp_path: Path) -> None:
    model = gpt2()
    swarm = FakeSwarm(model, total_steps=6)
    args = arguments(tmp_path, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=3)
    made = trainer(model, swarm, args, eval_dataset=rows(8))
    made.train()
    before = load_file(tmp_path / "checkpoint-3/model.safetensors")
    after = load_file(tmp_path / "checkpoint-6/model.safetensors")
    assert not any((value == swarm.average_value).all() for value in before.values())
    assert all((value == swarm.average_value).all() for value in after.values())
    assert made.state.log_history[-2]["eval_loss"] == pytest.approx(made.evaluate()["eval_loss"])


@pytest.mark.parametrize("kind", ["cosine", pytest.param("linear", marks=pytest.mark.slow)])
def test_a_late_joiner_begins_in_the_middle_of_the_schedule(tmp_path: Path, kind: str) -> None:
    def rates(first_step: int) -> list[float]:
        model, watch = gpt2(), Watch()
        args = arguments(tmp_path, max_steps=20, lr_scheduler_type=kind, warmup_steps=3, logging_steps=1)
        trainer(model, FakeSwarm(model, 20, first_step), args, watch).train()
        return watch.rates

    whole = rates(0)
    assert len(set(whole)) == 20
    assert rates(12) == pytest.approx(whole[12:])


def test_the_schedule_follows_a_worker_that_is_moved_ahead(tmp_path: Path) -> None:
    model, watch = gpt2(), Watch()
    swarm = FakeSwarm(model, 20)

    def jump() -> None:
        if swarm.global_step == 5:
            swarm.global_step = 15

    swarm.on_step = jump
    trainer(model, swarm, arguments(tmp_path, max_steps=20, logging_steps=1), watch).train()
    steps = [*range(5), *range(15, 20)]
    assert watch.rates == pytest.approx([LR * (1 - step / 20) for step in steps])


def test_a_schedule_by_a_measured_loss_is_left_alone(tmp_path: Path) -> None:
    model, watch = gpt2(), Watch()
    args = arguments(
        tmp_path,
        max_steps=9,
        lr_scheduler_type="reduce_lr_on_plateau",
        eval_strategy="steps",
        eval_steps=4,
        logging_steps=1,
    )
    trainer(model, FakeSwarm(model, 9, 4), args, watch, eval_dataset=rows(4)).train()
    assert watch.rates == [LR] * 5


def test_a_failure_leaves_the_swarm(tmp_path: Path) -> None:
    model = gpt2()
    swarm = FakeSwarm(model, total_steps=6)

    def fail() -> None:
        raise RuntimeError("of the user's")

    swarm.on_step = fail
    with pytest.raises(RuntimeError, match="of the user's"), swarm:
        trainer(model, swarm, arguments(tmp_path)).train()
    assert swarm.calls == ["leave"]


def test_a_worker_out_of_the_swarm_trains_on_and_keeps_its_own(tmp_path: Path) -> None:
    model = gpt2()
    swarm = FakeSwarm(model, total_steps=6)
    swarm.problem = DecentralError("the connection is lost")
    trainer(model, swarm, arguments(tmp_path)).train()
    assert swarm.global_step == 6
    assert swarm.calls == ["leave"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [({"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"}, "load_best_model_at_end")],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    model = gpt2()
    swarm = FakeSwarm(model, total_steps=6)
    with pytest.raises(ConfigError, match=text):
        trainer(model, swarm, arguments(tmp_path, **changed), eval_dataset=rows(4)).train()
    assert swarm.global_step == 0


def test_a_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    model = gpt2()
    trainer(model, FakeSwarm(model, 2), arguments(tmp_path, max_steps=2, save_strategy="steps")).train()
    swarm = FakeSwarm(model, total_steps=6)
    with pytest.raises(ConfigError, match="resumes from a checkpoint"):
        trainer(model, swarm, arguments(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("name", ["world_size", "n_gpu"])
def test_several_processes_or_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = gpt2()
    made = trainer(model, FakeSwarm(model, 6), arguments(tmp_path))
    monkeypatch.setattr(TrainingArguments, name, property(lambda _: 2))
    callback = made.pop_callback(SwarmCallback)
    with pytest.raises(ConfigError, match="2 processes or devices"):
        callback.on_train_begin(made.args, made.state, made.control, model=model, optimizer=None)


def test_a_model_that_the_trainer_makes_itself_is_refused(tmp_path: Path) -> None:
    swarm = FakeSwarm(gpt2(), total_steps=6)
    callbacks = [SwarmCallback(swarm)]
    made = Trainer(model_init=gpt2, args=arguments(tmp_path), train_dataset=rows(), callbacks=callbacks)
    with pytest.raises(ConfigError, match="trains none of the model's shared parameters"):
        made.train()


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="decentral"):
        yield caplog


@pytest.mark.parametrize(
    ("changed", "text"),
    [({}, ""), ({"max_steps": 3}, "for 3 steps, the swarm's run has 6"), ({"data_seed": None}, "data_seed=swarm.seed")],
)
def test_what_is_easily_forgotten_is_said(
    tmp_path: Path, warnings_of: pytest.LogCaptureFixture, changed: dict[str, Any], text: str
) -> None:
    model = gpt2()
    trainer(model, FakeSwarm(model, total_steps=6), arguments(tmp_path, **changed)).train()
    said = [record.getMessage() for record in warnings_of.records if record.name == "decentral"]
    assert len(said) == bool(text)
    assert text in "".join(said)


def test_the_seed_gives_each_worker_an_order_of_its_own(tmp_path: Path) -> None:
    def order(seed: int) -> list[int]:
        args = arguments(tmp_path, data_seed=seed, per_device_train_batch_size=1)
        batches = trainer(gpt2(), FakeSwarm(gpt2(), 6), args).get_train_dataloader()
        return [int(batch["input_ids"][0, 0]) for batch in batches]

    assert order(FakeSwarm.seed) == order(FakeSwarm.seed)
    assert order(FakeSwarm.seed) != order(FakeSwarm.seed - 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, while it compiles
def test_a_compiled_model_counts_the_same(tmp_path: Path) -> None:
    model, watch = gpt2(), Watch()
    swarm = FakeSwarm(model, total_steps=3)
    args = arguments(tmp_path, max_steps=3, torch_compile=True, torch_compile_backend="eager", logging_steps=1)
    made = trainer(model, swarm, args, watch)
    made.train()
    assert swarm.tokens == [4 * CONTEXT] * 3
    assert swarm.losses == pytest.approx(watch.losses, abs=1e-4)
