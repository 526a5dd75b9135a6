"""How many blocks each stage holds, and which way of healing that allows. Knows no tensors and no peers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from decentral.errors import ConfigError

#: How a stage whose last holder is gone comes back: see ``recovery.decide``.
Healing = Literal["checkfree+", "checkfree", "checkpoint"]

#: The fewest stages that each needs, the best first: a stage between two others; two pairs to swap.
FEWEST_STAGES: dict[Healing, int] = {"checkfree+": 4, "checkfree": 3, "checkpoint": 1}


@dataclass(frozen=True, slots=True)
class Cut:
    """The blocks of every stage."""

    spans: tuple[tuple[int, int], ...]
    """Stage k, counted from 1, holds the blocks [first, stop) of ``spans[k - 1]``."""
    healing: Healing
    """What this cut allows; with ``"checkpoint"`` alone stages may differ in size."""


def cut(num_blocks: int, num_stages: int, healing: Healing | Literal["auto"]) -> Cut:
    """Cut a model's blocks into stages.

    Args:
        num_blocks: blocks of the model, in order.
        num_stages: at least 1; the head, which holds no blocks, is not counted.
        healing: ``"checkfree"`` and ``"checkfree+"`` need equal stages, of which there are at least 3 and 4;
            ``"auto"`` is the best that is possible.

    Returns:
        Spans without gaps. Their sizes differ by 1 at most, and not at all where stages heal from each other.

    Raises:
        ConfigError: there are fewer blocks than stages, or what was asked for is not possible.
    """
    if not 1 <= num_stages <= num_blocks:
        raise ConfigError(
            f"a model of {num_blocks} blocks cannot be cut into {num_stages} stages",
            hint=f"set pipeline.stages to 1 up to {num_blocks}, or add blocks to the model",
        )
    obstacles = {way: _obstacle(num_blocks, num_stages, way) for way in FEWEST_STAGES}
    chosen = next(way for way, obstacle in obstacles.items() if not obstacle) if healing == "auto" else healing
    if obstacles[chosen]:
        possible = ", ".join(f"'{way}'" for way, obstacle in obstacles.items() if not obstacle)
        raise ConfigError(
            f"pipeline.recovery is '{chosen}', which {obstacles[chosen]}",
            hint=f"with {num_blocks} blocks in {num_stages} stages there is {possible}; 'auto' takes the best",
        )
    bounds = [stage * num_blocks // num_stages for stage in range(num_stages + 1)]
    return Cut(tuple(pairwise(bounds)), chosen)


def _obstacle(num_blocks: int, num_stages: int, healing: Healing) -> str:
    """Why stages cannot heal in this way; empty if they can."""
    if num_stages < FEWEST_STAGES[healing]:
        return f"needs at least {FEWEST_STAGES[healing]} stages; there are {num_stages}"
    if healing != "checkpoint" and num_blocks % num_stages:
        return f"needs equal stages; {num_blocks} blocks cannot be divided by {num_stages}"
    return ""


def check_equal(shapes: Sequence[Sequence[tuple[int, ...]]]) -> None:
    """Check that stages can stand in for each other, parameter by parameter.

    Args:
        shapes: for each stage, from stage 1 on, the shapes of its parameters in order.

    Raises:
        ConfigError: a stage differs from the first; the message names the first one that does.
    """
    for stage, found in enumerate(shapes[1:], start=2):
        if len(found) != len(shapes[0]):
            what = f"has {len(found)} parameters, stage 1 has {len(shapes[0])}"
        elif differing := [pair for pair in zip(found, shapes[0], strict=True) if pair[0] != pair[1]]:
            what = f"has a parameter of shape {differing[0][0]} where stage 1 has {differing[0][1]}"
        else:
            continue
        raise ConfigError(
            f"stage {stage} {what}, so that neither can heal from the other",
            hint="give all blocks the same shape, or set pipeline.recovery = 'checkpoint'",
        )
