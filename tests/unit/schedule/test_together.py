"""When stages of a pipeline are saved: alone, and in common all the same."""

import itertools
import math
import random

import pytest

from decentral.schedule.together import steps_between


@pytest.mark.parametrize(
    ("step_s", "steps"), [(1.0, 8), (0.99, 8), (1.25, 8), (1.26, 4), (9.9, 1), (11.0, 1), (0.0, 1 << 40)]
)
def test_a_power_of_two_of_steps_that_takes_no_longer_than_asked_for(step_s: float, steps: int) -> None:
    assert steps_between(10.0, step_s) == steps
    assert steps_between(math.inf, step_s) == 1 << 40


def test_stages_that_measure_their_pace_differently_share_checkpoints() -> None:
    """Whatever they measure within a factor of two: the newest common one is no older than two intervals."""
    for seed in range(300):
        draw = random.Random(seed)
        pace, seconds = math.exp(draw.uniform(-3, 3)), draw.uniform(1, 100)
        between = [steps_between(seconds, pace * draw.uniform(0.75, 1.45)) for _ in range(4)]
        common = [step for step in range(4096) if not any(step % steps for steps in between)]
        gaps = [late - early for early, late in itertools.pairwise(common)]
        assert max(gaps, default=0) <= 2 * min(between), f"seed {seed}"
