"""When the stages of a pipeline are saved: each decides alone, and there are checkpoints common to all. Pure.

All stages count the same inner steps. So they save at multiples of a power of two of them: two stages that measure
their pace differently choose powers next to each other, and share every second checkpoint.
"""

import math

#: More steps than any run has between two checkpoints.
_MAX_STEPS = 1 << 40


def steps_between(seconds: float, step_s: float) -> int:
    """Between two checkpoints: the largest power of two of inner steps within ``seconds``, at least 1.

    Args:
        seconds: what was asked for.
        step_s: what a step takes, as measured.
    """
    most = seconds / step_s if step_s > 0 else math.inf
    return 1 << int(math.log2(min(most, _MAX_STEPS))) if most >= 1 else 1
