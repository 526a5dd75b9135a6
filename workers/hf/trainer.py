"""A model of transformers as a ``Trainer``: one model, its optimizer, its data. It knows nothing of the swarm.

Legend: R = sequences of a batch, T = tokens of a sequence.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from decentral.errors import IncapableError
from decentral.ports.trainer import Seat, StepReport
from decentral.tensors.inner import InnerModel
from decentral.workers.hf.cutting import longest_list
from decentral.workers.hf.data import DealtData, TrainingData
from decentral.workers.hf.data.packing import IGNORED
from decentral.workers.hf.model import ends_of
from decentral.workers.hf.settings import HfSettings
from decentral.workers.optimizer import make_optimizers
from decentral.workers.ranks import alone, apart, can_try, forget, least, share_of, spread, summed

_log = logging.getLogger(__name__)
#: Text of a token, roughly.
_BYTES_PER_TOKEN = 4
#: Steps before which ranks try whether there is memory: behind the first the optimizer has its moments.
_TRIED_STEPS = 2

Batch = Mapping[str, Tensor]


class HfTrainer(InnerModel):
    """Trains a causal language model.

    Args:
        settings: of the run.
        seat: length of the run, device, ranks.
        model: in float32 on the CPU.
        named: what of a model's parameters is trained and shared.
        tokenizer: for samples.
        data: of this worker, or of several ranks this one's part.
    """

    def __init__(
        self,
        settings: HfSettings,
        seat: Seat,
        model: nn.Module,
        named: Callable[[nn.Module], Mapping[str, nn.Parameter]],
        tokenizer: PreTrainedTokenizerBase,
        data: TrainingData | DealtData,
    ) -> None:
        config = settings.optimizer
        self._settings = settings
        self._seat = seat
        self._tokenizer = tokenizer
        self._data = data
        share = share_of(settings.batch_sequences, seat)
        self._rows = min(settings.micro_batch or share, share)
        """Sequences that go through the model at a time."""
        self._model = cast(Any, model)
        if settings.activation_checkpointing:
            _checkpoint_activations(self._model)
        path = longest_list(model)
        self._spread = spread(model, cast(nn.ModuleList, model.get_submodule(path)) if path else (), seat)
        self._tries = _TRIED_STEPS if can_try(self._spread) else 0
        self._forward: Any = torch.compile(self._spread) if settings.compile else self._spread
        super().__init__(
            named(model),
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
            # All ranks must take the step or none: what is not finite on one of them is not in the gradient of all.
            grad_norm_sum += self.step(step, loss=losses[-1] if self._seat.num_ranks == 1 else 0.0)
            tokens += _num_counted(batch)
        # Read at the end: behind a step, it would wait until a GPU has taken that before the next one is queued.
        loss = sum(torch.stack(losses).tolist()) / count
        return StepReport(tokens, loss, grad_norm_sum / count, self._data.waited_s - waited_s)

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss of a batch's tokens, in as many parts as the memory asks for; returns the loss.

        Raises:
            IncapableError: the memory does not suffice, and ranks cannot halve a part that others are in as well.
        """
        seat = self._seat
        (counted,) = summed([_num_counted(batch)], seat)
        if self._tries:
            self._tries -= 1
            self._fitted(lambda: self._try(batch))
            self._rows = least(self._rows, seat)
        if seat.num_ranks == 1:
            return self._fitted(lambda: self._accumulate(batch, counted))
        try:
            return self._accumulate(batch, counted / seat.num_ranks)
        except torch.OutOfMemoryError as err:
            raise IncapableError(
                f"out of memory with {self._rows} sequences at a time on rank {seat.rank}, and the other ranks are in "
                "this pass as well",
                hint=f"Begin with fewer: --set task.settings.micro_batch={-(-self._rows // 2)}.",
            ) from err

    def _fitted(self, work: Callable[[], Tensor]) -> Tensor:
        """What ``work`` comes to, with half as many sequences at a time until the memory suffices."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self._rows == 1:
                    raise
            # Outside of the handler, whose traceback holds on to what is to be let go.
            forget(self._spread)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._rows = -(-self._rows // 2)
            _log.warning("out of memory: from now on %d sequences go through the model at a time", self._rows)

    def _try(self, batch: Batch) -> Tensor:
        """Take a part there and back without the other ranks, which would wait for one that has no memory."""
        part, _ = next(self._parts(batch))
        with alone(self._spread):
            loss = self._loss(part)
            loss.backward()  # type: ignore[no-untyped-call]
        forget(self._spread)
        return loss.detach()

    def _accumulate(self, batch: Batch, tokens: float) -> Tensor:
        """See ``_backward``.

        Args:
            batch: or this rank's part of it.
            tokens: of a batch that are predicted, for each rank: gradients are then averaged over ranks.
        """
        total = max(1.0, tokens)
        loss = torch.zeros((), device=self._seat.device)
        parts = list(self._parts(batch))
        for number, (part, num_counted) in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else apart(self._spread):
                share = self._loss(part) * (num_counted / total)
                share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        return loss * (total / max(1, _num_counted(batch)))

    def _parts(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """A batch in parts that go through the model at a time, each with the number of its predicted tokens."""
        for first in range(0, len(batch["labels"]), self._rows):
            part = {name: value[first : first + self._rows] for name, value in batch.items()}
            if num_counted := _num_counted(part):
                yield part, num_counted
            elif self._seat.num_ranks > 1:
                # The mean of no tokens is none, but the other ranks are in this pass: it counts for nothing.
                yield {**part, "labels": part["input_ids"]}, 0

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss (nats per token) on the held-out batches, always the same ones; NaN if there are none."""
        self._model.eval()
        total, tokens = 0.0, 0
        for batch in self._data.validation():
            for part, num_counted in self._parts(batch):
                total += self._loss(part).item() * num_counted
                tokens += num_counted
        total, counted = summed([total, tokens], self._seat)
        return total / counted if counted else math.nan

    def _loss(self, batch: Batch) -> Tensor:
        """Mean loss per token, as the model itself computes it."""
        there = {name: value.to(self._seat.device, non_blocking=True) for name, value in batch.items()}
        bf16 = self._settings.precision == "bf16"
        with torch.autocast(self._seat.device.partition(":")[0], dtype=torch.bfloat16, enabled=bf16):
            loss: Tensor = self._forward(**there, use_cache=False).loss
        return loss

    def state_dict(self) -> Mapping[str, Any]:
        """Of the optimizer and of the data, and how much goes through the model at a time."""
        return {**super().state_dict(), "data": self._data.state_dict(), "rows": self._rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; a rank that was not there before has the optimizer's alone."""
        super().load_state_dict(state)
        if "data" in state:
            self._data.load_state_dict(state["data"])
            self._rows = min(self._rows, int(state["rows"]))
        # A rank that is new has the others' as well: a pass is all ranks'.
        self._rows = least(self._rows, self._seat)

    @torch.no_grad()
    def sample(self, prompt: str = "", num_bytes: int = 400, seed: int = 0) -> str:
        """A continuation of ``prompt`` by the current parameters, the prompt included."""
        self._model.eval()
        start = self._tokenizer(prompt)["input_ids"] if prompt else []
        first = self._tokenizer.bos_token_id
        tokens = torch.tensor([start or [0 if first is None else first]], device=self._seat.device)
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


def _num_counted(batch: Batch) -> int:
    """Tokens that are predicted; the first of a sequence never is."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
