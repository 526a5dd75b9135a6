"""Messages of a gossip: what is packed is read again, everything else is refused by a ``FrameError``."""

import functools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.errors import FrameError
from decentral.exchange.gossip.messages import (
    Anchor,
    Bring,
    Given,
    Kind,
    Plan,
    Question,
    Reply,
    Visit,
    ms,
    unpack_reply,
)
from decentral.exchange.merge import MAX_WEIGHT
from decentral.swarm.message import MAX_SMALL_BYTES, from_wire, to_wire
from decentral.types import PeerId
from tests.support import wire
from tests.support.wire import NESTED, NOT_BLOBS, Good, Reader, takes_no_other_fields, takes_no_other_length

MAX_MEMBERS, LIMIT = 3, 1000
read_anchor = functools.partial(from_wire, Anchor, limit=LIMIT)
unpack_question = functools.partial(from_wire, Question)
unpack_plan = functools.partial(from_wire, Plan)
unpack_visit = functools.partial(from_wire, Visit)
read_given = functools.partial(from_wire, Given, limit=LIMIT)
read_bring = functools.partial(from_wire, Bring, limit=LIMIT)
read_reply = functools.partial(unpack_reply, limit=LIMIT, max_members=MAX_MEMBERS)

counts = st.integers(0, (1 << 53) - 1)
texts = st.text("aé漢 ", max_size=20)
peers = st.text("abcxyz", min_size=1, max_size=8).map(PeerId)
blobs = st.binary(max_size=60)
durations = st.integers(0, 10**11)
plans = st.builds(Plan, peers, st.none() | durations)
anchors = st.builds(Anchor, counts, texts, blobs)
brings = st.builds(
    Bring, counts, texts, counts, st.floats(0.001, MAX_WEIGHT), durations, st.binary(min_size=1, max_size=60), blobs
)
listeners = st.builds(Bring, counts, texts, counts, st.just(0.0), durations, st.just(b""), blobs)
groups = st.lists(peers, max_size=MAX_MEMBERS, unique=True).map(tuple)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    members = draw(groups)
    contributors = draw(st.sets(st.sampled_from(range(len(members))))) if members else set()
    order = tuple(sorted(contributors))
    return Reply(
        draw(st.sampled_from(Kind)),
        draw(st.none() | durations),
        draw(durations),
        members,
        order,
        draw(blobs),
        draw(blobs),
    )


@settings(max_examples=40)
@given(
    fragment=counts,
    plan=plans,
    anchor=anchors,
    bring=brings | listeners,
    visit=st.builds(Visit, counts, counts),
    given=st.builds(Given, st.sampled_from(Kind), blobs),
)
def test_round_trips(fragment: int, plan: Plan, anchor: Anchor, bring: Bring, visit: Visit, given: Given) -> None:
    assert unpack_question(to_wire(Question(fragment))) == Question(fragment)
    assert unpack_plan(to_wire(plan)) == plan
    assert read_anchor(to_wire(anchor)) == anchor
    assert read_bring(to_wire(bring)) == bring
    assert unpack_visit(to_wire(visit)) == visit
    assert read_given(to_wire(given)) == given


@settings(max_examples=40)
@given(reply=replies())
def test_round_trip_of_an_answer(reply: Reply) -> None:
    assert read_reply(to_wire(reply)) == reply


@pytest.mark.parametrize(
    ("eta_s", "seen"),
    [(None, None), (math.inf, None), (math.nan, None), (-1.0, 0.0), (1.2349, 1.234), (1e300, 1e8), (1e8, 1e8)],
)
def test_durations_on_the_wire(eta_s: float | None, seen: float | None) -> None:
    assert unpack_plan(to_wire(Plan(PeerId("a"), ms(eta_s)))).eta_s == seen


@pytest.mark.parametrize(
    ("kind", "contributors", "mean", "of_two"),
    [
        (Kind.DONE, (0, 1), b"", True),
        (Kind.DONE, (1,), b"", True),
        (Kind.DONE, (), b"", False),
        (Kind.DONE, (0, 1), b"mean", False),
        (Kind.HOLD, (0, 1), b"", False),
    ],
)
def test_a_mean_that_is_not_there_is_for_the_guest_to_take(
    kind: Kind, contributors: tuple[int, ...], mean: bytes, of_two: bool
) -> None:
    members = PeerId("a"), PeerId("b")
    assert Reply(kind, None, 0, members, contributors, mean, b"pull").is_of_two == of_two


