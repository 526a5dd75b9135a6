"""When stages of a pipeline are saved: alone, and in common all the same."""

import itertools
import math
import random

import pytest

from decentral.schedule.together import is_due, rounds_between


@pytest.mark.parametrize(
    ("round_s", "rounds"), [(1.0, 8), (0.99, 8), (1.25, 8), (1.26, 4), (9.9, 1), (11.0, 1), (0.0, 1 << 30)]
)
def test_a_power_of_two_of_rounds_that_takes_no_longer_than_asked_for(round_s: float, rounds: int) -> None:
    assert rounds_between(10.0, round_s) == rounds


def test_only_ends_of_rounds_and_the_first_of_them_in_any_case() -> None:
    due = [step for step in range(60) if is_due(step, 5, 1.0, seconds=4.5)]
    assert due == [5, 20, 40]
    assert not any(is_due(step, 5, 1.0) for step in range(60))


def test_by_steps_at_the_end_of_the_round_in_which_a_multiple_falls() -> None:
    assert [step for step in range(100) if is_due(step, 7, 1.0, steps=30)] == [7, 35, 63, 91]
    assert [step for step in range(100) if is_due(step, 10, 1.0, steps=3)] == list(range(10, 100, 10))


def test_stages_that_measure_their_pace_differently_share_checkpoints() -> None:
    """Whatever they measure within a factor of two: the newest common one is no older than two intervals."""
    for seed in range(300):
        draw = random.Random(seed)
        pace, seconds, steps = math.exp(draw.uniform(-3, 3)), draw.uniform(1, 100), draw.randint(1, 50)
        paces = [pace * draw.uniform(0.75, 1.45) for _ in range(4)]
        saved = [
            {step for step in range(0, 400 * steps, steps) if is_due(step, steps, one, seconds=seconds)}
            for one in paces
        ]
        common = sorted(set.intersection(*saved))
        longest = 2 * rounds_between(seconds, min(paces)) * steps
        gaps = [late - early for early, late in itertools.pairwise(common)]
        assert max(gaps, default=0) <= longest, f"seed {seed}"
