from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack
from decentral.exchange.allreduce.account import sealed
from decentral.exchange.allreduce.messages import Mean, Shard
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.bounds import Finding, Kind
from decentral.exchange.wire import MIN_SHARD_VALUES, SHARD_ALIGN, Part, Wire, in_turn
from decentral.swarm.matching import reducers
from decentral.swarm.message import to_wire
from decentral.types import PeerId, SyncKey
from tests.unit.codecs.vectors import normal

INT8, FP32 = make_codec("int8-b128"), make_codec("fp32")


def participants_of(num_members: int, round_: int = 0, fragment: int = 0) -> Participants:
    members = tuple(PeerId(f"peer-{number:04d}") for number in range(num_members))
    return Participants(SyncKey(round_, fragment), members[0], 0, "base", members)


@given(numel=st.integers(1, 400_000), num_members=st.integers(1, 30), round_=st.integers(0, 50))
def test_each_part_of_the_fragment_has_one_reducer(numel: int, num_members: int, round_: int) -> None:
    participants = participants_of(num_members, round_, fragment=1)
    parts = Wire((7, numel), FP32, FP32).parts(participants.key, participants.members)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert sum(part.numel for part in parts) == numel
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert all(part.start % SHARD_ALIGN == 0 for part in parts)
    assert all(part.numel >= MIN_SHARD_VALUES for part in parts[:-1])
    # A reducer's shards are neighbours.
    chosen = tuple(dict.fromkeys(part.reducer for part in parts))
    assert chosen == reducers(participants.members, participants.key, min(num_members, len(parts)))
    assert [part.reducer for part in parts] == sorted((part.reducer for part in parts), key=chosen.index)


def test_a_small_fragment_is_not_cut() -> None:
    participants = participants_of(8)
    (part,) = Wire((1000,), FP32, FP32).parts(participants.key, participants.members)
    assert part == Part(0, 0, 1000, reducers(participants.members, participants.key, 1)[0])


@pytest.mark.parametrize(
    ("codec", "mean_codec", "numel", "each"),
    [
        ("fp32", "fp32", 130_000, 1),
        ("fp32", "fp32", 830_000, 8),
        ("int8-b128", "int8-b128", 830_000, 2),
        ("e3m0-b128", "e3m0-b128", 830_000, 1),
        ("e3m0-b128", "fp32", 830_000, 8),
        ("fp32", "fp32", 9_000_000, 16),
    ],
)
def test_a_long_fragment_is_cut_by_its_bytes(codec: str, mean_codec: str, numel: int, each: int) -> None:
    participants, wire = participants_of(2), Wire((numel,), make_codec(codec), make_codec(mean_codec))
    parts = wire.parts(participants.key, participants.members)
    assert [part.reducer for part in parts] == [
        who for who in (parts[0].reducer, parts[-1].reducer) for _ in range(each)
    ]
    assert parts[0].reducer != parts[-1].reducer


@pytest.mark.parametrize(("num_fragments", "each"), [(1, 16), (8, 12), (40, 8)])
def test_fragments_that_are_on_their_way_together_share_the_streams(num_fragments: int, each: int) -> None:
    participants, wire = participants_of(2), Wire((9_000_000,) * num_fragments, FP32, FP32)
    assert len(wire.parts(participants.key, participants.members)) == 2 * each


def test_a_member_sends_its_own_shards_last_and_begins_with_the_next_reducer() -> None:
    participants, wire = participants_of(3), Wire((2_000_000,), FP32, FP32)
    parts = wire.parts(participants.key, participants.members)
    in_order = list(dict.fromkeys(part.reducer for part in parts))
    for number, reducer in enumerate(in_order):
        turn = in_turn(parts, reducer)
        assert sorted(turn, key=parts.index) == list(parts)
        others = [*in_order[number + 1 :], *in_order[:number]]
        assert list(dict.fromkeys(part.reducer for part in turn)) == [*others, reducer]
    assert in_turn(parts, PeerId("somebody")) == list(parts)


TENSORS = ((100, 90_000), (90_000, 90_500), (90_500, 150_000), (170_000, 300_000))


@given(num_members=st.integers(1, 30), round_=st.integers(0, 50))
def test_no_tensor_that_keeps_its_norm_is_cut(num_members: int, round_: int) -> None:
    members, wire = participants_of(num_members).members, Wire((7, 301_000), FP32, FP32, directed=((), TENSORS))
    parts = wire.parts(SyncKey(round_, 1), members)
    inside = [(part, *bounds) for part in parts for bounds in wire.directed_in(1, part)]
    assert tuple((part.start + start, part.start + stop) for part, start, stop in inside) == TENSORS
    assert all(0 <= start < stop <= part.numel for part, start, stop in inside)
    assert not wire.directed_in(0, wire.parts(SyncKey(round_, 0), members)[0])


@pytest.mark.parametrize("wrong", [{"over_senders": True}, {"sends_changes": True}, {"directed": ((), ())}])
def test_means_that_contradict_each_other(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"made of whole pseudo-gradients|tensors of 2 fragments were given"):
        Wire(**{"numels": (4,), "codec": FP32, "mean_codec": FP32, "directed": (((0, 4),),), **wrong})


@given(num_members=st.sampled_from([1, 3, 64, 900]), numel=st.sampled_from([1, 1000, 70_000]))
def test_real_messages_keep_within_their_limits_and_just_so(num_members: int, numel: int) -> None:
    wire = Wire((numel,), INT8, FP32)
    participants = participants_of(num_members)
    packed = to_wire(participants)
    for part in wire.parts(participants.key, participants.members):
        values_S = normal(part.numel)
        shard = to_wire(Shard(packed, part.index, 1e9, pack(INT8, values_S), bytes(557)))
        assert len(shard) <= wire.contribution_limit(part.numel, len(packed)) <= len(shard) + 1024
        assert wire.contribution_limit(part.numel, len(packed)) <= wire.longest_contribution(len(packed))
        findings = [Finding(i, kind, 9e9) for i in range(num_members) for kind in (Kind.WEIGHT, Kind.LENGTH)]
        mean = to_wire(sealed(Mean.of(range(num_members), pack(FP32, values_S), findings), bytes(16), bytes(557)))
        assert len(mean) <= wire.mean_limit(part.numel, num_members) <= len(mean) + 1024 + 4 * num_members
