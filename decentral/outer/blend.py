"""How a worker's local parameters take in a new anchor. Pure but for ``blend_``: new tensors, arguments unchanged.

Legend: N = values in the fragment. All tensors are float32 on the CPU.
"""

import torch
from torch import Tensor


def blend(local_N: Tensor, anchor_N: Tensor, alpha: float) -> Tensor:
    """Mix the local parameters with the anchor that has just been agreed on.

    ``local <- alpha * local + (1 - alpha) * anchor``

    Args:
        local_N: local parameters [N], including the steps taken while the exchange was under way.
        anchor_N: the new anchor [N].
        alpha: share of the local parameters, in [0, 1]. 0 restarts from the anchor (DiLoCo; steps taken during the
            exchange are lost), 1 leaves the local parameters alone.

    Returns:
        The new local parameters [N]; bit for bit the anchor for 0 and the local parameters for 1.

    Raises:
        ValueError: ``alpha`` is out of range.

    Source: Streaming DiLoCo (arXiv 2501.18512), the merge of the receive step. The anchor itself is never mixed.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"the local share alpha must be between 0 and 1, got {alpha}")
    if alpha in (0, 1):
        return local_N.clone() if alpha else anchor_N.clone()
    return torch.lerp(anchor_N, local_N, alpha)


def blend_(local_N: Tensor, anchor_N: Tensor, alpha: float) -> None:
    """``blend`` in place of the local parameters, to the same bits: what training waits for is one pass over them.

    Args:
        local_N: local parameters of any shape, overwritten.
        anchor_N: the new anchor of that shape, on the same device.
        alpha: share of the local parameters, above 0 and below 1.
    """
    torch.lerp(anchor_N, local_N, alpha, out=local_N)


def rebase(local_N: Tensor, old_anchor_N: Tensor, new_anchor_N: Tensor) -> Tensor:
    """Move the local parameters from one anchor to another and keep the work done since the old one.

    ``local <- local + (new_anchor - old_anchor)``

    A worker that missed a round must adopt the swarm's anchor, or its next pseudo-gradient would be taken against a
    base that nobody else holds. Restarting from the new anchor would throw away steps that no mean has seen. After
    the shift the pseudo-gradient is what it was, ``new_anchor - local = old_anchor - local_before``, up to rounding;
    so the unsent work enters the next round in full.

    Args:
        local_N: local parameters [N].
        old_anchor_N: the anchor [N] they were trained from.
        new_anchor_N: the anchor [N] of the swarm.

    Returns:
        The new local parameters [N].

    Source: our own rule. In DiLoCo (arXiv 2311.08105), dropped communication, such a worker trains on from its own
    unmoved parameters until the next round. Taken against the new anchor, its pseudo-gradient would then contain
    the swarm's step with the sign reversed, and undo a part of it.
    """
    return torch.sub(new_anchor_N, old_anchor_N).add_(local_N)
