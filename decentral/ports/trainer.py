"""The user's side: a model with its inner optimizer and its stream of data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a stretch of inner steps did."""

    tokens: int
    """Tokens trained on."""
    loss: float
    """Mean training loss per token, in nats."""
    grad_norm: float
    """Mean norm of the gradient before clipping."""


class Trainer(Protocol):
    """A model, its inner optimizer and its data. Any class with these methods can be trained by a swarm.

    The engine calls one method at a time, from one thread other than the event loop's. The inner optimizer's state
    is the trainer's own and is never exchanged (DiLoCo, arXiv 2311.08105, section 2).
    """

    def parameters(self) -> Mapping[str, Tensor]:
        """Names and current values of everything the swarm shares, always in the same order with the same shapes."""
        ...

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named parameters (float32 on CPU, a subset of ``parameters()``) and keep the rest."""
        ...

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` inner steps. ``first_step`` is the global step, which drives the learning-rate schedule."""
        ...

    def validate(self) -> float:
        """Mean loss per token (nats) of the current parameters on held-out data."""
        ...


@dataclass(frozen=True, slots=True)
class Seat:
    """What a trainer is told of its place in the run; the second argument of every task's ``build``."""

    run_seed: int
    """Equal on all workers: initial weights."""
    stream_seed: int
    """Drawn from run and identity, different on every worker: its own order of the data."""
    total_steps: int
    """Inner steps of the whole run, for the learning-rate schedule."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    data: tuple[str, ...] = ()
    """Files, folders or globs on this machine; empty for the task's default corpus."""
