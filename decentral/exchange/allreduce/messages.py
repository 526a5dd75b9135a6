"""The messages of an all-reduce, packed with msgpack, and the checks every one of them passes before use.

Layouts are documented in ``docs/wire-format.md``. Values travel in the frames of ``codecs.frame``, which check
themselves; this module checks everything around them.
"""

import functools
import math
from dataclasses import dataclass
from enum import IntEnum

import msgpack

from decentral.exchange.allreduce.participants import Call, Participants
from decentral.exchange.packed import key_of, reading, unpacked
from decentral.swarm import checked
from decentral.types import PeerId, SyncKey

MAX_MEMBERS = 4096
#: A list of participants of so many members with their absent peers, and whatever surrounds it.
MAX_PARTICIPANTS_BYTES = 256 * MAX_MEMBERS
MAX_CONVENE_BYTES = 64 * MAX_MEMBERS


class Answer(IntEnum):
    """How a peer answers a call to the leader."""

    PARTICIPANTS = 0
    WAIT = 1
    REDIRECT = 2
    """The enclosed peer leads."""
    BEHIND = 3
    """The round is over; the enclosed participants, if there are any, were named without the caller."""
    OUT_OF_SYNC = 4
    """Most members hold another anchor; the enclosed peer has it."""


@dataclass(frozen=True, slots=True)
class Convene:
    """A member's request to be among the participants."""

    key: SyncKey
    base: str
    num_steps: int
    unreachable: tuple[PeerId, ...]
    """Better candidates for leader that the member could not reach."""
    slack_s: float = math.inf
    """See ``Call``."""

    def call_of(self, sender: PeerId) -> Call:
        """The call, made by the authenticated sender."""
        return Call(sender, self.base, self.num_steps, self.slack_s)


@dataclass(frozen=True, slots=True)
class ConveneReply:
    """The leader's answer: the fields that its kind needs are filled."""

    kind: Answer
    participants: bytes = b""
    source: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """One member's part of one shard on its way to the reducer; an empty frame when it only listens or asks again."""

    participants: bytes
    index: int
    weight: float
    frame: bytes


@dataclass(frozen=True, slots=True)
class Mean:
    """The reducer's answer, the same bytes for every member."""

    contributors: tuple[int, ...]
    """Indices into the participants of those whose values are in the mean."""
    frame: bytes


def pack_participants(participants: Participants) -> bytes:
    """A list of participants as the bytes that every member gets and that name it in later messages."""
    key = (participants.key.round, participants.key.fragment)
    return bytes(
        msgpack.packb(
            [
                key,
                participants.leader,
                participants.serial,
                participants.base,
                participants.members,
                participants.absent,
            ]
        )
    )


@functools.lru_cache(maxsize=256)
def unpack_participants(data: bytes) -> Participants:
    """The participants in ``data``; cached, because a reducer reads the same participants in every member's message."""
    fields = unpacked(data, MAX_PARTICIPANTS_BYTES, "list of participants")

    def read() -> Participants:
        key, leader, serial, base, members, absent = fields
        participants = Participants(
            key_of(key),
            checked.peer(leader),
            checked.count(serial),
            checked.text(base),
            checked.all_of(checked.peer, members),
            tuple((checked.peer(peer), checked.text(why)) for peer, why in absent),
        )
        if not 0 < len(participants.members) <= MAX_MEMBERS or list(participants.members) != sorted(
            set(participants.members)
        ):
            raise ValueError("members are not in order")
        return participants

    return reading("list of participants", read)


def pack_convene(message: Convene) -> bytes:
    """A request to be among the participants."""
    key = (message.key.round, message.key.fragment)
    return bytes(msgpack.packb([key, message.base, message.num_steps, message.unreachable, message.slack_s]))


def unpack_convene(data: bytes) -> Convene:
    """The inverse of ``pack_convene``; raises FrameError."""
    fields = unpacked(data, MAX_CONVENE_BYTES, "call to the leader")

    def read() -> Convene:
        key, base, num_steps, unreachable, slack_s = fields
        return Convene(
            key_of(key),
            checked.text(base),
            checked.count(num_steps),
            checked.all_of(checked.peer, unreachable),
            checked.duration(slack_s),
        )

    return reading("call to the leader", read)


def pack_convene_reply(reply: ConveneReply) -> bytes:
    """The leader's answer."""
    return bytes(msgpack.packb([int(reply.kind), reply.participants, reply.source]))


def unpack_convene_reply(data: bytes) -> ConveneReply:
    """The inverse of ``pack_convene_reply``; raises FrameError."""
    fields = unpacked(data, MAX_PARTICIPANTS_BYTES, "answer of the leader")

    def read() -> ConveneReply:
        kind, participants, source = fields
        return ConveneReply(
            Answer(checked.count(kind)), checked.blob(participants), None if source is None else checked.peer(source)
        )

    return reading("answer of the leader", read)


def pack_shard(shard: Shard) -> bytes:
    """A contribution to one shard."""
    return bytes(msgpack.packb([shard.participants, shard.index, shard.weight, shard.frame]))


def unpack_shard(data: bytes, limit: int) -> Shard:
    """The inverse of ``pack_shard``; raises FrameError."""
    fields = unpacked(data, limit, "contribution")

    def read() -> Shard:
        participants, index, weight, frame = fields
        if not isinstance(weight, float):
            raise ValueError(f"weight expected, got {checked.shown(weight)}")
        return Shard(checked.blob(participants), checked.count(index), weight, checked.blob(frame))

    return reading("contribution", read)


@functools.lru_cache(maxsize=256)
def _indices(bits: bytes) -> tuple[int, ...]:
    """The positions of the ones in a little-endian bit map, in order."""
    number = int.from_bytes(bits, "little")
    return tuple(i for i in range(number.bit_length()) if number >> i & 1)


def pack_mean(mean: Mean) -> bytes:
    """The reducer's answer; contributors as a bit map."""
    number = sum(1 << index for index in mean.contributors)
    bits = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return bytes(msgpack.packb([bits, mean.frame]))


def unpack_mean(data: bytes, limit: int, num_members: int) -> Mean:
    """The inverse of ``pack_mean``; raises FrameError."""
    fields = unpacked(data, limit, "mean")

    def read() -> Mean:
        bits, frame = fields
        contributors = _indices(checked.blob(bits)) if len(bits) <= num_members // 8 + 1 else None
        if not contributors or contributors[-1] >= num_members:
            raise ValueError("contributors are not members")
        return Mean(contributors, checked.blob(frame))

    return reading("mean", read)
