import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.exchange.allreduce.participants import Call, Gathering, Participants, Quorum
from decentral.types import PeerId, SyncKey

KEY = SyncKey(4, 0)
A, B, C, D = (PeerId(name) for name in "abcd")
SERIAL = 9


def call(peer: PeerId, base: str = "base", num_steps: int = 4) -> Call:
    return Call(peer, base, num_steps)


def opened(*calls: Call, now: float = 0.0) -> Gathering:
    gathering = Gathering(KEY, leader=A)
    for one in calls:
        gathering.call(one, now)
    return gathering


def conclude(
    gathering: Gathering, now: float, expected: tuple[PeerId, ...] = (), patience_s: float = 5.0
) -> Participants | None:
    done = gathering.conclude(now, expected=expected, patience_s=patience_s, serial=SERIAL)
    assert done == (gathering.participants is not None)
    return gathering.participants


def test_participants_are_named_as_soon_as_everybody_is_there() -> None:
    gathering = opened(call(B), call(A))
    assert conclude(gathering, 0.1, (A, B, C)) is None
    gathering.call(call(C), 0.2)
    assert conclude(gathering, 0.2, (A, B, C)) == Participants(KEY, A, SERIAL, "base", (A, B, C))


def test_patience_ends_after_the_first_call_and_the_absent_are_named() -> None:
    gathering = opened(call(B), now=10.0)
    gathering.call(call(A), 14.0)
    assert conclude(gathering, 14.99, (A, B, C, D)) is None
    participants = conclude(gathering, 15.0, (A, B, C, D))
    assert participants is not None
    assert participants.members == (A, B)
    assert participants.absent == ((C, "did not call within 5.0 s"), (D, "did not call within 5.0 s"))


def test_who_was_not_expected_is_welcome() -> None:
    participants = conclude(opened(call(D), call(A)), 0.0, (A,))
    assert participants is not None
    assert participants.members == (A, D)


def test_nobody_called_no_participants() -> None:
    assert conclude(Gathering(KEY, A), 1e9) is None


def test_the_majority_goes_on() -> None:
    participants = conclude(opened(call(A, "odd", num_steps=99), call(B), call(C)), 0.0)
    assert participants is not None
    assert (participants.base, participants.members) == ("base", (B, C))
    assert participants.absent == ((A, "holds another anchor"),)


@pytest.mark.parametrize(
    ("calls", "base"),
    [
        ((call(A, "x", 3), call(B, "y", 4)), "y"),
        ((call(A, "x", 5), call(B, "y", 4)), "x"),
        ((call(A, "y", 4), call(B, "x", 4)), "x"),
    ],
)
def test_ties_go_to_more_steps_and_then_to_the_smaller_digest(calls: tuple[Call, ...], base: str) -> None:
    participants = conclude(opened(*calls), 0.0)
    assert participants is not None
    assert participants.base == base


def test_a_late_caller_changes_nothing() -> None:
    gathering = opened(call(A))
    participants = conclude(gathering, 0.0, (A,))
    gathering.call(call(B), 0.1)
    gathering.drop_silent(1e9)
    assert conclude(gathering, 1e9, (A, B)) is participants


def test_who_calls_again_with_another_anchor_is_counted_by_the_last() -> None:
    gathering = opened(call(A, "old"), call(B, "old"), call(A, "new", 5), call(B, "new", 5))
    participants = conclude(gathering, 0.0)
    assert participants is not None
    assert (participants.base, participants.members) == ("new", (A, B))


def test_silent_callers_are_dropped() -> None:
    gathering = opened(call(A), call(B))
    gathering.call(call(A), 3.0)
    gathering.drop_silent(3.0)
    participants = conclude(gathering, 6.0, (A, B))
    assert participants is not None
    assert participants.members == (A,)
    assert participants.absent == ((B, "did not call within 6.0 s"),)


@pytest.mark.parametrize(
    ("expected", "lacks"), [((A, B, C, D), True), ((A, B, C), False), ((A, C, D), True), ((A, C), False), ((), False)]
)
def test_most_are_there_if_fewer_than_half_of_more_than_two_are_missing(
    expected: tuple[PeerId, ...], lacks: bool
) -> None:
    assert opened(call(A), call(B)).lacks_most(expected) == lacks


def test_patience_starts_again_when_all_callers_fell_silent() -> None:
    gathering = opened(call(A))
    gathering.drop_silent(1.0)
    assert conclude(gathering, 100.0, (A, B)) is None
    gathering.call(call(A), 100.0)
    assert conclude(gathering, 104.9, (A, B)) is None
    assert conclude(gathering, 105.0, (A, B)) is not None


