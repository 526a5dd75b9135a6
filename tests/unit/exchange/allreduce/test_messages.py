import functools
import math
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.errors import FrameError
from decentral.exchange.allreduce.messages import (
    MAX_CONVENE_BYTES,
    Answer,
    Convene,
    ConveneReply,
    Mean,
    Shard,
    unpack_mean,
    unpack_participants,
)
from decentral.exchange.allreduce.participants import MAX_MEMBERS, MAX_PARTICIPANTS_BYTES, Call, Participants
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId, SyncKey
from tests.support.wire import takes_no_other_length

unpack_convene = functools.partial(from_wire, Convene)
unpack_convene_reply = functools.partial(from_wire, ConveneReply)
read_shard = functools.partial(from_wire, Shard, limit=1000)
counts = st.integers(0, (1 << 53) - 1)
texts = st.text("aé漢 ", max_size=20)
peers = st.text("abcxyz", min_size=1, max_size=8).map(PeerId)
keys = st.builds(SyncKey, counts, counts)
blobs = st.binary(max_size=60)
participants = st.builds(
    Participants,
    key=keys,
    leader=peers,
    serial=counts,
    base=texts,
    members=st.sets(peers, min_size=1, max_size=9).map(lambda some: tuple(sorted(some))),
    absent=st.lists(st.tuples(peers, texts), max_size=3).map(tuple),
)
convenes = st.builds(Convene, keys, texts, counts, st.lists(peers, max_size=4).map(tuple))
replies = st.builds(ConveneReply, st.sampled_from(Answer), blobs, st.none() | peers)
parts = st.builds(Shard, blobs, counts, st.floats(allow_nan=False), blobs)
NUM_MEMBERS = 20
means = st.builds(
    Mean.of, st.sets(st.integers(0, NUM_MEMBERS - 1), min_size=1).map(lambda some: tuple(sorted(some))), blobs
)
read_mean = functools.partial(unpack_mean, limit=1000, num_members=NUM_MEMBERS)


@settings(max_examples=40)
@given(participants=participants, convene=convenes, reply=replies, shard=parts, mean=means)
def test_round_trips(
    participants: Participants, convene: Convene, reply: ConveneReply, shard: Shard, mean: Mean
) -> None:
    assert unpack_participants(to_wire(participants)) == participants
    assert unpack_convene(to_wire(convene)) == convene
    assert unpack_convene_reply(to_wire(reply)) == reply
    assert read_shard(to_wire(shard)) == shard
    assert read_mean(to_wire(mean)) == mean


GOOD: list[tuple[Callable[[bytes], Any], bytes, list[Any]]] = [
    (read, data, msgpack.unpackb(data))
    for read, data in (
        (
            unpack_participants,
            to_wire(Participants(SyncKey(1, 0), PeerId("a"), 2, "base", (PeerId("a"),), ((PeerId("b"), "why"),))),
        ),
        (unpack_convene, to_wire(Convene(SyncKey(1, 0), "base", 3, (PeerId("b"),)))),
        (unpack_convene_reply, to_wire(ConveneReply(Answer.PARTICIPANTS, b"participants", PeerId("a")))),
        (read_shard, to_wire(Shard(b"participants", 0, 1.0, b"frame"))),
        (read_mean, to_wire(Mean.of((0, 2), b"frame"))),
    )
]


@pytest.mark.parametrize(("read", "data", "values"), GOOD)
def test_cut_and_extended_messages(read: Callable[[bytes], Any], data: bytes, values: list[Any]) -> None:
    takes_no_other_length(read, data)


@pytest.mark.parametrize("number", [-1, 1 << 53, 1.0, True, None, "1"])
def test_counts(number: Any) -> None:
    for read, position in ((unpack_participants, 2), (unpack_convene, 2), (read_shard, 1)):
        values = next(values for reader, _, values in GOOD if reader is read)
        wrong = [*values[:position], number, *values[position + 1 :]]
        with pytest.raises(FrameError, match="malformed"):
            read(bytes(msgpack.packb(wrong)))
    for key in ([number, 0], [0, number], [0], [0, 0, 0], number):
        with pytest.raises(FrameError, match="malformed"):
            unpack_convene(bytes(msgpack.packb([key, "base", 0, []])))