def test_no_patience_at_all() -> None:
    bring = Bring(0, "base", 1, 0.0, ms(math.nan), b"", b"anchor")
    assert read_bring(to_wire(bring)).patience_s == 0.0


DONE = Reply(Kind.DONE, 1000, 500, (PeerId("a"), PeerId("b")), (0, 1), b"mean", b"pull")
GOOD: Good = {
    "question": (unpack_question, to_wire(Question(1, 1000))),
    "plan": (unpack_plan, to_wire(Plan(PeerId("a"), 1000))),
    "anchor": (read_anchor, to_wire(Anchor(1, "base", b"frame"))),
    "bring": (read_bring, to_wire(Bring(1, "base", 2, 3.0, 4000, b"delta", b"anchor"))),
    "visit": (unpack_visit, to_wire(Visit(1, 2))),
    "given": (read_given, to_wire(Given(Kind.DONE, b"delta"))),
    "reply": (read_reply, to_wire(DONE)),
}
NOT_COUNTS = (*wire.NOT_COUNTS, None)
NOT_TEXTS = (*wire.NOT_TEXTS, None)
NOT_DURATIONS = (-1, 10**11 + 1, 1.5, True, "1", [])
NOT_WEIGHTS = ("1", None, True, b"", -1.0, math.nan, math.inf, 2 * MAX_WEIGHT, NESTED, 0.0)
#: Values that a field does not take, by message and position.
BAD: dict[str, dict[int, tuple[Any, ...]]] = {
    "question": {0: NOT_COUNTS, 1: NOT_DURATIONS},
    "plan": {0: NOT_TEXTS, 1: NOT_DURATIONS},
    "anchor": {0: NOT_COUNTS, 1: NOT_TEXTS, 2: NOT_BLOBS},
    "bring": {
        0: NOT_COUNTS,
        1: NOT_TEXTS,
        2: NOT_COUNTS,
        3: NOT_WEIGHTS,
        4: NOT_DURATIONS,
        5: (*NOT_BLOBS, b""),
        6: NOT_BLOBS,
    },
    "visit": {0: NOT_COUNTS, 1: NOT_COUNTS},
    "given": {0: (*NOT_COUNTS, 4), 1: NOT_BLOBS},
    "reply": {
        0: (*NOT_COUNTS, 4),
        1: NOT_DURATIONS,
        2: NOT_DURATIONS,
        3: (None, "ab", 5, [5], ["a", "a"], ["a" * 201], list("abcd"), {"a": "b"}, ["a"], []),
        4: (None, 5, "01", [2], [1, 0], [0, 0], [-1], [True], ["0"], [[0]]),
        5: NOT_BLOBS,
        6: NOT_BLOBS,
        7: ("1", None, True, -0.1, 1.1, math.nan, math.inf),
    },
}


@pytest.mark.parametrize("name", GOOD)
def test_malformed_fields_are_refused(name: str) -> None:
    takes_no_other_fields(*GOOD[name], BAD[name])


@pytest.mark.parametrize("name", GOOD)
def test_cut_and_extended_messages(name: str) -> None:
    takes_no_other_length(*GOOD[name])


def test_a_listener_brings_no_values() -> None:
    with pytest.raises(FrameError, match=r"weight 0\.0 with values"):
        read_bring(to_wire(Bring(0, "", 0, 0.0, 1000, b"delta", b"")))
    with pytest.raises(FrameError, match=r"weight 1\.0 without values"):
        read_bring(to_wire(Bring(0, "", 0, 1.0, 1000, b"", b"anchor")))


@pytest.mark.parametrize(
    ("read", "limit"),
    [
        (unpack_question, MAX_SMALL_BYTES),
        (unpack_plan, MAX_SMALL_BYTES),
        (unpack_visit, MAX_SMALL_BYTES),
        (read_anchor, LIMIT),
        (read_bring, LIMIT),
        (read_reply, LIMIT),
        (read_given, LIMIT),
    ],
)
def test_what_is_too_long_is_not_read(read: Reader, limit: int) -> None:
    with pytest.raises(FrameError, match=f"{limit + 1} bytes, allowed are {limit}"):
        read(bytes(limit + 1))


def test_the_longest_small_messages_fit() -> None:
    most = (1 << 53) - 1
    longest = [to_wire(Question(most, 10**11)), to_wire(Plan(PeerId("漢" * 200), 10**11)), to_wire(Visit(most, most))]
    assert max(len(data) for data in longest) <= MAX_SMALL_BYTES
