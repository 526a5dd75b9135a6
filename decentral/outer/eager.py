"""Eager updates: a worker goes on from its own fresh work while the round that brings everybody else's is under way.

Legend: N = values in the fragment. All tensors are float32 on the CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from decentral.outer.rule import check_settings


@dataclass(frozen=True, slots=True)
class Eager:
    """Where a worker's next inner phase starts, ahead of the anchor by its own share of the round in flight.

    Let c be the anchor that all workers have agreed on, made by ``DiLoCo`` with the same ``lr`` and ``momentum`` from
    the means of all *finished* rounds; d this worker's fresh pseudo-gradient (where its phase started minus where
    it ended), whose exchange begins now; s the share that it will have in the mean (1 / workers, if weights are
    equal); M a buffer of this worker's own, which starts at zero::

        M     <- momentum * M + s * d
        start <- c - lr * (s * d + momentum * M)

    c lacks d until the exchange is over; then d is in c and has left ``start``, so nothing is counted twice. Summed
    over all workers the leads ``start - c`` are the step that c takes next. Without a finished round, c is the initial
    anchor, and the first start is this worker's own Nesterov step of s * d.

    Args:
        lr: outer learning rate of the anchors' rule, > 0.
        momentum: outer momentum of the anchors' rule, in [0, 1).

    Raises:
        ValueError: an argument out of range.

    Source: eager updates for overlapped DiLoCo (arXiv 2502.12996). There every worker keeps a private anchor and a
    private Nesterov state, both stepped by ``mean(t - 1) + (d(t) - d(t - 1)) / workers``. The recursion is linear: it
    splits into the common anchor, stepped by ``mean(t - 1)``, and the private rest above, with the same starts.

    Differences: anchors stay equal on all workers, so they are compared, repaired and handed to newcomers as without
    eager updates; the share follows the weights. The paper leaves the first round open (d or d / workers).
    """

    lr: float
    momentum: float

    def __post_init__(self) -> None:
        check_settings(self.lr, self.momentum)

    def start(self, anchor_N: Tensor, delta_N: Tensor, share: float, ahead_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """The local parameters with which the next inner phase starts.

        Args:
            anchor_N: c, the common anchor [N] as of the last finished round.
            delta_N: d, this worker's fresh pseudo-gradient [N].
            share: s, its share in the mean to come, in [0, 1].
            ahead_N: M as the last call returned it; ``None`` at first.

        Returns:
            Where to start [N], and the next M [N]; both in fresh memory.

        Raises:
            ValueError: shapes differ, or ``share`` is out of range.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a worker's share in a mean must be between 0 and 1, got {share}")
        given = (anchor_N, delta_N) if ahead_N is None else (anchor_N, delta_N, ahead_N)
        if len({tensor.shape for tensor in given}) > 1:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in given)
            raise ValueError(f"anchor, pseudo-gradient and buffer must have one shape, got {shapes}")
        # No add(..., alpha=...), as in DiLoCo: every operation rounds on its own.
        own_N = delta_N * share
        next_ahead_N = own_N.clone() if ahead_N is None else ahead_N.mul(self.momentum).add_(own_N)
        lead_N = next_ahead_N.mul(self.momentum).add_(own_N).mul_(self.lr)
        return torch.sub(anchor_N, lead_N, out=lead_N), next_ahead_N
