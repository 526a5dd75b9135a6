"""All that a worker needs to go on as if it had never stopped. The engine makes and takes it, a file keeps it.

Everything is by the name of a parameter and never by fragment, so that a run can be resumed with another cut, method,
codec or number of workers. It knows neither files nor the engine: whoever writes it does not look into its meaning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker between two of its inner steps, anywhere in a round. All tensors are float32 on the CPU.

    Nothing in it is changed after it was made: anchors and outer state are those that the worker itself refers to, the
    rest are copies. So it can be written by another thread while the training goes on.
    """

    step: int
    """Inner steps behind the run, as this worker counts them."""
    round: int
    """The earliest that a fragment has not finished."""
    tokens: int
    """This worker has trained on, in all its lives."""
    digest: str
    """Of anchors and outer state (``Snapshot.name``)."""
    closed: bool
    """Whether the worker left in order: it launched nothing after this, and nobody has counted what is open here."""
    anchors: Mapping[str, Tensor]
    """By parameter: the weights that a run is about."""
    outer: Mapping[str, Tensor]
    """``<number of the buffer>/<parameter>``: outer momentum and whatever else the outer rule keeps."""
    own: Mapping[str, Tensor]
    """``<role>/<parameter>``: local parameters, residuals, eager's lead, work on its way, a server's buffers."""
    facts: Mapping[str, Any]
    """All that is no tensor, as plain JSON: rounds and counts by fragment, pending work, syncs on their way, ..."""
    trainer: Mapping[str, Any]
    """The ``state_dict`` of the trainer: inner optimizer, data position, random state. Empty if it has none."""
    val_loss: float = math.nan
    """Of these anchors, nats per token; NaN if they were not validated."""

    @property
    def tensor_bytes(self) -> int:
        """Of all tensors but the trainer's."""
        return sum(value.nbytes for named in (self.anchors, self.outer, self.own) for value in named.values())


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a state on its way to disk."""

    path: str
    nbytes: int
