"""Messages between workers and servers: what is packed is read again, all else is refused by a ``FrameError``."""

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.errors import FrameError
from decentral.exchange.server.messages import (
    Kind,
    Push,
    Question,
    Reply,
    Standing,
)
from decentral.exchange.server.pushes import MAX_COUNTED_BYTES, MAX_ENTRIES, CountedPushes, push_id
from decentral.swarm.message import MAX_SMALL_BYTES, from_wire, to_wire
from decentral.types import PeerId
from tests.support.wire import (
    NOT_BLOBS,
    NOT_COUNTS,
    NOT_TEXTS,
    Good,
    takes_no_other_fields,
    takes_no_other_length,
)

FRAGMENTS, LIMIT = 4, 1000
read_question = functools.partial(from_wire, Question)
read_standing = functools.partial(from_wire, Standing)
read_push = functools.partial(from_wire, Push, limit=LIMIT)
read_reply = functools.partial(from_wire, Reply, limit=LIMIT)

counts = st.integers(0, (1 << 53) - 1)
fragments = st.integers(0, FRAGMENTS - 1)
peers = st.text("abcxyz", min_size=1, max_size=8).map(PeerId)
ids = st.binary(min_size=8, max_size=8)
blobs = st.binary(min_size=1, max_size=60)
answers = st.builds(Reply, st.sampled_from([Kind.CHANGE, Kind.VALUES]), counts, blobs, blobs)


@settings(max_examples=40)
@given(
    question=st.builds(Question, fragments, st.none() | counts, ids | st.just(b"")),
    standing=st.builds(Standing, counts, st.none() | peers, st.booleans()),
    push=st.builds(Push, fragments, st.text("aé漢 ", max_size=20), st.binary(max_size=60)),
    reply=answers | st.builds(Reply, st.just(Kind.ELSEWHERE), counts, blobs, st.just(b"")),
)
def test_round_trips(question: Question, standing: Standing, push: Push, reply: Reply) -> None:
    assert read_question(to_wire(question)) == question
    assert read_standing(to_wire(standing)) == standing
    assert read_push(to_wire(push)) == push
    assert read_reply(to_wire(reply)) == reply


GOOD: Good = {
    "question": (read_question, to_wire(Question(1, 2, bytes(8)))),
    "standing": (read_standing, to_wire(Standing(7, PeerId("a"), True))),
    "push": (read_push, to_wire(Push(1, "base", b"frame"))),
    "reply": (read_reply, to_wire(Reply(Kind.CHANGE, 7, bytes(16), b"frame"))),
}
BAD: dict[str, dict[int, tuple[Any, ...]]] = {
    "question": {0: (*NOT_COUNTS, None), 1: NOT_COUNTS, 2: (*NOT_BLOBS, bytes(7), bytes(9))},
    "standing": {0: (*NOT_COUNTS, None), 1: NOT_TEXTS, 2: (None, 0, 1, "", b"")},
    "push": {0: (*NOT_COUNTS, None), 1: (*NOT_TEXTS, None), 2: NOT_BLOBS},
    "reply": {0: (*NOT_COUNTS, None, 0, 3), 1: (*NOT_COUNTS, None), 2: NOT_BLOBS, 3: (*NOT_BLOBS, b"")},
}


@pytest.mark.parametrize("name", GOOD)
def test_malformed_fields_are_refused(name: str) -> None:
    takes_no_other_fields(*GOOD[name], BAD[name])


@pytest.mark.parametrize("name", GOOD)
def test_cut_and_extended_messages(name: str) -> None:
    takes_no_other_length(*GOOD[name])


def test_who_is_not_the_server_brings_no_values() -> None:
    with pytest.raises(FrameError, match="ELSEWHERE with values"):
        read_reply(to_wire(Reply(Kind.ELSEWHERE, 0, b"", b"frame")))


def test_what_is_too_long_is_not_read() -> None:
    for read, limit in ((read_question, MAX_SMALL_BYTES), (read_standing, MAX_SMALL_BYTES), (read_reply, LIMIT)):
        with pytest.raises(FrameError, match=f"{limit + 1} bytes, allowed are {limit}"):
            read(bytes(limit + 1))


def test_the_longest_small_messages_fit() -> None:
    most = (1 << 53) - 1
    longest = (to_wire(Question(3, most, bytes(8))), to_wire(Standing(most, PeerId("漢" * 200), True)))
    assert max(map(len, longest)) <= MAX_SMALL_BYTES


# -- which pushes were counted ----------------------------------------------------------------------------------------

A, B = PeerId("a"), PeerId("b")


def test_only_the_last_push_of_each_worker_is_known() -> None:
    counted = CountedPushes()
    first, second = push_id(A, b"first"), push_id(A, b"second")
    counted.note(A, first)
    assert counted.has(A, first)
    assert not counted.has(B, first)
    counted.note(A, second)
    assert counted.has(A, second)
    assert not counted.has(A, first)


def test_the_same_bytes_of_two_workers_are_two_pushes() -> None:
    assert push_id(A, b"same") != push_id(B, b"same")
    assert push_id(A, b"same") == push_id(A, b"same")
    assert push_id(PeerId("x" * 200), b"a")  # however long a name is


def test_it_travels() -> None:
    counted = CountedPushes()
    for number in range(5):
        counted.note(PeerId(f"peer {number}"), push_id(A, bytes([number])))
    again = CountedPushes(counted.pack())
    assert again.pack() == counted.pack()
    assert all(again.has(PeerId(f"peer {number}"), push_id(A, bytes([number]))) for number in range(5))


def test_it_is_bounded_and_the_oldest_goes_first() -> None:
    counted = CountedPushes()
    for number in range(MAX_ENTRIES + 1):
        counted.note(PeerId(f"{number}"), push_id(A, b"x"))
        counted.note(PeerId("0"), push_id(A, b"y"))
    assert len(counted.pack()) == MAX_COUNTED_BYTES
    assert counted.has(PeerId("0"), push_id(A, b"y")), "it has just pushed"
    assert not counted.has(PeerId("1"), push_id(A, b"x"))


@pytest.mark.parametrize("packed", [bytes(15), bytes(MAX_COUNTED_BYTES + 16)])
def test_a_malformed_one_is_refused(packed: bytes) -> None:
    with pytest.raises(FrameError, match="bytes of counted pushes"):
        CountedPushes(packed)
