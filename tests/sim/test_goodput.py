"""Learners that fail every few minutes: hardly more is lost than the time for which they stand."""

import pytest

from scripts.benches.goodput import Case, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arm", "at_most_s"), [("all-reduce", 8.0), ("gossip", 8.0), ("async", 8.0), ("all-reduce, H = 24, kept", 5.0)]
)
def test_a_failure_costs_seconds_beyond_the_stop(arm: str, at_most_s: float) -> None:
    case = Case(arm, learners=6, chips=900_000, length_s=400.0)
    found = [measure(case, seed) for seed in range(3)]
    failures = sum(each["failures"] for each in found)
    assert failures > 20
    lost_s = sum(each["up"] - each["goodput"] for each in found) * case.learners * case.length_s
    assert lost_s / failures < at_most_s
