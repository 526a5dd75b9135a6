"""Delayed Nesterov: pseudo-gradients that come one by one move the anchor at once, momentum only now and then.

Legend: N = values in the fragment.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decentral.outer.rule import check_settings


@dataclass(frozen=True, slots=True)
class Delayed:
    """What the rule remembers of one fragment."""

    momentum_N: Tensor
    gathered_N: Tensor
    """Sum of the pseudo-gradients since the momentum last changed."""
    num_gathered: int = 0
    spent: float = 0.0
    """How much of the momentum step was taken since then, as a share of the whole."""


@dataclass(frozen=True, slots=True)
class DelayedNesterov:
    """SGD on every pseudo-gradient as it comes, Nesterov momentum on the mean of every N of them.

    With anchor a, the pseudo-gradient g that has just arrived, sum D, momentum buffer m, learning rate ``lr``,
    momentum ``momentum`` and share c::

        D <- D + g
        the N-th since m last changed:  m <- momentum * m + D / N
                                        a <- a - lr * ((1 - c N + c) * momentum * m + g / N)
                                        D <- 0
        any other:                      a <- a - lr * (c * momentum * m + g / N)

    Over N arrivals the anchor moves by ``lr`` times their mean and by one momentum step. With N = 1 it is
    ``DiLoCo(lr, momentum)``.

    Args:
        lr: epsilon of the paper, the outer learning rate, > 0.
        momentum: beta, in [0, 1).
        share: c, at least 0: how much of the momentum step each arrival but the last takes. What is above 1 / N
            counts as 1 / N, which spreads it evenly.

    Raises:
        ValueError: an argument out of range.

    Source: Asynchronous Local-SGD (arXiv 2401.09135), the delayed Nesterov update; its best share is 0. The finding
    behind it: momentum gathered from stale pseudo-gradients one by one is what hurts, not that they are stale.

    Differences: N may change between arrivals, as workers come and go. D is divided by the number of
    pseudo-gradients in it, and the last arrival takes what is left of the momentum step; for a constant N these are
    N and 1 - c N + c.
    """

    lr: float = 0.7
    momentum: float = 0.9
    share: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self.lr, self.momentum)
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of the momentum step must be between 0 and 1, got {self.share}")

    def init(self, anchor_N: Tensor) -> Delayed:
        """State before the first arrival for a fragment shaped as ``anchor_N`` [N]."""
        return Delayed(torch.zeros_like(anchor_N), torch.zeros_like(anchor_N))

    def step(self, anchor_N: Tensor, delta_N: Tensor, state: Delayed, every: int) -> tuple[Tensor, Delayed]:
        """Take in one pseudo-gradient.

        Args:
            anchor_N: the anchor [N] as it is now, float32 on the CPU.
            delta_N: the pseudo-gradient [N], taken against this anchor or an older one.
            state: the state that belongs to ``anchor_N``.
            every: N, arrivals between two changes of the momentum, >= 1; usually the number of workers.

        Returns:
            The next anchor [N] and the next state, both in fresh memory unless unchanged.

        Raises:
            ValueError: tensors differ in shape, or ``every`` is below 1.
        """
        if every < 1:
            raise ValueError(f"momentum changes after at least one arrival, got {every}")
        if len({tensor.shape for tensor in (anchor_N, delta_N, state.momentum_N, state.gathered_N)}) > 1:
            raise ValueError(f"anchor {list(anchor_N.shape)}, pseudo-gradient and state do not belong together")
        gathered_N, num_gathered = state.gathered_N + delta_N, state.num_gathered + 1
        share = min(self.share, 1 / every)
        is_last = num_gathered >= every
        momentum_N = state.momentum_N
        if is_last:
            share = 1.0 - state.spent
            momentum_N = momentum_N.mul(self.momentum).add_(gathered_N.div_(num_gathered))
        # No add(..., alpha=...): it is fused on some processors and not on others.
        update_N = delta_N / every
        if share and self.momentum:
            update_N.add_(momentum_N * (share * self.momentum))
        next_N = torch.sub(anchor_N, update_N.mul_(self.lr), out=update_N)
        if is_last:
            return next_N, Delayed(momentum_N, torch.zeros_like(anchor_N))
        return next_N, Delayed(momentum_N, gathered_N, num_gathered, state.spent + share)
