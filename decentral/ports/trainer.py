"""The user's side: a model with its inner optimizer and its stream of data, and what takes its inner steps."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from decentral.types import Grant, Page


@dataclass(frozen=True, slots=True)
class Size:
    """How large a task is, as its module may tell without building it (``size(settings) -> Size``)."""

    parameters: int
    """Values that the swarm shares."""
    layers: int
    """By which the model can be cut, at least 1."""
    tokens_per_step: int
    """Of an inner step of one worker."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a stretch of inner steps did."""

    tokens: int
    """Tokens trained on."""
    loss: float
    """Mean training loss per token, in nats."""
    grad_norm: float
    """Mean norm of the gradient before clipping."""
    data_s: float = 0.0
    """Seconds of the stretch in which it waited for data, if known."""


class Model(Protocol):
    """Named parameters that a swarm agrees on.

    The engine calls one method at a time, from one thread other than the event loop's.
    """

    def parameters(self) -> Mapping[str, Tensor]:
        """Names and current values of everything the swarm shares, always in the same order with the same shapes.

        Best the parameters themselves and not copies: a blend (``method.mix_alpha``) is then done in their place.
        """
        ...

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named parameters (float32 on CPU, a subset of ``parameters()``) and keep the rest."""
        ...

    def validate(self) -> float:
        """Mean loss per token (nats) of the current parameters on held-out data; NaN if it cannot tell."""
        ...


class Trainer(Model, Protocol):
    """A model, its inner optimizer and its data. Any class with these methods can be trained by a swarm.

    The inner optimizer's state is the trainer's own and is never exchanged (DiLoCo, arXiv 2311.08105, section 2).
    """

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` inner steps. ``first_step`` is the global step, which drives the learning-rate schedule."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """What a trainer, or a model, may have besides: then a resumed worker goes on as if it had never stopped.

    The names are those of torch's own stateful objects. Without them the inner optimizer and the data begin anew.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """All that the next inner steps depend on beside the parameters, which is copied at once.

        That is the inner optimizer, where in the data it is, generators of its own: tensors, numbers, texts, and lists,
        tuples and dicts of these. The global random state of torch, numpy and Python is kept besides.
        """
        ...

    def load_state_dict(self, state: Any, /) -> None:
        """Go on from what ``state_dict`` returned in an earlier life."""
        ...


@runtime_checkable
class Spread(Protocol):
    """What a model has besides whose values no process may read by itself (``run.spread``).

    Its ``parameters`` tell names, shapes and types alone.
    """

    def store(self, into: Mapping[str, Tensor]) -> None:
        """Copy the values of these parameters into the tensors given, which are float32 on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Steps:
    """Inner steps that were taken together."""

    count: int
    report: StepReport
    compute_s: float
    """Of the time that they took; the rest was spent on waiting for others."""


class InnerLoop(Protocol):
    """Takes a worker's inner steps: those of a trainer on this machine, or its part of a pipeline's."""

    async def take(self, first_step: int, count: int, stop: asyncio.Event) -> Steps:
        """Take up to ``count`` inner steps from global step ``first_step`` on; fewer if ``stop`` is set meanwhile."""
        ...

    def over(self) -> None:
        """No more steps will be asked for. Called once: the run is done, or this worker was stopped or has failed."""
        ...


class Claims(Protocol):
    """Settles which worker reads which chunk of a data set (``swarm.rows``). For the thread that trains."""

    def take(self, data: str, num_chunks: int) -> "Future[Grant]":
        """Claim one chunk more.

        Args:
            data: names the data set: the same on all workers that have the same rows, and on no others.
            num_chunks: that an epoch of it has.
        """
        ...

    def page(self, data: str, num_chunks: int) -> Page:
        """What is known to be taken, to be kept with the worker's state."""
        ...

    def remember(self, data: str, num_chunks: int, page: Page, held: Sequence[Grant]) -> Sequence[Grant]:
        """Take in the page of an earlier life, and what it had; returns what of that may be read on.

        Nothing may if rounds can have counted steps that the state does not know of, for these would be taken again.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where weights come from, for those who read them elsewhere."""

    run: str
    method: str
    round: int
    loss: float
    """On held-out data, nats per token; NaN if it was not measured."""
    step: int | None = None
    """Global inner step, if it is known."""
    tokens: int | None = None
    """Trained on, if it is known."""
    num_workers: int = 1
    """Whose tokens these are: of all, or of the one that wrote the weights."""


class Publisher(Protocol):
    """Writes weights as other libraries read them; made by a task's function ``publisher(settings, seat)``."""

    def __call__(self, folder: Path, about: Lineage, weights: Mapping[str, Tensor] | None, /) -> None:
        """Fill a folder.

        Called on any thread, also while the trainer trains.

        Args:
            folder: exists; what is there under the same names is replaced.
            about: the weights.
            weights: by the names of the trainer, float32; ``None`` if they are there already, as ``model.safetensors``.

        Raises:
            OSError: it cannot be written.
        """
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
    model: str = ""
    """Folder or name of weights that this machine has of its own; empty for those that the task names."""
    tokenizer: str = ""
    """Folder or name of a tokenizer, likewise."""
    dataset: str = ""
    """Data sets that were named on this machine; of others no folder is opened."""
    allow_download: bool = False
    """Whether what is named and not here may be downloaded."""
    founding: bool = False
    """Whether the run has its first weights of this trainer; else they come from the swarm or a checkpoint."""
    num_heads: int = 1
    """So many heads of a pipeline share out the rows by their slots; further ones read some a second time."""
    claims: Claims | None = None
    """Shares rows out among the workers; ``None`` where nobody else reads."""
    rank: int = 0
    """Of the processes that are this worker together: which one; each trains on a part of every batch."""
    num_ranks: int = 1
    """So many processes are this worker together."""
    inner: str = "ddp"
    """How they train one model: ``ddp`` (each has all of it) or ``fsdp`` (each has a shard)."""
