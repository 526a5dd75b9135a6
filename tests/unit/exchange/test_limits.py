"""A limit on waiting follows what waits were like."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.exchange.limits import Allowance, Budget, Limit

durations = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=80)


def seen(*seconds: float, factor: float = 2.0, floor_s: float = 0.5) -> Limit:
    limit = Limit(factor, floor_s)
    for each in seconds:
        limit.observe(each)
    return limit


def of(limit: Limit, at_most: float = 1000.0) -> float:
    return limit.seconds(at_first=7.0, at_most=at_most)


def test_at_first_it_is_what_the_caller_says_within_the_bound() -> None:
    assert of(seen()) == 7.0
    assert of(seen(), at_most=3.0) == 3.0


def test_it_is_so_many_times_what_nine_of_ten_did_not_exceed() -> None:
    assert of(seen(*range(1, 21))) == 2.0 * 19
    assert of(seen(4.0)) == 8.0


def test_it_has_a_floor_and_a_bound() -> None:
    assert of(seen(0.01)) == 0.5
    assert of(seen(900.0)) == 1000.0
    assert of(seen(0.01), at_most=0.1) == 0.1, "the bound counts for more than the floor"


def test_one_of_many_changes_nothing() -> None:
    usual = [1.0] * 20
    assert of(seen(*usual, 1e6)) == of(seen(*usual)) == 2.0


def test_what_is_long_ago_is_forgotten() -> None:
    assert of(seen(*[100.0] * 32, *[1.0] * 31)) == 2.0
    assert of(seen(*[1.0] * 32, *[100.0] * 32)) == 200.0


def test_before_its_time_is_at_once() -> None:
    assert of(seen(-5.0)) == of(seen(0.0)) == 0.5


def test_a_limit_that_has_become_too_short_grows_by_itself() -> None:
    limit = seen(*[1.0] * 32)
    for _ in range(100):
        limit.observe(min(40.0, of(limit)))
    assert of(limit) == pytest.approx(80.0)


@settings(max_examples=40)
@given(seconds=durations, at_most=st.floats(0.1, 1e6))
def test_always_between_floor_and_bound(seconds: list[float], at_most: float) -> None:
    limit = seen(*seconds)
    assert min(0.5, at_most) <= of(limit, at_most) <= at_most
    assert of(limit, 1e9) <= max(0.5, 2.0 * max(seconds))


def test_an_allowance_is_spent_and_comes_back_at_its_rate() -> None:
    allowance = Allowance(3)
    assert [allowance.take(10.0, 2.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.take(10.0 + at_s, 2.0) for at_s in (0.4, 0.6, 0.7)] == [False, True, False]
    assert [allowance.take(1e6, 2.0) for _ in range(4)] == [True, True, True, False], "no more than at once"


def test_without_a_rate_an_allowance_does_not_come_back() -> None:
    allowance = Allowance(1)
    assert [allowance.take(now, 0.0) for now in (0.0, 1e9)] == [True, False]


def test_a_budget_is_full_at_first_and_then_a_share_of_the_work() -> None:
    budget = Budget(0.1, 0.5)
    budget.spend(100.0)  # before any work: nothing is known yet
    assert budget.earn(20.0) == 10.0
    budget.spend(9.0)
    assert budget.earn(20.0) == pytest.approx(3.0)
    budget.spend(7.0)
    assert budget.earn(20.0) == pytest.approx(2.0), "what was overspent is not owed"
    for _ in range(20):
        left_s = budget.earn(20.0)
    assert left_s == 10.0, "no more is saved"
    assert budget.earn(2.0) == 1.0, "and in shorter stretches less"
