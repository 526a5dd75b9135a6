import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.schedule.inner_lr import warmup_cosine


def curve(num_steps: int, *, warmup_steps: int, total_steps: int, floor_fraction: float = 0.1) -> list[float]:
    return [
        warmup_cosine(step, peak=2.0, warmup_steps=warmup_steps, total_steps=total_steps, floor_fraction=floor_fraction)
        for step in range(num_steps)
    ]


def test_by_hand() -> None:
    assert curve(11, warmup_steps=4, total_steps=8, floor_fraction=0.5) == pytest.approx(
        [0.4, 0.8, 1.2, 1.6, 2.0, 1.5 + 0.5**1.5, 1.5, 1.5 - 0.5**1.5, 1.0, 1.0, 1.0]
    )


@given(warmup=st.integers(0, 50), length=st.integers(1, 100), floor=st.floats(0, 1))
def test_rises_to_the_peak_and_falls_to_the_floor(warmup: int, length: int, floor: float) -> None:
    total = warmup + length
    values = curve(total + 5, warmup_steps=warmup, total_steps=total, floor_fraction=floor)
    assert values[warmup] == max(values) == 2.0
    assert all(earlier < later for earlier, later in itertools.pairwise(values[: warmup + 1]))
    assert all(earlier >= later for earlier, later in itertools.pairwise(values[warmup:]))
    assert values[0] > 0
    assert min(values[warmup:]) == values[total] == values[-1] == pytest.approx(2.0 * floor)


def test_a_warmup_longer_than_the_run_is_a_ramp() -> None:
    assert curve(5, warmup_steps=9, total_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert warmup_cosine(0, peak=3e-4, warmup_steps=0, total_steps=10) == 3e-4
