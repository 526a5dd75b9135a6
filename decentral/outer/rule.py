"""The interface of an outer rule: what turns the mixed pseudo-gradient of a round into the next anchor.

Legend: N = values in the fragment. All tensors are float32 on CPU. Rules are pure: they return new tensors and
leave their arguments as they were, so a round that is aborted later has changed nothing.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from decentral.types import PeerId


@dataclass(frozen=True, slots=True)
class Mixed:
    """What came out of an exchange."""

    delta_N: Tensor
    """Weighted mean of the members' pseudo-gradients (anchor minus local parameters)."""
    members: tuple[PeerId, ...]
    """Who took part, in the participants' order."""
    anchor_N: Tensor | None = None
    """Mean of the members' anchors, for rules of gossip; ``None`` in an all-reduce, where anchors are equal."""
    missed: tuple[tuple[int, int], ...] = ()
    """Ranges [start, stop) of the fragment that were closed without our own part."""
    whole: bool = True
    """Whether every member's values are in every part of the mean, as they were brought."""
    relative: bool = False
    """Whether members brought the change of their pseudo-gradients (see ``outer.ef21``)."""

    def emptied(self) -> "Mixed":
        """Who took part, without the values: for those who only tell of it."""
        return replace(self, delta_N=self.delta_N.new_empty(0), anchor_N=None)


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
    """One algorithm, pure. A rule says how many tensors it remembers and how it steps; they all start at zero."""

    @property
    def buffers(self) -> tuple[str, ...]:
        """What each tensor of its state is. Another rule's of the same name can go on from it."""
        return ()

    @property
    def num_buffers(self) -> int:
        """How many tensors its state has."""
        return len(self.buffers)

    def init(self, anchor_N: Tensor) -> OuterState:
        """State before the first outer step of a fragment shaped as ``anchor_N`` [N]."""
        return OuterState(tuple(torch.zeros_like(anchor_N) for _ in range(self.num_buffers)))

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """Take one outer step.

        Args:
            anchor_N: the anchor [N] that this worker's pseudo-gradient was taken against.
            mixed: what the exchange returned.
            state: the state that belongs to ``anchor_N``.

        Returns:
            The next anchor [N] and the next state, both in fresh memory unless the rule says otherwise.

        Raises:
            ValueError: tensors differ in shape, or the state is another rule's.
        """
        ...


def check_settings(lr: float, momentum: float = 0.0) -> None:
    """Refuse settings with which no rule descends.

    Raises:
        ValueError: ``lr`` is not a finite number above 0, or ``momentum`` is not in [0, 1).
    """
    if not 0 < lr < float("inf"):
        raise ValueError(f"the outer learning rate must be finite and above 0, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"the outer momentum must be at least 0 and below 1, got {momentum}")


def check_shapes(rule: OuterRule, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> None:
    """Refuse tensors that do not belong together.

    Raises:
        ValueError: shapes differ, or the state has not the buffers of ``rule``.
    """
    mean_anchors = () if mixed.anchor_N is None else (mixed.anchor_N,)
    tensors = (anchor_N, mixed.delta_N, *mean_anchors, *state.buffers_N)
    if len(state.buffers_N) != rule.num_buffers or len({tensor.shape for tensor in tensors}) > 1:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (*mean_anchors, *state.buffers_N))
        raise ValueError(
            f"anchor {list(anchor_N.shape)}, pseudo-gradient {list(mixed.delta_N.shape)} and the rest ({shapes}) do "
            f"not belong together: equal shapes and {rule.num_buffers} buffers are needed"
        )
