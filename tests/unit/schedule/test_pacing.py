"""Overlap and launches a round from measured durations, to the digit where that can be done by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.schedule.pacing import Pacing


def paced(
    *syncs: tuple[float, float, float], inner_steps: int = 100, num_fragments: int = 24, step_s: float = 1.0
) -> Pacing:
    """Syncs of (waiting, transfer, share), which last as long as both together."""
    pacing = Pacing(inner_steps, num_fragments)
    pacing.stepped(step_s)
    for waiting_s, transfer_s, share in syncs:
        pacing.landed(waiting_s + transfer_s, waiting_s=waiting_s, transfer_s=transfer_s, share=share)
    return pacing


def test_before_anything_is_measured_it_is_one_step_and_as_many_launches_as_there_are() -> None:
    pacing = Pacing(100, 24)
    assert (pacing.delay_steps, pacing.num_groups(24), pacing.num_groups(3)) == (1, 24, 3)
    pacing.stepped(0.5)
    assert (pacing.delay_steps, pacing.num_groups(24)) == (1, 24)
    untimed = Pacing(100, 24)
    untimed.landed(5.0, waiting_s=1.0, transfer_s=4.0, share=1.0)
    assert (untimed.delay_steps, untimed.num_groups(24)) == (1, 24)


@pytest.mark.parametrize(
    ("durations_s", "steps"),
    [([0.3], 1), ([1.0], 1), ([1.01], 2), ([5, 1, 1, 1], 1), ([5, 5, 1, 1], 5), ([2.5, 9.5, 4.5, 3.5], 5)],
)
def test_three_of_four_syncs_are_back_in_time(durations_s: list[float], steps: int) -> None:
    assert paced(*((0.0, seconds, 1.0) for seconds in durations_s)).delay_steps == steps


@pytest.mark.parametrize(("inner_steps", "steps"), [(1, 1), (2, 1), (10, 9), (100, 50)])
def test_the_overlap_is_below_the_round(inner_steps: int, steps: int) -> None:
    assert paced((0.0, 50.0, 1.0), inner_steps=inner_steps, num_fragments=1).delay_steps == steps


def test_faster_steps_make_more_of_them() -> None:
    pacing = paced((0.0, 6.0, 1.0))
    pacing.stepped(0.5)
    assert pacing.delay_steps == 12


def test_old_syncs_are_forgotten() -> None:
    pacing = paced(*[(0.0, 40.0, 1.0)] * 16)
    assert (pacing.delay_steps, pacing.num_groups(1)) == (40, 8)
    for _ in range(16):
        pacing.landed(2.0, waiting_s=0.0, transfer_s=2.0, share=1.0)
    assert (pacing.delay_steps, pacing.num_groups(8)) == (2, 1)


@pytest.mark.parametrize(
    ("sync", "groups"),
    [
        ((0.0, 4.0, 1.0), 1),  # fits as it is
        ((0.0, 20.0, 1.0), 4),  # five steps each
        ((0.0, 5.0, 0.25), 4),  # the same, measured in four launches
        ((1.0, 20.0, 1.0), 6),  # two round trips of one second: eighteen seconds in pieces of three
        ((1.0, 6.5, 0.25), 6),
        ((10.0, 60.0, 1.0), 2),  # round trips alone last longer than advised: as short as these
        ((0.0, 1000.0, 1.0), 24),  # no more than fragments
        ((3.0, 2.0, 1.0), 1),  # all of it is round trips
    ],
)
def test_a_transfer_lasts_no_longer_than_advised(sync: tuple[float, float, float], groups: int) -> None:
    assert paced(sync).num_groups(1 if groups > 1 else 24) == groups


def test_others_that_were_waited_for_make_no_more_launches() -> None:
    """The shortest wait tells of the line, longer ones of slow workers."""
    alone, held = paced(*[(0.1, 20.0, 1.0)] * 2), paced((0.1, 20.0, 1.0), (60.0, 20.0, 1.0))
    assert held.num_groups(1) == alone.num_groups(1) == 5


@pytest.mark.parametrize(("present", "groups"), [(3, 4), (4, 4), (5, 5), (6, 4), (1, 4)])
def test_what_is_nearly_right_stays(present: int, groups: int) -> None:
    assert paced((0.0, 20.0, 1.0)).num_groups(present) == groups


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0.01, 1.0)), min_size=1, max_size=20),
    st.integers(1, 500),
    st.integers(1, 30),
    st.floats(1e-3, 100.0),
    st.data(),
)
def test_whatever_is_measured_is_in_range(
    syncs: list[tuple[float, float, float]], inner_steps: int, num_fragments: int, step_s: float, data: st.DataObject
) -> None:
    pacing = paced(*syncs, inner_steps=inner_steps, num_fragments=num_fragments, step_s=step_s)
    most = min(num_fragments, inner_steps)
    present = data.draw(st.integers(1, most))
    assert 1 <= pacing.delay_steps <= max(1, inner_steps - 1)
    wanted = pacing.num_groups(present)
    assert 1 <= wanted <= most
    assert pacing.num_groups(wanted) == wanted, "what it asks for contents it"
