import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.schedule.plan import SyncPlan
from decentral.types import SyncKey

SMALL = [
    SyncPlan(inner_steps, num_fragments, delay_steps, num_groups)
    for inner_steps in range(1, 11)
    for num_fragments in range(1, inner_steps + 2)
    for num_groups in range(1, min(inner_steps, num_fragments) + 1)
    for delay_steps in range(inner_steps // num_groups)
]


@st.composite
def plans(draw: st.DrawFn) -> SyncPlan:
    inner_steps = draw(st.integers(1, 600))
    num_fragments = draw(st.integers(1, min(inner_steps, 24)))
    num_groups = draw(st.integers(1, num_fragments))
    delay_steps = draw(st.integers(0, inner_steps // num_groups - 1))
    return SyncPlan(inner_steps, num_fragments, delay_steps, num_groups)


def check_three_rounds(plan: SyncPlan) -> None:
    """Every promise of the plan's docstring."""
    groups = plan.num_groups
    keys = [SyncKey(round, fragment) for round in range(3) for fragment in range(plan.num_fragments)]
    launched = {key: plan.launch_step(key) for key in keys}
    for key, step in launched.items():
        used = step + plan.delay_steps
        assert plan.step_of_round(key.round) < step <= used <= plan.step_of_round(key.round + 1)
    for fragment in range(plan.num_fragments):
        one, two, three = (launched[SyncKey(round, fragment)] for round in range(3))
        assert two - one == three - two == plan.inner_steps
    for one, other in itertools.product(range(plan.num_fragments), repeat=2):
        together = launched[SyncKey(1, one)] == launched[SyncKey(1, other)]
        assert together == plan.is_together(one, other) == (one % groups == other % groups)
    steps = sorted(set(launched.values()))
    assert len(steps) == 3 * groups
    gaps = {later - earlier for earlier, later in itertools.pairwise(steps)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1, "spread evenly"
    assert min(gaps, default=1) > plan.delay_steps or plan.delay_steps == 0
    assert steps[-1] + plan.delay_steps == plan.step_of_round(3)


def test_every_small_plan() -> None:
    assert len(SMALL) > 400
    for plan in SMALL:
        check_three_rounds(plan)


@given(plan=plans())
def test_larger_plans(plan: SyncPlan) -> None:
    check_three_rounds(plan)


def test_plain_diloco() -> None:
    plan = SyncPlan(500)
    assert plan.launch_step(SyncKey(round=3, fragment=0)) == 2000
    assert plan.step_of_round(3) == 1500


def test_streaming_by_hand() -> None:
    plan = SyncPlan(inner_steps=10, num_fragments=3, delay_steps=2)
    assert [plan.launch_step(SyncKey(1, fragment)) for fragment in range(3)] == [11, 14, 18]
    assert not plan.is_together(0, 1)


def test_groups_by_hand() -> None:
    plan = SyncPlan(inner_steps=10, num_fragments=5, num_groups=2)
    assert [plan.launch_step(SyncKey(0, fragment)) for fragment in range(5)] == [5, 10, 5, 10, 5]


def test_more_fragments_than_steps_fit_in_groups() -> None:
    plan = SyncPlan(inner_steps=2, num_fragments=5, num_groups=2)
    assert [plan.launch_step(SyncKey(0, fragment)) for fragment in range(5)] == [1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "inner_steps must be at least 1, got 0"),
        ((6, 0), "num_fragments must be at least 1, got 0"),
        ((6, 7), "7 launches do not fit into inner_steps = 6"),
        ((6, 2, 0, 3), "num_groups must be between 0 and num_fragments = 2, got 3"),
        ((6, 2, 0, -1), "num_groups must be between 0 and num_fragments = 2, got -1"),
        ((6, 2, -1), "below inner_steps / launches a round = 3, got -1"),
        ((6, 2, 3), "below inner_steps / launches a round = 3, got 3"),
        ((6, 1, 6), "below inner_steps / launches a round = 6, got 6"),
        ((7, 2, 3), "below inner_steps / launches a round = 3, got 3"),
    ],
)
def test_arguments_out_of_range(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyncPlan(*arguments)
