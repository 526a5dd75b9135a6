"""The bucket by itself, on times that the test makes up."""

import math

import pytest

from decentral.adapters.budget import MESSAGE_BYTES, OVERHEAD, Account, Accounts, Budget
from decentral.types import PeerId

CAP = 1e6


def test_without_a_limit_nobody_ever_waits() -> None:
    budget = Budget()
    assert [budget.take(0.0, 1 << 30, first=first) for first in (True, False, False)] == [0.0] * 3


def test_after_a_silence_a_twentieth_of_a_second_goes_at_once_and_the_rest_at_the_rate() -> None:
    budget = Budget(CAP)
    for quiet in (0.0, 1000.0):
        waits = [budget.take(quiet, 10_000, first=False) for _ in range(10)]
        cost_s = 10_000 * (1 + OVERHEAD) / CAP
        assert waits == pytest.approx([max(0.0, n * cost_s - 0.05) for n in range(1, 11)])


def test_a_message_is_charged_once_for_itself() -> None:
    budget = Budget(CAP)
    budget.take(0.0, 50_000, first=True)
    more_s = budget.take(0.0, 0, first=True)
    assert more_s == pytest.approx((50_000 * (1 + OVERHEAD) + 2 * MESSAGE_BYTES) / CAP - 0.05)


def test_what_begins_a_message_overtakes_pieces_and_they_pay_for_it() -> None:
    budget, other = Budget(CAP), Budget(CAP)
    for each in (budget, other):
        assert each.take(0.0, 5_000_000, first=False) > 5
    assert budget.take(0.0, 3000, first=True) == 0.0
    paid_s = budget.take(0.0, 1000, first=False) - other.take(0.0, 1000, first=False)
    assert paid_s == pytest.approx((3000 * (1 + OVERHEAD) + MESSAGE_BYTES) / CAP)


def test_short_messages_alone_keep_to_the_rate_too() -> None:
    budget, now = Budget(CAP), 0.0
    for _ in range(1000):
        now += budget.take(now, 10_000, first=True)
    assert now == pytest.approx(1000 * (10_000 * (1 + OVERHEAD) + MESSAGE_BYTES) / CAP, rel=0.01)


@pytest.mark.parametrize(("rate", "piece"), [(12_500.0, 4096), (1e6, 50_000), (2.5e6, 125_000), (math.inf, 1 << 18)])
def test_pieces_take_a_twentieth_of_a_second_within_bounds(rate: float, piece: int) -> None:
    assert Budget(rate).piece_bytes == piece


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_budget_of_nothing_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(rate)


def debt_s(calls: int, num_bytes: int, *, calls_per_s: float = 150, bad: bool = False) -> float:
    """What a peer owes after so many calls at once."""
    account = Account()
    for _ in range(calls):
        account.charge(100.0, num_bytes, calls_per_s=calls_per_s, bad=bad)
    return account.wait_s(100.0)


def test_a_peer_has_ten_seconds_worth_at_once_and_as_many_calls_a_second_as_the_method_allows_then() -> None:
    assert debt_s(10_000, 600, calls_per_s=1000) == pytest.approx(0, abs=1e-6)
    assert debt_s(12_000, 600, calls_per_s=1000) == pytest.approx(2)
    assert debt_s(1_800, 600) == pytest.approx(2)
    # Values cost by their bytes: 1 GB a second.
    assert debt_s(12_000, 1 << 20) == pytest.approx(2)
    assert debt_s(60_000, 200 << 10) == pytest.approx(60_000 * 200 / 1024 / 1000 - 10)
    # What no honest peer sends: 10 a second, or 2 MB.
    assert debt_s(101, 0, bad=True) == pytest.approx(0.1)
    assert debt_s(100, 300 << 10, bad=True) == pytest.approx(100 * (100 + 300 / 2) / 1000 - 10)


def test_accounts_are_of_each_peer_and_bounded() -> None:
    accounts = Accounts()
    first = accounts.of(PeerId("0"))
    assert accounts.of(PeerId("0")) is first
    for number in range(1, 5000):
        accounts.of(PeerId(str(number)))
    assert accounts.of(PeerId("4999")) is not first
    assert accounts.of(PeerId("0")) is not first
