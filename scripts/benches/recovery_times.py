"""How long each method takes to a loss: from recorded runs, and for checkpoints from the run without failures.

A rollback replays the same batches from the same state, so the loss at a step is the one of the run without failures
(held in tests/unit/scripts), and only the iterations spent until that step have to be counted. Redundant computation
loses nothing at all. Knows neither files nor tables.
"""

import itertools
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from scripts.benches.recovery_pipeline import draw_failures

#: Validations in the trailing mean of a curve.
SMOOTHED = 5


@dataclass(frozen=True)
class Taken:
    """What it took to reach a loss."""

    iterations: float
    """NaN if it was not reached."""
    recoveries: float = 0
    """Iterations before it that began with something lost."""
    saves: float = 0
    """Checkpoints written before it."""


def smooth(losses: Sequence[float]) -> list[float]:
    """Mean of each value and the four before it; NaN for the first four."""
    means = [math.nan] * (SMOOTHED - 1)
    return means + [math.fsum(losses[end - SMOOTHED : end]) / SMOOTHED for end in range(SMOOTHED, len(losses) + 1)]


def reached(losses: Sequence[float], every: int, target: float) -> float:
    """Iterations until the smoothed curve first is at ``target``, between two validations by a line; NaN if never."""
    curve = smooth(losses)
    for index, (before, after) in enumerate(itertools.pairwise(curve)):
        if after <= target < before:
            return every * (index + (before - target) / (before - after))
    return math.nan


def healed(run: Mapping[str, Any], target: float) -> Taken:
    """What a recorded run took."""
    iterations = reached(run["losses"], run["every"], target)
    lost = {iteration for iteration, *_ in run["lost"]}
    return Taken(iterations, sum(iteration < iterations for iteration in lost))


def rolled_back(steps: float, interval: int, seed: int, probability: float, stages: Set[int]) -> Taken:
    """What ``steps`` steps take with a checkpoint every ``interval`` of them and the failures of a seed."""
    horizon = math.ceil(steps)
    failures: list[tuple[int, ...]] = []
    iteration = step = stored = recoveries = saves = 0
    while step < horizon:
        if iteration == len(failures):
            failures = draw_failures(seed, 2 * len(failures) + 2 * horizon, probability, stages)
        if failures[iteration]:
            recoveries += 1
            step = stored
        iteration += 1
        step += 1
        if step % interval == 0:
            stored = step
            saves += 1
    return Taken(iteration - (horizon - steps), recoveries, saves)


def expected(steps: float, interval: int, probability: float, num_stages: int) -> float:
    """Mean iterations for ``steps`` steps over all draws: ``((1 - q)^-I - 1) / q`` for every I steps.

    ``q`` is the probability that an iteration begins with a failure, which takes an interval back to its start.
    """
    q = 1 - (1 - probability) ** num_stages
    return steps / interval * ((1 - q) ** -interval - 1) / q if q else steps
