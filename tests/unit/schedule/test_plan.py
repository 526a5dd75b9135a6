import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.schedule.plan import Apply, Launch, SyncPlan
from decentral.types import SyncKey

SMALL = [
    SyncPlan(inner_steps, num_fragments, delay_steps)
    for inner_steps in range(1, 15)
    for num_fragments in range(1, inner_steps + 1)
    for delay_steps in range(inner_steps // num_fragments)
]


@st.composite
def plans(draw: st.DrawFn) -> SyncPlan:
    inner_steps = draw(st.integers(1, 600))
    num_fragments = draw(st.integers(1, inner_steps))
    return SyncPlan(inner_steps, num_fragments, draw(st.integers(0, inner_steps // num_fragments - 1)))


def check_three_rounds(plan: SyncPlan) -> None:
    """Every promise of the plan's docstring, by asking at every step."""
    launched: dict[SyncKey, int] = {}
    applied: dict[SyncKey, int] = {}
    in_flight: set[SyncKey] = set()
    for step in range(-2, 3 * plan.inner_steps + 1):
        events = plan.events_at(step)
        assert len(events) <= 2
        for event in events:
            if isinstance(event, Launch):
                assert not in_flight, "more than one exchange at once"
                assert event.key not in launched
                in_flight.add(event.key)
                launched[event.key] = step
            else:
                assert event.key not in applied
                in_flight.remove(event.key)
                applied[event.key] = step
        if step >= 0 and step % plan.inner_steps == 0:
            assert not in_flight, "an exchange crosses the border of a round"

    keys = [SyncKey(round, fragment) for round in range(3) for fragment in range(plan.num_fragments)]
    assert list(launched) == list(applied) == keys, "each fragment once a round, in order"
    for key in keys:
        assert applied[key] - launched[key] == plan.delay_steps
        assert plan.step_of_round(key.round) < launched[key] <= applied[key] <= plan.step_of_round(key.round + 1)
    for fragment in range(plan.num_fragments):
        assert applied[SyncKey(1, fragment)] - applied[SyncKey(0, fragment)] == plan.inner_steps
    gaps = {later - earlier for earlier, later in itertools.pairwise([0, *applied.values()])}
    assert max(gaps) - min(gaps) <= 1, "spread evenly"
    assert applied[SyncKey(0, plan.num_fragments - 1)] == plan.inner_steps


def test_every_small_plan() -> None:
    assert len(SMALL) > 250
    for plan in SMALL:
        check_three_rounds(plan)


@given(plan=plans())
def test_larger_plans(plan: SyncPlan) -> None:
    check_three_rounds(plan)


def test_next_event_of_every_small_plan() -> None:
    for plan in SMALL:
        last = 3 * plan.inner_steps
        busy = [step for step in range(1, last + 1) if plan.events_at(step)]
        for step in range(last):
            assert plan.next_event_after(step) == next(later for later in busy if later > step), (plan, step)


@given(plan=plans(), step=st.integers(0, 10**9))
def test_next_event_skips_none(plan: SyncPlan, step: int) -> None:
    due = plan.next_event_after(step)
    assert step < due <= step + plan.inner_steps
    assert plan.events_at(due)
    assert not any(plan.events_at(between) for between in range(step + 1, due))


def test_plain_diloco() -> None:
    plan = SyncPlan(500)
    key = SyncKey(round=3, fragment=0)
    assert plan.events_at(2000) == (Launch(key), Apply(key))
    assert plan.next_event_after(1500) == 2000
    assert plan.step_of_round(3) == 1500


def test_streaming_by_hand() -> None:
    plan = SyncPlan(inner_steps=10, num_fragments=3, delay_steps=2)
    assert {step: plan.events_at(step) for step in range(11, 21) if plan.events_at(step)} == {
        11: (Launch(SyncKey(1, 0)),),
        13: (Apply(SyncKey(1, 0)),),
        14: (Launch(SyncKey(1, 1)),),
        16: (Apply(SyncKey(1, 1)),),
        18: (Launch(SyncKey(1, 2)),),
        20: (Apply(SyncKey(1, 2)),),
    }


@pytest.mark.parametrize("step", [0, -1, -7])
def test_nothing_happens_before_the_first_step(step: int) -> None:
    assert SyncPlan(1).events_at(step) == ()


def test_next_event_of_a_negative_step() -> None:
    with pytest.raises(ValueError, match="got -1"):
        SyncPlan(5).next_event_after(-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "inner_steps must be at least 1, got 0"),
        ((6, 0), "num_fragments must be between 1 and inner_steps = 6, got 0"),
        ((6, 7), "num_fragments must be between 1 and inner_steps = 6, got 7"),
        ((6, 2, -1), "below inner_steps / num_fragments = 3, got -1"),
        ((6, 2, 3), "below inner_steps / num_fragments = 3, got 3"),
        ((6, 1, 6), "below inner_steps / num_fragments = 6, got 6"),
        ((7, 2, 3), "below inner_steps / num_fragments = 3, got 3"),
    ],
)
def test_arguments_out_of_range(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyncPlan(*arguments)
