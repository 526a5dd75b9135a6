"""SparseLoCo: plain steps along sparse pseudo-gradients, whose unsent rest decays and stands in for momentum.

Legend: N = values in the fragment.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decentral.outer.rule import Mixed, OuterRule, OuterState, check_settings, check_shapes


@dataclass(frozen=True, slots=True)
class SparseLoCo(OuterRule):
    """SGD without momentum on the mean of what the members sent.

    Worker i has the pseudo-gradient d_i and a residual e_i, of which only it knows (``codecs.feedback``)::

        e_i <- beta * e_i + d_i
        s_i <- Q(TopK(e_i))                  sent
        e_i <- e_i - s_i
        a   <- a - lr * mean_i(s_i)          this rule

    What a coordinate has gathered over some rounds is sent at once when it is large enough, and beta < 1 lets old
    parts fade: the residual does what momentum does elsewhere, on each worker, without a byte.

    Args:
        lr: outer learning rate, > 0. Covenant-72B (arXiv 2603.08163) used 1.0 and, late in the run, 0.65.

    Raises:
        ValueError: ``lr`` out of range.

    Source: SparseLoCo (arXiv 2508.15706); the equations as printed in Covenant-72B. ``mean_i`` is the sum over
    the members divided by their number R, as in print; the public code (templar) divides each coordinate by the number
    of members that sent it, which ``mean_over="senders"`` of the exchange does.

    Differences: the mean is weighted by tokens. The public code scales every contribution to at most the median
    norm; we do not.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        check_settings(self.lr)

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """One outer step along ``mixed.delta_N``; nothing else of ``mixed`` is read."""
        check_shapes(self, anchor_N, mixed, state)
        # Two roundings, as in ``DiLoCo.step``: fused on some processors only, anchors would differ.
        update_N = mixed.delta_N * self.lr
        return torch.sub(anchor_N, update_N, out=update_N), OuterState(num_steps=state.num_steps + 1)
