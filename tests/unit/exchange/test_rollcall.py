import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.exchange.rollcall import Call, Quorum, Roll, RollCall
from decentral.types import PeerId, SyncKey

KEY = SyncKey(4, 0)
A, B, C, D = (PeerId(name) for name in "abcd")
SERIAL = 9


def call(peer: PeerId, base: str = "base", num_steps: int = 4) -> Call:
    return Call(peer, base, num_steps)


def opened(*calls: Call, now: float = 0.0) -> RollCall:
    rollcall = RollCall(KEY, chair=A)
    for one in calls:
        rollcall.call(one, now)
    return rollcall


def conclude(rollcall: RollCall, now: float, expected: tuple[PeerId, ...] = (), patience_s: float = 5.0) -> Roll | None:
    done = rollcall.conclude(now, expected=expected, patience_s=patience_s, serial=SERIAL)
    assert done == (rollcall.roll is not None)
    return rollcall.roll


def test_the_roll_is_called_as_soon_as_everybody_is_there() -> None:
    rollcall = opened(call(B), call(A))
    assert conclude(rollcall, 0.1, (A, B, C)) is None
    rollcall.call(call(C), 0.2)
    assert conclude(rollcall, 0.2, (A, B, C)) == Roll(KEY, A, SERIAL, "base", (A, B, C))


def test_patience_ends_after_the_first_call_and_the_absent_are_named() -> None:
    rollcall = opened(call(B), now=10.0)
    rollcall.call(call(A), 14.0)
    assert conclude(rollcall, 14.99, (A, B, C, D)) is None
    roll = conclude(rollcall, 15.0, (A, B, C, D))
    assert roll is not None
    assert roll.members == (A, B)
    assert roll.absent == ((C, "did not call within 5.0 s"), (D, "did not call within 5.0 s"))


def test_who_was_not_expected_is_welcome() -> None:
    roll = conclude(opened(call(D), call(A)), 0.0, (A,))
    assert roll is not None
    assert roll.members == (A, D)


def test_nobody_called_no_roll() -> None:
    assert conclude(RollCall(KEY, A), 1e9) is None


def test_the_majority_goes_on() -> None:
    roll = conclude(opened(call(A, "odd", num_steps=99), call(B), call(C)), 0.0)
    assert roll is not None
    assert (roll.base, roll.members) == ("base", (B, C))
    assert roll.absent == ((A, "holds another anchor"),)


@pytest.mark.parametrize(
    ("calls", "base"),
    [
        ((call(A, "x", 3), call(B, "y", 4)), "y"),
        ((call(A, "x", 5), call(B, "y", 4)), "x"),
        ((call(A, "y", 4), call(B, "x", 4)), "x"),
    ],
)
def test_ties_go_to_more_steps_and_then_to_the_smaller_digest(calls: tuple[Call, ...], base: str) -> None:
    roll = conclude(opened(*calls), 0.0)
    assert roll is not None
    assert roll.base == base


def test_a_late_caller_changes_nothing() -> None:
    rollcall = opened(call(A))
    roll = conclude(rollcall, 0.0, (A,))
    rollcall.call(call(B), 0.1)
    rollcall.drop_silent(1e9)
    assert conclude(rollcall, 1e9, (A, B)) is roll


def test_who_calls_again_with_another_anchor_is_counted_by_the_last() -> None:
    rollcall = opened(call(A, "old"), call(B, "old"), call(A, "new", 5), call(B, "new", 5))
    roll = conclude(rollcall, 0.0)
    assert roll is not None
    assert (roll.base, roll.members) == ("new", (A, B))


def test_silent_callers_are_dropped() -> None:
    rollcall = opened(call(A), call(B))
    rollcall.call(call(A), 3.0)
    rollcall.drop_silent(3.0)
    roll = conclude(rollcall, 6.0, (A, B))
    assert roll is not None
    assert roll.members == (A,)
    assert roll.absent == ((B, "did not call within 6.0 s"),)


def test_patience_starts_again_when_all_callers_fell_silent() -> None:
    rollcall = opened(call(A))
    rollcall.drop_silent(1.0)
    assert conclude(rollcall, 100.0, (A, B)) is None
    rollcall.call(call(A), 100.0)
    assert conclude(rollcall, 104.9, (A, B)) is None
    assert conclude(rollcall, 105.0, (A, B)) is not None


def with_quorum(size: int, grace_s: float) -> RollCall:
    return RollCall(KEY, A, Quorum(size, grace_s))


EVERYBODY = (A, B, C, D)


def test_a_quorum_and_its_grace_window_are_enough() -> None:
    rollcall = with_quorum(2, 1.0)
    rollcall.call(call(A), 0.0)
    assert conclude(rollcall, 4.0, EVERYBODY) is None
    rollcall.call(call(C), 4.0)
    assert conclude(rollcall, 4.9, EVERYBODY) is None
    rollcall.call(call(B), 4.95)
    rollcall.call(call(A), 4.95)
    roll = conclude(rollcall, 5.0, EVERYBODY, patience_s=60.0)
    assert roll is not None
    assert roll.members == (A, B, C), "who came within the window is in"
    assert roll.absent == ((D, "did not call within 5.0 s"),)


