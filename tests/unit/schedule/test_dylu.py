"""Inner steps by measured speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.schedule.dylu import local_steps

paces = st.floats(1e-3, 1e5)


@pytest.mark.parametrize(
    ("own_s", "paces_s", "steps"),
    [
        (1.0, [1.0, 2.0], 50),  # the fastest takes all
        (2.0, [1.0, 2.0], 25),
        (10.0, [1.0, 3.0, 10.0], 5),
        (3.0, [1.0], 16),  # cut, not rounded
        (1000.0, [1.0], 1),  # never none
        (0.0, [1.0], 50),  # not known yet
        (5.0, [], 50),
        (5.0, [0.0, 0.0], 50),  # nobody else's is known
        (5.0, [0.0, 2.5], 25),
        (1.0, [2.0], 50),  # faster than all others
    ],
)
def test_by_hand(own_s: float, paces_s: list[float], steps: int) -> None:
    assert local_steps(50, own_s, paces_s) == steps


def test_exact_ratios_lose_no_step() -> None:
    for slower in range(1, 11):
        assert local_steps(10, 1.0 * 10, [float(slower)]) == slower


@given(h=st.integers(1, 1000), own_s=paces, others_s=st.lists(paces, max_size=5))
def test_nobody_is_busy_for_longer_than_the_fastest(h: int, own_s: float, others_s: list[float]) -> None:
    steps = local_steps(h, own_s, others_s)
    assert 1 <= steps <= h
    fastest_s = min([own_s, *others_s])
    if steps > 1:
        assert steps * own_s <= h * fastest_s * (1 + 1e-9)
    assert (steps + 1) * own_s > h * fastest_s * (1 - 1e-9), "one more would still have fitted"


def test_refuses_a_round_without_steps() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        local_steps(0, 1.0, [1.0])
