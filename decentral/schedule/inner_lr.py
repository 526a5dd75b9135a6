"""The inner learning rate as a function of the global step, so that a late joiner has the same as everybody."""

import math


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int, floor_fraction: float = 0.1) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to the floor.

    With w and T for the numbers of steps and f for ``floor_fraction``::

        step < w       peak * (step + 1) / (w + 1)
        w <= step < T  peak * (f + (1 - f) * (1 + cos(pi * (step - w) / (T - w))) / 2)
        T <= step      peak * f

    The peak is reached at step w. A warm-up longer than the run is a ramp that never arrives.

    Args:
        step: global inner steps finished before this one, >= 0. It never restarts, neither at an outer round nor
            for a joiner.
        peak: highest learning rate.
        warmup_steps: w, >= 0.
        total_steps: T, inner steps of the whole run.
        floor_fraction: lowest learning rate after the warm-up as a fraction of ``peak``, in [0, 1].

    Returns:
        The learning rate of this step, > 0 unless the floor is 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return peak * floor_fraction
    cosine = math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))
    return peak * (floor_fraction + (1 - floor_fraction) * (1 + cosine) / 2)
