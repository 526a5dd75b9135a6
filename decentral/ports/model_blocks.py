"""A model in pieces for a pipeline: an embedding, an ordered list of blocks, an output layer, and a source of batches.

A task that offers ``blocks(settings, seat, num_microbatches) -> ModelBlocks`` can be trained by stages, each of which
holds some of the blocks. Nothing here knows how many stages there are.

Legend: B = sequences of a micro-batch, T = positions, D = width of the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class BatchSource(Protocol):
    """Training and held-out data of a head. Tokens and labels never leave it."""

    @property
    def num_held_out(self) -> int:
        """Micro-batches of held-out data."""
        ...

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one micro-batch: a function of its arguments and the run's seed alone.

        Args:
            slot: stream of data, >= 0. A head's successor goes on with its slot, so the answer must not depend on
                whose process asks.
            batch: number of the batch in that stream, from 0.
            index: number of the micro-batch in the batch, from 0.
        """
        ...

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of held-out micro-batch ``index``, always the same ones."""
        ...


@dataclass(frozen=True, slots=True)
class ModelBlocks:
    """What a task's ``blocks(settings, seat, num_microbatches)`` returns.

    The modules' parameter names together are those of the whole model: those of the embedding and of the output layer
    as they are, those of block i behind ``{path}.{i}.``. No name may stand for two parameters; one that embedding and
    output share (tied weights) counts once, under its name in the embedding. Parameters that take no gradient are
    neither trained nor shared. Every module is initialised from the run's seed and its own place alone, so that a
    machine builds only what it holds and all machines build the same.
    """

    num_blocks: int
    activation_shape: tuple[int, ...]
    """Of a micro-batch between blocks, float32, commonly [B, T, D]."""
    num_tokens: int
    """Targets of a micro-batch."""
    embedding: Callable[[], nn.Module]
    """A fresh one: ``forward(inputs) -> x``."""
    block: Callable[[int], nn.Module]
    """A fresh block i: ``forward(x) -> x`` of the same shape and dtype; ``forward(x, marks)`` if there are marks."""
    output: Callable[[nn.Module], nn.Module]
    """A fresh one on top of that embedding, whose weights it may share: ``forward(x, targets) -> mean loss``."""
    optimizer: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer | Sequence[torch.optim.Optimizer]]
    """A fresh inner optimizer of these parameters, or several, each of some of them."""
    learning_rate: Callable[[int], float]
    """By the global step; written to all groups of an optimizer before a step."""
    clip_norm: float
    """Largest norm of a stage's gradient; larger ones are scaled down to it."""
    data: Callable[[], BatchSource]
    """Opened by heads alone. Raises ``DataError``."""
    check: Callable[[int, bool, str], None]
    """``check(num_blocks, is_head, device)`` raises ``IncapableError`` if this machine cannot train so much of it."""
    settings: Callable[[], Mapping[str, Any]] = dict
    """What only a founder finds out, to be added to the task's settings by key. Raises ``ConfigError``."""
    path: str = "blocks"
    """Where the blocks are in the whole model; no name of the embedding or the output layer begins like theirs."""
    marks_bytes: int = 0
    """Of what ``marks`` gives, always as many."""
    marks: Callable[[Tensor], bytes] = lambda inputs: b""
    """What all blocks have to know of a micro-batch's inputs, beside activations. It leaves the head."""
