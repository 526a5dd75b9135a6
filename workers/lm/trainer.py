"""The language model as a ``Trainer``: one model, its optimizer, its stream of windows. It knows nothing of the swarm.

Legend: B = sequences, T = positions in a window (context + 1).
"""

import torch
from torch import Tensor

from decentral.ports.trainer import Seat, StepReport
from decentral.tensors.inner import InnerModel
from decentral.workers.lm.corpus import Corpus
from decentral.workers.lm.model import ENDS, GPT, cross_entropy
from decentral.workers.lm.settings import LmSettings
from decentral.workers.optimizer import make_optimizers
from decentral.workers.ranks import part_of, spread


class LmTrainer(InnerModel):
    """Trains a GPT on a corpus.

    Args:
        settings: model, optimizer, batch.
        seat: seeds, length of the run, device.
        corpus: text that holds at least one window in each part.
    """

    def __init__(self, settings: LmSettings, seat: Seat, corpus: Corpus) -> None:
        self._settings = settings
        self._seat = seat
        self._corpus = corpus
        self._model = GPT(settings.model, torch.Generator().manual_seed(seat.run_seed))
        self._forward = spread(self._model, self._model.blocks, seat)
        config = settings.optimizer
        super().__init__(
            dict(self._model.named_parameters()),
            lambda named: make_optimizers(named, config, ENDS),
            lambda step: config.learning_rate_at(step, seat.total_steps),
            config.clip_norm,
        )

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` optimizer steps, each on a fresh batch of the worker's stream, or of several ranks on a part.

        A step whose loss or gradient is not finite leaves parameters and moments as they were; it shows in the
        report, whose means are then not finite either.
        """
        losses, grad_norms = zip(*map(self._step, range(first_step, first_step + count)), strict=True)
        # Read at the end: behind a step, it would wait until a GPU has taken that before the next one is queued.
        loss = sum(torch.stack(losses).tolist()) / count
        tokens = count * self._settings.batch_sequences // self._seat.num_ranks * self._settings.model.context
        return StepReport(tokens, loss, sum(grad_norms) / count)

    def _step(self, step: int) -> tuple[Tensor, float]:
        """One inner step; its loss and the norm of its gradient before clipping."""
        settings = self._settings
        window_BT = self._corpus.batch(self._seat.stream_seed, step, settings.batch_sequences, settings.window)
        loss = self._loss(part_of(window_BT, self._seat))
        loss.backward()  # type: ignore[no-untyped-call]
        # All ranks must take the step or none: what is not finite on one of them is not in the gradient of all.
        grad_norm = self.step(step, loss=loss.detach() if self._seat.num_ranks == 1 else 0.0)
        # A copy: the loss itself lies among the activations, whose memory it would hold together as long as it is kept.
        return loss.detach().clone(), grad_norm

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss (nats per byte) on windows that lie evenly over the held-out text, always the same ones."""
        settings = self._settings
        total = 0.0
        for index in range(settings.val_batches):
            total += self._loss(
                self._corpus.held_out_batch(index, settings.val_batches, settings.batch_sequences, settings.window)
            ).item()
        return total / settings.val_batches

    def sample(self, prompt: str = "\ndef ", num_bytes: int = 400, seed: int = 0) -> str:
        """A continuation of ``prompt`` by the current parameters, the prompt included."""
        generator = torch.Generator().manual_seed(seed)
        start = prompt.encode() or b"\n"
        with self._autocast():
            continued = self._model.generate(start, num_bytes, temperature=0.7, top_k=40, generator=generator)
        return prompt + continued.decode(errors="replace")

    def describe(self) -> str:
        """One line about the model and one about the data."""
        config = self._settings.model
        return f"GPT of {config.num_parameters:,} parameters, context {config.context}\n{self._corpus.describe()}"

    def _loss(self, window_BT: Tensor) -> Tensor:
        window_BT = window_BT.to(self._seat.device, non_blocking=True)
        with self._autocast():
            return cross_entropy(self._forward(window_BT[:, :-1]), window_BT[:, 1:])

    def _autocast(self) -> torch.autocast:
        device_type = self._seat.device.partition(":")[0]
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=self._settings.precision == "bf16")
