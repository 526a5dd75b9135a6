"""How many inner steps a worker takes between two pushes where nobody waits. Knows no tensors, no peers and no time."""

import math
from collections.abc import Iterable


def local_steps(inner_steps: int, own_pace_s: float, paces_s: Iterable[float]) -> int:
    """Steps that a worker finishes in about the time in which the fastest one finishes all of them.

    ``floor(v_own / v_max * H)``, at least 1, where a worker's speed v is H over its pace.

    So all push equally often, and no pseudo-gradient is much older than another.

    Args:
        inner_steps: H, what the fastest worker takes, >= 1.
        own_pace_s: seconds this worker takes for H steps; 0 if it does not know yet.
        paces_s: the same of all workers, this one included or not; those not above 0 are unknown and left out.

    Returns:
        From 1 to H; H while the own pace is unknown.

    Raises:
        ValueError: ``inner_steps`` is below 1.

    Source: Asynchronous Local-SGD (arXiv 2401.09135), dynamic local updates (DyLU).
    """
    if inner_steps < 1:
        raise ValueError(f"inner_steps must be at least 1, got {inner_steps}")
    if not 0 < own_pace_s < math.inf:
        return inner_steps
    fastest_s = min([pace_s for pace_s in paces_s if pace_s > 0], default=own_pace_s)
    # Rounded up before it is cut: a ratio of 3 / 10 of 10 steps is 2.9999999999999996 in floating point.
    return max(1, min(inner_steps, math.floor(inner_steps * fastest_s / own_pace_s * (1 + 1e-12))))
