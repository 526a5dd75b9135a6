"""The loop of the peers' bench: where a worker is, what it trains, and what that costs. Knows none of the libraries."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from decentral.ports.trainer import Seat, StepReport
from decentral.workers.lm.corpus import load_corpus
from decentral.workers.lm.settings import read_settings
from decentral.workers.lm.trainer import LmTrainer
from scripts.benches.lib.command import BenchError
from scripts.benches.lib.costs import memory_bytes, processor_s, sent_bytes

#: For what anybody waits for; the bench ends a cell that takes longer.
WAIT_S: Final = 120.0
#: Shorter waits are not noted: a call that finds nothing to do.
_SHORT_S: Final = 2e-4


@dataclass(frozen=True)
class Place:
    """Where a worker is in its cell, as the bench tells it."""

    system: str
    rank: int
    folder: Path
    """That all workers of the cell have."""
    address: str
    hosts: list[str]
    """Addresses of all workers, and behind them that of a server."""
    interface: str
    seed: int
    steps: int
    inner_steps: int
    settings: dict[str, Any]
    """Of the language model."""
    values: int = 0
    """So many are averaged every step, and nothing is trained; 0 to train."""

    @property
    def rounds(self) -> int:
        """That there are to be."""
        return self.steps // self.inner_steps

    @property
    def members(self) -> int:
        """How many workers there are."""
        return len(self.hosts) - 1

    def tell(self, name: str, text: str = "") -> None:
        """Leave a word for the others of the cell."""
        part = self.folder / f"{name}.part"
        part.write_text(text)
        part.rename(self.folder / name)

    def told(self, name: str) -> str:
        """Another one's word.

        Raises:
            BenchError: it does not come in time.
        """
        until = time.monotonic() + WAIT_S
        while not (self.folder / name).exists():
            if time.monotonic() > until:
                raise BenchError(f"worker {self.rank}: no {name} within {WAIT_S:.0f} s")
            time.sleep(0.02)
        return (self.folder / name).read_text()

    def meet(self, name: str) -> None:
        """Wait until all workers are here."""
        self.tell(f"{name}-{self.rank}")
        for rank in range(self.members):
            self.told(f"{name}-{rank}")


class Local(LmTrainer):
    """The language model's trainer, with what other libraries want of it in reach."""

    def __init__(self, place: Place) -> None:
        settings = read_settings(place.settings)
        stream = 1000 * (place.seed + 1) + place.rank
        seat = Seat(run_seed=place.seed, stream_seed=stream, total_steps=place.steps)
        super().__init__(settings, seat, load_corpus((), settings.window))
        self.batch = settings.batch_sequences

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self._model

    def through(self, module: nn.Module) -> None:
        """Have another module called in the place of the model."""
        self._forward = module

    @property
    def optimizer(self) -> Any:
        """The inner one: whatever has its ``param_groups`` and its ``step``."""
        return self._optimizers[0]

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        self._optimizers = (optimizer,)


class Values:
    """In the place of a trainer: so many values, and steps that are one pass over them."""

    def __init__(self, place: Place) -> None:
        generator = torch.Generator().manual_seed(place.rank)
        self.values = torch.randn(place.values, generator=generator)
        self._growth = 1 + 0.01 * (1 + place.rank)

    def parameters(self) -> Mapping[str, Tensor]:
        """The values, as one."""
        return {"values": self.values}

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Each worker's values grow at a rate of its own: what is averaged is never 0, nor equal."""
        self.values.mul_(self._growth)
        return StepReport(count, 0.0, 0.0)


class Loop:
    """The training loop and what it costs.

    Args:
        place: of the worker.
        trainer: called for one step at a time.
    """

    def __init__(self, place: Place, trainer: Any) -> None:
        self._place = place
        self._trainer = trainer
        self.step = 0
        """Steps behind it."""
        self.rounds: Callable[[], int] = lambda: self.step // place.inner_steps
        """Rounds behind it."""
        self._tokens = 0
        self._waits: list[tuple[int, float]] = []
        self._curve: list[tuple[int, float]] = []

    def begin(self) -> None:
        """When all workers are ready for their first step."""
        self._place.meet("ready")
        self._own = (processor_s(os.getpid()), sent_bytes(self._place.interface))
        self._began = time.monotonic()

    def take(self, count: int = 1) -> StepReport:
        """Inner steps."""
        report: StepReport = self._trainer.train_steps(self.step, count)
        self.step += count
        self._tokens += report.tokens
        return report

    def waited(self, seconds: float) -> None:
        """The loop stood still for so long after a step; what is too short to count is left out."""
        if seconds > _SHORT_S:
            self._waits.append((self.step, seconds))

    def keep(self) -> None:
        """Write down the weights for the bench to validate, if this is the end of a round."""
        if (round_ := self.rounds()) > len(self._curve) and isinstance(self._trainer, LmTrainer):
            self._curve.append((round_, time.monotonic() - self._began))
            weights = {name: value.clone() for name, value in self._trainer.parameters().items()}
            torch.save(weights, self._place.folder / f"weights-{self._place.rank}-{round_}.pt")

    def run(self, after: Callable[[StepReport], None] | None = None) -> None:
        """All rounds, with what is to be done after each step."""
        self.begin()
        while self.rounds() < self._place.rounds:
            report = self.take()
            if after is not None:
                began = time.monotonic()
                after(report)
                self.waited(time.monotonic() - began)
            self.keep()
        self.end()

    def end(self) -> None:
        """After the last step, while the others' processes still live."""
        processor, sent = self._own
        self.record = {
            "wall_s": time.monotonic() - self._began,
            "tokens": self._tokens,
            "waits": self._waits,
            "processor_s": processor_s(os.getpid()) - processor,
            "sent_bytes": sent_bytes(self._place.interface) - sent,
            "memory_bytes": memory_bytes(os.getpid()),
            "curve": self._curve,
        }
        self._place.meet("ended")