@pytest.mark.parametrize("members", [[], ["b", "a"], ["a", "a"], ["a", 5], ["x" * 201], "a" * 0])
def test_participants_are_in_order_and_some(members: Any) -> None:
    with pytest.raises(FrameError, match="malformed list of participants"):
        unpack_participants(bytes(msgpack.packb([[0, 0], "a", 0, "base", members, []])))


def test_there_are_at_most_so_many_participants() -> None:
    names = [PeerId(f"{number:07d}") for number in range(MAX_MEMBERS + 1)]
    largest = Participants(SyncKey(0, 0), names[0], 0, "", tuple(names[:-1]))
    assert unpack_participants(to_wire(largest)) == largest
    with pytest.raises(FrameError, match="malformed list of participants"):
        unpack_participants(to_wire(Participants(SyncKey(0, 0), names[0], 0, "", tuple(names))))


def test_most_participants_with_real_ids_fit() -> None:
    names = tuple(PeerId(f"Qm{number:044d}") for number in range(MAX_MEMBERS))
    assert len(to_wire(Participants(SyncKey(0, 0), names[0], 0, "d" * 16, names))) < MAX_PARTICIPANTS_BYTES


@pytest.mark.parametrize(
    ("read", "limit"),
    [
        (unpack_participants, MAX_PARTICIPANTS_BYTES),
        (unpack_convene, MAX_CONVENE_BYTES),
        (unpack_convene_reply, MAX_PARTICIPANTS_BYTES),
        (read_shard, 1000),
        (read_mean, 1000),
    ],
)
def test_what_is_too_long_is_not_read(read: Callable[[bytes], Any], limit: int) -> None:
    with pytest.raises(FrameError, match=f"{limit + 1} bytes, allowed are {limit}"):
        read(bytes(limit + 1))


@pytest.mark.parametrize("weight", ["1", None, True, b""])
def test_a_weight_is_a_float(weight: Any) -> None:
    with pytest.raises(FrameError, match="malformed contribution"):
        read_shard(bytes(msgpack.packb([b"", 0, weight, b""])))


def test_a_weight_that_makes_no_sense_is_left_to_the_ledger() -> None:
    assert math.isnan(read_shard(to_wire(Shard(b"", 0, math.nan, b""))).weight)


def test_contributors_must_be_members() -> None:
    last = Mean.of((NUM_MEMBERS - 1,), b"")
    assert read_mean(to_wire(last)) == last
    for bits in (b"", b"\x00", (1 << NUM_MEMBERS).to_bytes(3, "little"), b"\x01\x00\x00\x00", "a", 5, [1]):
        with pytest.raises(FrameError, match="malformed mean"):
            read_mean(bytes(msgpack.packb([bits, b""])))


def test_who_sent_a_call_is_who_calls() -> None:
    convene = Convene(SyncKey(1, 0), "base", 3, ())
    assert convene.call_of(PeerId("a")) == Call(PeerId("a"), "base", 3)


@pytest.mark.parametrize("slack_s", [0.0, 1.5, math.inf])
def test_how_long_a_caller_can_wait_travels_with_its_call(slack_s: float) -> None:
    convene = Convene(SyncKey(1, 0), "base", 3, (), slack_s)
    assert unpack_convene(to_wire(convene)) == convene
    assert convene.call_of(PeerId("a")).slack_s == slack_s


@pytest.mark.parametrize("slack_s", [-1.0, math.nan, None, "1"])
def test_a_slack_that_is_none(slack_s: Any) -> None:
    with pytest.raises(FrameError, match="malformed call"):
        unpack_convene(bytes(msgpack.packb([(1, 0), "base", 3, [], slack_s])))
