"""A model of transformers as a ``Trainer``: one model, its optimizer, its data. It knows nothing of the swarm.

Legend: R = sequences of a batch, T = tokens of a sequence.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from decentral.ports.trainer import Seat, StepReport
from decentral.tensors.inner import InnerModel
from decentral.workers.hf.data import TrainingData
from decentral.workers.hf.data.packing import IGNORED
from decentral.workers.hf.model import ends_of
from decentral.workers.hf.settings import HfSettings
from decentral.workers.optimizer import make_optimizers

_log = logging.getLogger(__name__)
#: Text of a token, roughly.
_BYTES_PER_TOKEN = 4

Batch = Mapping[str, Tensor]


class HfTrainer(InnerModel):
    """Trains a causal language model.

    Args:
        settings: of the run.
        seat: length of the run, device.
        model: in float32 on the CPU; ``named`` are parameters of it.
        named: what is trained and shared.
        tokenizer: for samples.
        data: of this worker.
    """

    def __init__(
        self,
        settings: HfSettings,
        seat: Seat,
        model: nn.Module,
        named: Mapping[str, nn.Parameter],
        tokenizer: PreTrainedTokenizerBase,
        data: TrainingData,
    ) -> None:
        config = settings.optimizer
        self._settings = settings
        self._device = seat.device
        self._tokenizer = tokenizer
        self._data = data
        self._rows = settings.micro_batch or settings.batch_sequences
        """Sequences that go through the model at a time."""
        self._model = cast(Any, model.to(seat.device))
        if settings.activation_checkpointing:
            _checkpoint_activations(self._model)
        self._forward: Any = torch.compile(self._model) if settings.compile else self._model
        super().__init__(
            named,
            lambda trained: make_optimizers(trained, config, ends_of(model, trained)),
            lambda step: config.learning_rate_at(step, seat.total_steps),
            config.clip_norm,
        )

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` optimizer steps, each on the next batch of this worker's data.

        A step whose loss or gradient is not finite leaves parameters and moments as they were; it shows in the report,
        whose means are then not finite either.
        """
        self._model.train()
        losses: list[Tensor] = []
        tokens, grad_norm_sum, waited_s = 0, 0.0, self._data.waited_s
        for step in range(first_step, first_step + count):
            batch = next(self._data)
            losses.append(self._backward(batch))
            grad_norm_sum += self.step(step, loss=losses[-1])
            tokens += _num_counted(batch)
        # Read at the end: behind a step, it would wait until a GPU has taken that before the next one is queued.
        loss = sum(torch.stack(losses).tolist()) / count
        return StepReport(tokens, loss, grad_norm_sum / count, self._data.waited_s - waited_s)

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss of a batch's tokens, in as many parts as the memory asks for; returns the loss."""
        while True:
            try:
                return self._accumulate(batch, self._rows)
            except torch.OutOfMemoryError:
                if self._rows == 1:
                    raise
            # Outside of the handler, whose traceback holds on to what is to be let go.
            for parameter in self._trained:
                parameter.grad = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._rows = -(-self._rows // 2)
            _log.warning("out of memory: from now on %d sequences go through the model at a time", self._rows)

    def _accumulate(self, batch: Batch, rows: int) -> Tensor:
        total = max(1, _num_counted(batch))
        loss = torch.zeros((), device=self._device)
        for part, num_counted in _parts(batch, rows):
            share = self._loss(part) * (num_counted / total)
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        return loss

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss (nats per token) on the held-out batches, always the same ones; NaN if there are none."""
        self._model.eval()
        total, tokens = 0.0, 0
        for batch in self._data.validation():
            for part, num_counted in _parts(batch, self._rows):
                total += self._loss(part).item() * num_counted
                tokens += num_counted
        return total / tokens if tokens else math.nan

    def _loss(self, batch: Batch) -> Tensor:
        """Mean loss per token, as the model itself computes it."""
        there = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        bf16 = self._settings.precision == "bf16"
        with torch.autocast(self._device.partition(":")[0], dtype=torch.bfloat16, enabled=bf16):
            loss: Tensor = self._forward(**there, use_cache=False).loss
        return loss

    def state_dict(self) -> Mapping[str, Any]:
        """Of the optimizer and of the data, and how much goes through the model at a time."""
        return {**super().state_dict(), "data": self._data.state_dict(), "rows": self._rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._data.load_state_dict(state["data"])
        self._rows = min(self._rows, int(state["rows"]))

    @torch.no_grad()
    def sample(self, prompt: str = "", num_bytes: int = 400, seed: int = 0) -> str:
        """A continuation of ``prompt`` by the current parameters, the prompt included."""
        self._model.eval()
        start = self._tokenizer(prompt)["input_ids"] if prompt else []
        first = self._tokenizer.bos_token_id
        tokens = torch.tensor([start or [0 if first is None else first]], device=self._device)
        room = (getattr(self._model.config, "max_position_embeddings", None) or num_bytes) - tokens.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = self._model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max(1, min(room, num_bytes // _BYTES_PER_TOKEN)),
                do_sample=True,
                temperature=0.7,
                top_k=40,
                pad_token_id=self._tokenizer.eos_token_id or 0,
            )
        return str(self._tokenizer.decode(found[0], skip_special_tokens=True))

    def describe(self) -> str:
        """A line about the model, and what the data says of itself."""
        trained = sum(value.numel() for value in self._trained)
        whole = sum(value.numel() for value in self._model.parameters())
        of = f"{whole:,} parameters" if trained == whole else f"{whole:,} parameters, of which {trained:,} are trained"
        return f"{self._model.config.model_type} of {of}\n{self._data.describe()}"


def _checkpoint_activations(model: Any) -> None:
    """By its newer name where there is one: the older is to go."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _parts(batch: Batch, rows: int) -> Iterator[tuple[Batch, int]]:
    """A batch in parts of at most so many sequences, each with the number of its tokens that are predicted."""
    for first in range(0, len(batch["labels"]), rows):
        part = {name: value[first : first + rows] for name, value in batch.items()}
        if num_counted := _num_counted(part):  # the mean of no tokens is none
            yield part, num_counted


def _num_counted(batch: Batch) -> int:
    """Tokens that are predicted; the first of a sequence never is."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
