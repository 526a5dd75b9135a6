"""DiLoCo: averaged pseudo-gradients through Nesterov momentum, or through a heavy ball.

Legend: N = values in the fragment.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decentral.outer.rule import Mixed, OuterRule, OuterState, check_settings, check_shapes
from decentral.tensors.blank import blank_like


@dataclass(frozen=True, slots=True)
class DiLoCo(OuterRule):
    """SGD with momentum on the mean pseudo-gradient.

    With anchor a, mean pseudo-gradient d (anchor minus local parameters, weighted by tokens), momentum buffer m,
    learning rate ``lr`` and momentum ``momentum``::

        m <- momentum * m + d
        a <- a - lr * (d + momentum * m)

    m starts at zero, so the first step is (1 + momentum) times that of plain SGD. Without ``nesterov`` it is a heavy
    ball, whose first step is that of plain SGD, with the learning rate inside the buffer::

        m <- momentum * m - lr * d
        a <- a + m

    Without momentum both are plain SGD, and there is no buffer.

    Args:
        lr: outer learning rate, > 0. The paper's best is 0.7.
        momentum: in [0, 1). The paper's best is 0.9; 0 is plain SGD, and with ``lr=1`` plain averaging.
        nesterov: the first form; else the heavy ball.

    Raises:
        ValueError: an argument out of range.

    Source: DiLoCo (arXiv 2311.08105), algorithm 1 with the outer optimizer Nesterov. The paper does not print the
    recursion; this is the one of ``torch.optim.SGD(nesterov=True)``, which public implementations use. The
    heavy ball is the baseline of NoLoCo's code (gensyn-ai/noloco), and for a constant ``lr`` the anchors are those of
    ``torch.optim.SGD(nesterov=False)``.

    Differences: the mean is weighted by tokens where the paper takes the plain mean over equal workers; the outer
    rule runs on the CPU, one fragment at a time. Every multiplication and addition rounds on its own: a fused
    multiply-add gives other last bits on other processors, and members compare anchors bit by bit.
    """

    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        check_settings(self.lr, self.momentum)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The momentum buffer, if there is momentum; that of the heavy ball contains the learning rate."""
        if not self.momentum:
            return ()
        return ("momentum",) if self.nesterov else ("velocity",)

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """One outer step along ``mixed.delta_N``; nothing else of ``mixed`` is read."""
        check_shapes(self, anchor_N, mixed, state)
        delta_N, num_steps = mixed.delta_N, state.num_steps + 1
        # No add(..., alpha=...): it is fused on some processors and not on others (see the docstring of the class).
        if not self.momentum:
            update_N = torch.mul(delta_N, self.lr, out=blank_like(anchor_N))
            return torch.sub(anchor_N, update_N, out=update_N), OuterState(num_steps=num_steps)
        if not self.nesterov:
            momentum_N = torch.mul(state.buffers_N[0], self.momentum, out=blank_like(anchor_N)).sub_(delta_N * self.lr)
            return anchor_N + momentum_N, OuterState((momentum_N,), num_steps)
        momentum_N = torch.mul(state.buffers_N[0], self.momentum, out=blank_like(anchor_N)).add_(delta_N)
        update_N = torch.mul(momentum_N, self.momentum, out=blank_like(anchor_N)).add_(delta_N).mul_(self.lr)
        next_N = torch.sub(anchor_N, update_N, out=update_N)
        return next_N, OuterState((momentum_N,), num_steps)
