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
    whole: bool = True
    """Whether every member's values are in every part of the mean."""
    relative: bool = False
    """Whether members brought the change of their pseudo-gradients (see ``outer.ef21``)."""


@dataclass(frozen=True, slots=True)
class OuterState:
    """The outer optimizer's memory of one fragment. Part of what peers must agree on, hence of the digest."""

    buffers_N: tuple[Tensor, ...] = ()
    """What the rule keeps of the past, such as a momentum buffer; as many tensors [N] as it says."""
    num_steps: int = 0
    """Outer steps taken."""
    counted: tuple[PeerId, ...] = ()
    """Members whose references add up to the common one; empty for most rules (see ``outer.ef21``)."""


class OuterRule(Protocol):
    """One algorithm. ``init`` and ``step`` are pure."""

    @property
    def num_buffers(self) -> int:
        """How many tensors its state has."""
        ...

    def init(self, anchor_N: Tensor) -> OuterState:
        """State before the first outer step."""
        ...

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """The next anchor [N] and the next state."""
        ...


def check_shapes(rule: OuterRule, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> None:
    """Refuse tensors that do not belong together.

    Raises:
        ValueError: shapes differ, or the state has not the buffers of ``rule``.
    """
    tensors = (anchor_N, mixed.delta_N, *state.buffers_N)
    if len(state.buffers_N) != rule.num_buffers or len({tensor.shape for tensor in tensors}) > 1:
        shapes = ", ".join(str(list(buffer_N.shape)) for buffer_N in state.buffers_N)
        raise ValueError(
            f"anchor {list(anchor_N.shape)}, pseudo-gradient {list(mixed.delta_N.shape)} and buffers ({shapes}) do not "
            f"belong together: equal shapes and {rule.num_buffers} buffers are needed"
        )
