"""NoLoCo: every worker has an anchor of its own, steps along its group's mean and is pulled towards its group.

Legend: N = values in the fragment.
"""

from dataclasses import dataclass

from torch import Tensor

from decentral.outer.gamma import gamma_range
from decentral.outer.rule import Mixed, OuterRule, OuterState, check_settings, check_shapes


@dataclass(frozen=True, slots=True)
class NoLoCo(OuterRule):
    """Heavy ball on the mean pseudo-gradient of a small group, with a pull towards the mean anchor of the group.

    With this worker's anchor a, the group's mean pseudo-gradient d (each member's taken against its own anchor), the
    group's mean anchor b and this worker's momentum buffer m, which starts at zero::

        m <- momentum * m - lr * d - gamma * (a - b)
        a <- a + m

    Without the mean anchor (``mixed.anchor_N`` is ``None``, as for a worker that has found no partner) there is no
    pull, and the step is that of ``DiLoCo(nesterov=False)`` to the bit. Summed over the group the pulls vanish: they
    bring anchors together and leave their mean where it is.

    Args:
        lr: beta of the paper, the outer learning rate, > 0.
        momentum: alpha of the paper, in [0, 1). Without momentum there is no buffer.
        gamma: strength of the pull, inside ``gamma_range(momentum, group_size)``.
        group_size: n, members of a group as it is planned, at least 2.

    Raises:
        ValueError: an argument out of range.

    Source: NoLoCo (arXiv 2506.10911), equations 1 to 3 and 74, and the authors' code (gensyn-ai/noloco). The paper
    takes local parameters minus anchor as the pseudo-gradient, and with that its equation 2 has the wrong sign before
    beta: as printed it climbs. Its own analysis (equation 32) and the code descend, as here. The paper does not say
    which gamma it used; in the code gamma is beta, 0.7.

    Differences: anchor and momentum are float32 where the code keeps the model's type, bfloat16 in the runs; the mean
    pseudo-gradient is weighted by tokens; a group may turn out smaller than planned. Every multiplication and addition
    rounds on its own, so that a run can be computed again to the bit on other processors.
    """

    lr: float = 0.7
    momentum: float = 0.5
    gamma: float = 0.7
    group_size: int = 2

    def __post_init__(self) -> None:
        check_settings(self.lr, self.momentum)
        low, high = gamma_range(self.momentum, self.group_size)
        if not low < self.gamma < high:
            raise ValueError(
                f"gamma must be above {low:.4g} and below {high:.4g} for groups of n = {self.group_size} and "
                f"momentum alpha = {self.momentum:g}, got {self.gamma:g}"
            )

    @property
    def buffers(self) -> tuple[str, ...]:
        """The momentum buffer, if there is momentum."""
        return ("velocity",) if self.momentum else ()

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        """One outer step along the group's mean pseudo-gradient, towards its mean anchor if there is one."""
        check_shapes(self, anchor_N, mixed, state)
        # No sub(..., alpha=...): it is fused on some processors and not on others.
        move_N = mixed.delta_N * -self.lr
        if self.momentum:
            move_N = state.buffers_N[0].mul(self.momentum).add_(move_N)
        if mixed.anchor_N is not None:
            move_N.sub_((anchor_N - mixed.anchor_N).mul_(self.gamma))
        return anchor_N + move_N, OuterState((move_N,) if self.momentum else (), state.num_steps + 1)
