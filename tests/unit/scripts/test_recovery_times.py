"""Times to a loss are counted as runs would have them."""

import math
import statistics

import pytest

from scripts.benches.recovery_pipeline import draw_failures
from scripts.benches.recovery_times import Taken, expected, healed, reached, rolled_back

INNER = {2, 3, 4, 5}


def test_the_first_crossing_of_the_trailing_mean_counts() -> None:
    losses = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 5.0]  # Means of five: 3 at index 4, 2 at 5, 2.2 at 6.
    assert reached(losses, 20, 2.5) == pytest.approx(90)
    assert reached(losses, 20, 2.0) == 100
    assert math.isnan(reached(losses, 20, 1.9))


def test_only_recoveries_before_the_target_count_and_those_of_an_iteration_once() -> None:
    lost = [
        [30, 2, "blend", 1.0, 1.0],
        [30, 4, "blend", 1.0, 1.0],
        [89, 3, "blend", 1.0, 1.0],
        [95, 3, "blend", 1.0, 1.0],
    ]
    run = {"losses": [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], "every": 20, "lost": lost}
    assert healed(run, 2.5) == Taken(pytest.approx(90), recoveries=2)


def test_rollbacks_by_hand() -> None:
    seed, probability, interval = 5, 0.02, 10
    failures = draw_failures(seed, 500, probability, INNER)
    step = stored = iteration = recoveries = 0
    while step < 60:
        if failures[iteration]:
            step, recoveries = stored, recoveries + 1
        iteration, step = iteration + 1, step + 1
        stored = step - step % interval if step % interval == 0 else stored
    assert recoveries > 2
    assert rolled_back(60, interval, seed, probability, INNER) == Taken(iteration, recoveries, 6)
    assert rolled_back(59.5, interval, seed, probability, INNER).iterations == iteration - 0.5


def test_without_failures_every_step_is_one_iteration() -> None:
    assert rolled_back(95, 10, 0, 0.0, INNER) == Taken(95, 0, 9)
    assert expected(95, 10, 0.0, 4) == 95


def test_the_expectation_is_the_mean_of_the_draws() -> None:
    probability, interval, steps = 0.004, 50, 500
    found = [rolled_back(steps, interval, seed, probability, INNER).iterations for seed in range(150)]
    mean, error = statistics.mean(found), statistics.stdev(found) / math.sqrt(len(found))
    assert abs(mean - expected(steps, interval, probability, 4)) < 4 * error + 0.01 * mean