def with_quorum(size: int, grace_s: float) -> Gathering:
    return Gathering(KEY, A, Quorum(size, grace_s))


EVERYBODY = (A, B, C, D)


def test_a_quorum_and_its_grace_window_are_enough() -> None:
    gathering = with_quorum(2, 1.0)
    gathering.call(call(A), 0.0)
    assert conclude(gathering, 4.0, EVERYBODY) is None
    gathering.call(call(C), 4.0)
    assert conclude(gathering, 4.9, EVERYBODY) is None
    gathering.call(call(B), 4.95)
    gathering.call(call(A), 4.95)
    participants = conclude(gathering, 5.0, EVERYBODY, patience_s=60.0)
    assert participants is not None
    assert participants.members == (A, B, C), "who came within the window is in"
    assert participants.absent == ((D, "did not call within 5.0 s"),)


def test_nobody_waits_for_the_window_once_everybody_is_there() -> None:
    gathering = with_quorum(1, 10.0)
    gathering.call(call(A), 0.0)
    gathering.call(call(B), 0.0)
    assert conclude(gathering, 0.0, (A, B)) is not None


def test_patience_ends_the_wait_for_a_quorum() -> None:
    gathering = with_quorum(3, 0.0)
    gathering.call(call(A), 0.0)
    assert conclude(gathering, 4.9, EVERYBODY) is None
    assert conclude(gathering, 5.0, EVERYBODY) is not None


def test_the_grace_window_is_a_part_of_the_smallest_slack() -> None:
    """The quorum is there at 4 s, and the first caller would stand still at 6 s: 0.8 of these 2 s."""
    gathering = with_quorum(2, 60.0)
    gathering.call(Call(A, "base", 4, slack_s=6.0), 0.0)
    gathering.call(Call(B, "base", 4, slack_s=30.0), 4.0)
    assert conclude(gathering, 5.5, EVERYBODY, patience_s=60.0) is None
    assert conclude(gathering, 5.61, EVERYBODY, patience_s=60.0) is not None


def test_no_window_where_a_caller_stands_still_already() -> None:
    gathering = with_quorum(2, 60.0)
    gathering.call(Call(A, "base", 4, slack_s=3.0), 0.0)
    assert conclude(gathering, 3.5, EVERYBODY, patience_s=60.0) is None, "there is no quorum yet"
    gathering.call(Call(B, "base", 4, slack_s=9.0), 4.0)
    assert conclude(gathering, 4.0, EVERYBODY, patience_s=60.0) is not None


def test_a_quorum_holds_one_anchor() -> None:
    gathering = with_quorum(2, 0.0)
    gathering.call(call(A, "odd"), 0.0)
    gathering.call(call(B), 0.0)
    assert conclude(gathering, 1.0, EVERYBODY) is None
    gathering.call(call(C), 1.0)
    participants = conclude(gathering, 1.0, EVERYBODY)
    assert participants is not None
    assert participants.members == (B, C)


def test_a_quorum_that_fell_silent_is_none() -> None:
    gathering = with_quorum(2, 1.0)
    gathering.call(call(A), 0.0)
    gathering.call(call(B), 2.0)
    gathering.drop_silent(1.0)
    assert conclude(gathering, 3.5, EVERYBODY) is None
    gathering.call(call(C), 4.0)
    assert conclude(gathering, 4.9, EVERYBODY) is None, "a new quorum, a new window"
    assert conclude(gathering, 5.0, EVERYBODY, patience_s=60.0) is not None


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
    participants = conclude(opened(*calls), 5.0, expected, patience_s=0.0)
    assert participants == conclude(opened(*data.draw(st.permutations(calls))), 5.0, expected, patience_s=0.0)
    assert participants is not None
    absent = {peer for peer, _ in participants.absent}
    assert set(participants.members) | absent == {one.peer for one in calls} | set(expected)
    assert not set(participants.members) & absent
    assert {one.peer for one in calls if one.base == participants.base} == set(participants.members)
    assert all(2 * len(participants.members) >= sum(one.base == base for one in calls) for base in "xyz")
    assert list(participants.members) == sorted(participants.members)


def test_how_much_longer_the_window_is_open() -> None:
    gathering = with_quorum(2, 3.0)
    gathering.call(call(A), 0.0)
    assert gathering.grace_left_s(0.0) == math.inf, "there is no quorum"
    gathering.call(call(B), 1.0)
    assert gathering.grace_left_s(1.5) == 2.5
    assert gathering.grace_left_s(4.0) == math.inf, "over, whether or not the participants are named"
    assert opened(call(A), call(B)).grace_left_s(0.0) == math.inf
