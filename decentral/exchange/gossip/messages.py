"""The messages of a gossip, packed with msgpack, and the checks every one of them passes before use.

Layouts are documented in ``docs/wire-format.md``. Values travel in the frames of ``codecs.frame``, which check
themselves; this module checks everything around them.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import msgpack

from decentral.exchange.packed import MAX_WEIGHT, reading, unpacked
from decentral.swarm import checked
from decentral.types import PeerId

#: Longest message without values.
MAX_SMALL_BYTES = 1_024
#: Durations on the wire are whole milliseconds below this: three years.
_MAX_MS = 10**11


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a worker will be at its next sync of a fragment, and when: the answer to a question."""

    host: PeerId
    """Whom it will visit, or itself if it stays at home."""
    eta_s: float | None
    """Seconds until then; ``None`` if it has no room for the one who asks."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A guest's anchor, ahead of its pseudo-gradient."""

    fragment: int
    base: str
    """Digest of the anchor and outer state."""
    frame: bytes


@dataclass(frozen=True, slots=True)
class Bring:
    """What a guest brings to its host."""

    fragment: int
    base: str
    """Digest of the anchor and outer state that the pseudo-gradient was taken against."""
    serial: int
    """Of the guest's syncs: two of them are never mistaken for each other."""
    weight: float
    """0 to listen only; the frame of the pseudo-gradient is empty then."""
    patience_s: float
    """How long the guest will stay."""
    delta: bytes
    anchor: bytes
    """Empty if it went ahead."""


@dataclass(frozen=True, slots=True)
class Poll:
    """A guest that has brought its values asks again."""

    fragment: int
    serial: int


class Kind(IntEnum):
    """How a host answers."""

    HOLD = 0
    """Others are missing: ask again."""
    NO = 1
    """No room, or not soon enough."""
    ANCHOR = 2
    """The anchor that should have come ahead is not here: send it along."""
    DONE = 3


@dataclass(frozen=True, slots=True)
class Reply:
    """A host's answer; the fields after ``eta_s`` are filled when it is done."""

    kind: Kind
    eta_s: float | None = None
    """When a host that says no would be ready, if it knows."""
    held_s: float = 0.0
    """How long the guest's values waited for others."""
    members: tuple[PeerId, ...] = ()
    """The group, the host first."""
    contributors: tuple[int, ...] = ()
    """Indices of those members whose pseudo-gradients are in the mean."""
    mean: bytes = b""
    pull: bytes = b""


def pack_question(fragment: int) -> bytes:
    """Where will you be at your next sync of this fragment?"""
    return bytes(msgpack.packb([fragment]))


def unpack_question(data: bytes) -> int:
    """The inverse of ``pack_question``; raises FrameError."""
    fields = unpacked(data, MAX_SMALL_BYTES, "question")

    def read() -> int:
        (fragment,) = fields
        return checked.count(fragment)

    return reading("question", read)


def pack_plan(plan: Plan) -> bytes:
    """The answer to a question."""
    return bytes(msgpack.packb([plan.host, _ms(plan.eta_s)]))


def unpack_plan(data: bytes) -> Plan:
    """The inverse of ``pack_plan``; raises FrameError."""
    fields = unpacked(data, MAX_SMALL_BYTES, "plan")

    def read() -> Plan:
        host, eta_ms = fields
        return Plan(checked.peer(host), _seconds(eta_ms))

    return reading("plan", read)


def pack_anchor(anchor: Anchor) -> bytes:
    """An anchor ahead of its pseudo-gradient."""
    return bytes(msgpack.packb([anchor.fragment, anchor.base, anchor.frame]))


def unpack_anchor(data: bytes, limit: int) -> Anchor:
    """The inverse of ``pack_anchor``; raises FrameError."""
    fields = unpacked(data, limit, "anchor")

    def read() -> Anchor:
        fragment, base, frame = fields
        return Anchor(checked.count(fragment), checked.text(base), checked.blob(frame))

    return reading("anchor", read)


def pack_bring(bring: Bring) -> bytes:
    """What a guest brings."""
    fields = [bring.fragment, bring.base, bring.serial, bring.weight, _ms(bring.patience_s), bring.delta, bring.anchor]
    return bytes(msgpack.packb(fields))


def unpack_bring(data: bytes, limit: int) -> Bring:
    """The inverse of ``pack_bring``; raises FrameError."""
    fields = unpacked(data, limit, "contribution")

    def read() -> Bring:
        fragment, base, serial, weight, patience_ms, delta, anchor = fields
        if not isinstance(weight, float) or not 0 <= weight <= MAX_WEIGHT or (weight > 0) != bool(delta):
            raise ValueError(f"weight {checked.shown(weight)} with{'' if delta else 'out'} values")
        return Bring(
            checked.count(fragment),
            checked.text(base),
            checked.count(serial),
            weight,
            _seconds(patience_ms) or 0.0,
            checked.blob(delta),
            checked.blob(anchor),
        )

    return reading("contribution", read)


def pack_poll(poll: Poll) -> bytes:
    """A guest asks again."""
    return bytes(msgpack.packb([poll.fragment, poll.serial]))


def unpack_poll(data: bytes) -> Poll:
    """The inverse of ``pack_poll``; raises FrameError."""
    fields = unpacked(data, MAX_SMALL_BYTES, "poll")

    def read() -> Poll:
        fragment, serial = fields
        return Poll(checked.count(fragment), checked.count(serial))

    return reading("poll", read)


def pack_reply(reply: Reply) -> bytes:
    """A host's answer."""
    fields = [int(reply.kind), _ms(reply.eta_s), _ms(reply.held_s), reply.members, reply.contributors]
    return bytes(msgpack.packb([*fields, reply.mean, reply.pull]))


def unpack_reply(data: bytes, limit: int, max_members: int) -> Reply:
    """The inverse of ``pack_reply``; raises FrameError."""
    fields = unpacked(data, limit, "answer of a host")

    def read() -> Reply:
        kind, eta_ms, held_ms, members, contributors, mean, pull = fields
        reply = Reply(
            Kind(checked.count(kind)),
            _seconds(eta_ms),
            _seconds(held_ms) or 0.0,
            checked.all_of(checked.peer, members),
            checked.all_of(checked.count, contributors),
            checked.blob(mean),
            checked.blob(pull),
        )
        if len(reply.members) > max_members or len(set(reply.members)) < len(reply.members):
            raise ValueError("members are too many, or not different")
        if any(index >= len(reply.members) for index in reply.contributors):
            raise ValueError("contributors are not members")
        if list(reply.contributors) != sorted(set(reply.contributors)):
            raise ValueError("contributors are not in order")
        return reply

    return reading("answer of a host", read)


def _ms(seconds: float | None) -> int | None:
    """Whole milliseconds for the wire."""
    return None if seconds is None or not math.isfinite(seconds) else min(_MAX_MS, max(0, int(1000 * seconds)))


def _seconds(value: object) -> float | None:
    """A duration from the wire."""
    if value is None:
        return None
    milliseconds = checked.count(value)
    if milliseconds > _MAX_MS:
        raise ValueError(f"duration of {milliseconds} ms")
    return milliseconds / 1000