def test_nobody_waits_for_the_window_once_everybody_is_there() -> None:
    rollcall = with_quorum(1, 10.0)
    rollcall.call(call(A), 0.0)
    rollcall.call(call(B), 0.0)
    assert conclude(rollcall, 0.0, (A, B)) is not None


def test_patience_ends_the_wait_for_a_quorum() -> None:
    rollcall = with_quorum(3, 0.0)
    rollcall.call(call(A), 0.0)
    assert conclude(rollcall, 4.9, EVERYBODY) is None
    assert conclude(rollcall, 5.0, EVERYBODY) is not None


def test_the_grace_window_is_a_part_of_the_smallest_slack() -> None:
    """The quorum is there at 4 s, and the first caller would stand still at 6 s: 0.8 of these 2 s."""
    rollcall = with_quorum(2, 60.0)
    rollcall.call(Call(A, "base", 4, slack_s=6.0), 0.0)
    rollcall.call(Call(B, "base", 4, slack_s=30.0), 4.0)
    assert conclude(rollcall, 5.5, EVERYBODY, patience_s=60.0) is None
    assert conclude(rollcall, 5.61, EVERYBODY, patience_s=60.0) is not None


def test_no_window_where_a_caller_stands_still_already() -> None:
    rollcall = with_quorum(2, 60.0)
    rollcall.call(Call(A, "base", 4, slack_s=3.0), 0.0)
    assert conclude(rollcall, 3.5, EVERYBODY, patience_s=60.0) is None, "there is no quorum yet"
    rollcall.call(Call(B, "base", 4, slack_s=9.0), 4.0)
    assert conclude(rollcall, 4.0, EVERYBODY, patience_s=60.0) is not None


def test_a_quorum_holds_one_anchor() -> None:
    rollcall = with_quorum(2, 0.0)
    rollcall.call(call(A, "odd"), 0.0)
    rollcall.call(call(B), 0.0)
    assert conclude(rollcall, 1.0, EVERYBODY) is None
    rollcall.call(call(C), 1.0)
    roll = conclude(rollcall, 1.0, EVERYBODY)
    assert roll is not None
    assert roll.members == (B, C)


def test_a_quorum_that_fell_silent_is_none() -> None:
    rollcall = with_quorum(2, 1.0)
    rollcall.call(call(A), 0.0)
    rollcall.call(call(B), 2.0)
    rollcall.drop_silent(1.0)
    assert conclude(rollcall, 3.5, EVERYBODY) is None
    rollcall.call(call(C), 4.0)
    assert conclude(rollcall, 4.9, EVERYBODY) is None, "a new quorum, a new window"
    assert conclude(rollcall, 5.0, EVERYBODY, patience_s=60.0) is not None


@pytest.mark.parametrize(("size", "grace_s"), [(0, 1.0), (-1, 1.0), (1, -0.1), (1, math.inf), (1, math.nan)])
def test_no_such_quorum(size: int, grace_s: float) -> None:
    with pytest.raises(ValueError, match=r"at least one member|finite and at least 0 s"):
        Quorum(size, grace_s)


calls = st.lists(
    st.builds(Call, peer=st.sampled_from([A, B, C, D]), base=st.sampled_from(["x", "y", "z"]), num_steps=st.just(1)),
    min_size=1,
    unique_by=lambda one: one.peer,
)


@given(calls=calls, data=st.data())
def test_everybody_is_a_member_or_absent_whatever_the_order(calls: list[Call], data: st.DataObject) -> None:
    expected = tuple(data.draw(st.sets(st.sampled_from([A, B, C, D]))))
    roll = conclude(opened(*calls), 5.0, expected, patience_s=0.0)
    assert roll == conclude(opened(*data.draw(st.permutations(calls))), 5.0, expected, patience_s=0.0)
    assert roll is not None
    absent = {peer for peer, _ in roll.absent}
    assert set(roll.members) | absent == {one.peer for one in calls} | set(expected)
    assert not set(roll.members) & absent
    assert {one.peer for one in calls if one.base == roll.base} == set(roll.members)
    assert all(2 * len(roll.members) >= sum(one.base == base for one in calls) for base in "xyz")
    assert list(roll.members) == sorted(roll.members)


def test_how_much_longer_the_window_is_open() -> None:
    rollcall = with_quorum(2, 3.0)
    rollcall.call(call(A), 0.0)
    assert rollcall.grace_left_s(0.0) == math.inf, "there is no quorum"
    rollcall.call(call(B), 1.0)
    assert rollcall.grace_left_s(1.5) == 2.5
    assert rollcall.grace_left_s(4.0) == math.inf, "over, whether or not there is a roll"
    assert opened(call(A), call(B)).grace_left_s(0.0) == math.inf
