"""Where a stage comes back from when its last holder is gone, and how it is made of its neighbours.

Knows neither peers nor transfers: the answer to "who lives?" goes in, the stages to ask come out.

Legend: N = values of a stage.
"""

import math
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from torch import Tensor

from decentral.pipeline.cut import Healing

#: What a stage weighs: the norm of its gradient or its square.
Norm = Literal["l2", "squared"]

#: Added to what a neighbour weighs, so that two without gradients count equally.
_EPSILON = 1e-4
#: A checkpoint of the stage that is behind the run by no more than this share of it costs less than an average of its
#: neighbours, or as much (docs/algorithms/checkfree.md).
_NEAR = 0.5


class Source(StrEnum):
    """What a stage is restored from."""

    REPLICA = "replica"
    """Another holder of the same stage."""
    INITIAL = "initial"
    """The run's seed: nothing has been trained yet."""
    COPY = "copy"
    """The neighbour that learned its part in swapped micro-batches."""
    KEPT = "kept"
    """A neighbour's exact copy of the head."""
    BLEND = "blend"
    """The weighted mean of both neighbours."""
    CHECKPOINT = "checkpoint"
    """A file."""
    MOVED = "moved"
    """Those who held its blocks before the cut changed; nothing was lost."""
    NOTHING = "nothing"
    """The stage is lost for now: the answer may differ once another stage is back or somebody has a checkpoint."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What to do about a stage."""

    source: Source
    stages: tuple[int, ...] = ()
    """Those to fetch from: both for a blend, any one of them otherwise."""


def decide(
    stage: int,
    *,
    num_stages: int,
    alive: Set[int],
    healing: Healing,
    started: bool,
    kept: Set[int],
    step: int = 0,
    age: int | None = None,
) -> Recovery:
    """Choose what a stage is restored from, the most exact first.

    Args:
        stage: 0 for the head, 1 to ``num_stages`` for stages.
        num_stages: without the head.
        alive: stages with a live holder, the head among them as 0.
        healing: with ``"checkpoint"`` stages do not heal from each other, with ``"checkfree+"`` first, last and head do
            too.
        started: whether any step was taken; before it, all that was lost can be drawn again.
        kept: stages that hold a copy of the head.
        step: at which the run is.
        age: by how many steps the newest checkpoint of the stage that is at hand is behind the run, 0 if it is of the
            very step; ``None`` if there is none.

    Raises:
        ValueError: there is no such stage.

    Source: CheckFree and CheckFree+ (arXiv 2506.15461), and the authors' code (gensyn-ai/CheckFree). Difference: a copy
    stands in for the first and the last stage only, as in the paper; the code copies the second and the last but one
    as well. See docs/algorithms/checkfree.md.
    """
    if not 0 <= stage <= num_stages:
        raise ValueError(f"there is no stage {stage}, only the head 0 and 1 to {num_stages}")
    if stage in alive:
        return Recovery(Source.REPLICA, (stage,))
    if not started:
        return Recovery(Source.INITIAL)
    if age != 0 and healing == "checkfree+" and stage == 0 and (copies := kept & alive):
        return Recovery(Source.KEPT, tuple(sorted(copies)))
    if age is not None and age <= _NEAR * step:
        return Recovery(Source.CHECKPOINT)
    twins = {num_stages: num_stages - 1, 1: 2}
    if healing == "checkfree+" and stage in twins and twins[stage] in alive:
        return Recovery(Source.COPY, (twins[stage],))
    if healing != "checkpoint" and 1 < stage < num_stages and {stage - 1, stage + 1} <= alive:
        return Recovery(Source.BLEND, (stage - 1, stage + 1))
    return Recovery(Source.NOTHING if age is None else Source.CHECKPOINT)


def weights(norm_below: float, norm_above: float, norm: Norm) -> tuple[float, float]:
    """What each neighbour weighs in a blend: ``w_j = |g_j| + 0.0001`` or ``|g_j|^2 + 0.0001``, divided by their sum.

    The neighbour that changes most counts for more.

    Args:
        norm_below: L2 norm of the last mean gradient of the stage before, after clipping.
        norm_above: of the stage behind.
        norm: whether norms count as they are or squared.

    Returns:
        Two weights that sum to 1; a half each if a norm is negative or not a number, or their sum is too large for one.

    Source: CheckFree, algorithm 1; the 0.0001 is in the code only, which takes norms as they are. Differences: both
    readings of the paper are available; what cannot be compared counts equally.
    """
    below, above = (
        value * value + _EPSILON if norm == "squared" else value + _EPSILON for value in (norm_below, norm_above)
    )
    total = below + above
    if not math.isfinite(total) or min(norm_below, norm_above) < 0:
        return 0.5, 0.5
    return below / total, above / total


def blend(below_N: Tensor, above_N: Tensor, norm_below: float, norm_above: float, norm: Norm) -> Tensor:
    """Make a stage of its neighbours: ``(w_below x_below + w_above x_above) / (w_below + w_above)``.

    Args:
        below_N: the stage before [N], float32.
        above_N: the stage behind [N], float32.
        norm_below: see ``weights``.
        norm_above: see ``weights``.
        norm: see ``weights``.

    Returns:
        The lost stage [N], in fresh memory.

    Raises:
        ValueError: the stages differ in shape.

    Source: CheckFree, algorithm 1. It misprints the weight before the stage behind; with the weight of the stage
    before on both, as printed, the result would not be a mean.
    """
    if below_N.shape != above_N.shape:
        raise ValueError(f"neighbours of shapes {tuple(below_N.shape)} and {tuple(above_N.shape)} cannot be blended")
    weight_below, weight_above = weights(norm_below, norm_above, norm)
    return below_N * weight_below + above_N * weight_above


def lr_scale(steps_since: int | None, boost: float, span: int) -> float:
    """By what the learning rate of a stage is multiplied: ``boost`` in the first ``span`` steps after it was healed.

    Args:
        steps_since: steps since the stage was last healed, 0 for the first; ``None`` if it never was.
        boost: 1.1 in the paper.
        span: in steps.

    Source: CheckFree, algorithm 1. Differences: the boost ends, and a second one does not multiply the first, which is
    how the code has it (there it never ends) and not how algorithm 1 reads.
    """
    return boost if steps_since is not None and steps_since < span else 1.0
