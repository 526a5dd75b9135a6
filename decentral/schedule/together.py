"""When the stages of a pipeline are saved: each decides alone, and there are checkpoints common to all. Pure.

All stages count the same inner steps. So they save at the ends of rounds whose numbers are multiples of a power of two:
two stages that measure their pace differently choose powers next to each other, and share every second checkpoint.
"""

import math

#: More rounds than any run has between two checkpoints.
_MAX_ROUNDS = 1 << 30


def rounds_between(seconds: float, round_s: float) -> int:
    """Between two checkpoints: the largest power of two of rounds that take no longer than ``seconds``, at least 1.

    Args:
        seconds: what was asked for.
        round_s: what a round takes, as measured.
    """
    most = seconds / round_s if round_s > 0 else math.inf
    return 1 << int(math.log2(min(most, _MAX_ROUNDS))) if most >= 1 else 1


def is_due(step: int, round_steps: int, round_s: float, *, seconds: float = math.inf, steps: int = 0) -> bool:
    """Whether a stage makes a checkpoint between two of its inner steps.

    The end of the first round is one in any case, so that a run that was stopped early does not begin anew.

    Args:
        step: inner steps behind it.
        round_steps: H.
        round_s: what a round takes, as measured.
        seconds: between two checkpoints; infinite for none.
        steps: at the end of the round in which a multiple of so many falls, in the place of ``seconds``; 0 for never.
    """
    if not step or step % round_steps or not (steps or seconds < math.inf):
        return False
    if step == round_steps:
        return True
    if steps:
        return step // steps > (step - round_steps) // steps
    return step // round_steps % rounds_between(seconds, round_s) == 0
