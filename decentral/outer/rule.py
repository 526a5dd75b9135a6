"""The interface of an outer rule: what turns the mixed pseudo-gradient of a round into the next anchor.

Legend: N = values in the fragment. All tensors are float32 on CPU. Rules are pure: they return new tensors and
leave their arguments as they were, so a round that is aborted later has changed nothing.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from decentral.types import PeerId


@dataclass(frozen=True, slots=True)
class Mixed:
    """What came out of an exchange."""

    delta_N: Tensor
    """Weighted mean of the members' pseudo-gradients (anchor minus local parameters)."""
    members: tuple[PeerId, ...]
    """Who took part, in the order of the roll."""
    anchor_N: Tensor | None = None
    """Mean of the members' anchors, for rules of gossip; ``None`` in an all-reduce, where anchors are equal."""
    missed: tuple[tuple[int, int], ...] = ()
    """Ranges [start, stop) of the fragment that were closed without our own part."""


@dataclass(frozen=True, slots=True)
class OuterState:
    """The outer optimizer's memory of one fragment. Part of what peers must agree on, hence of the digest."""

    momentum_N: Tensor
    """Momentum buffer."""
    num_steps: int = 0
    """Outer steps taken."""


class OuterRule(Protocol):
    """One algorithm. ``init`` and ``step`` are pure."""

    def init(self, anchor_N: Tensor) -> OuterState:
        """State before the first outer step."""
        ...

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """The next anchor [N] and the next state."""
        ...
