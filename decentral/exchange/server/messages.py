"""The messages between workers and servers, packed with msgpack, and the checks every one passes before use.

Layouts are documented in ``docs/wire-format.md``. Values travel in the frames of ``codecs.frame``, which check
themselves; this module checks everything around them.
"""

from dataclasses import dataclass
from enum import IntEnum

import msgpack

from decentral.exchange.packed import reading, unpacked
from decentral.exchange.server.pushes import MAX_COUNTED_BYTES
from decentral.swarm import checked
from decentral.types import PeerId

#: Longest message without values.
MAX_SMALL_BYTES = 1_024
#: What a message with values may have beside them.
ENVELOPE_BYTES = MAX_COUNTED_BYTES + 1_024
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Question:
    """How far are you with this fragment, and do you keep it?"""

    fragment: int
    claim: int | None = None
    """The version of the one who asks, if it keeps the fragment itself."""
    push: bytes = b""
    """A push of the one who asks: was it counted? Empty for none."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The answer to a question."""

    version: int
    """Of the anchor that the answerer holds; 0 if it does not know."""
    server: PeerId | None
    """Who keeps the fragment, or knows who does; ``None`` if the answerer does not."""
    counted: bool = False
    """Whether the push is in that anchor."""


@dataclass(frozen=True, slots=True)
class Push:
    """What a worker brings to a server."""

    fragment: int
    base: str
    """Digest of the anchor that the worker holds."""
    frame: bytes
    """The pseudo-gradient; empty to listen only."""


class Kind(IntEnum):
    """How a server answers."""

    ELSEWHERE = 0
    """Not the server: nothing was counted here."""
    CHANGE = 1
    """The frame holds the change from the anchor that the worker holds, in the codec of means."""
    VALUES = 2
    """The frame holds the anchor itself in float32."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer, or an anchor handed to a new server."""

    kind: Kind
    version: int = 0
    counted: bytes = b""
    """See ``CountedPushes``."""
    frame: bytes = b""


def pack_question(question: Question) -> bytes:
    """A question."""
    return bytes(msgpack.packb([question.fragment, question.claim, question.push]))


def unpack_question(data: bytes, num_fragments: int) -> Question:
    """The inverse of ``pack_question``; raises FrameError."""
    fields = unpacked(data, MAX_SMALL_BYTES, "question")

    def read() -> Question:
        fragment, claim, push = fields
        if len(checked.blob(push)) not in (0, _ID_BYTES):
            raise ValueError(f"name of a push with {len(push)} bytes")
        claim = None if claim is None else checked.count(claim)
        return Question(_fragment(fragment, num_fragments), claim, push)

    return reading("question", read)


def pack_standing(standing: Standing) -> bytes:
    """The answer to a question."""
    return bytes(msgpack.packb([standing.version, standing.server, standing.counted]))


def unpack_standing(data: bytes) -> Standing:
    """The inverse of ``pack_standing``; raises FrameError."""
    fields = unpacked(data, MAX_SMALL_BYTES, "standing")

    def read() -> Standing:
        version, server, counted = fields
        if not isinstance(counted, bool):
            raise ValueError(f"yes or no expected, got {checked.shown(counted)}")
        return Standing(checked.count(version), None if server is None else checked.peer(server), counted)

    return reading("standing", read)


def pack_push(push: Push) -> bytes:
    """What a worker brings."""
    return bytes(msgpack.packb([push.fragment, push.base, push.frame]))


def unpack_push(data: bytes, num_fragments: int) -> Push:
    """The inverse of ``pack_push``; raises FrameError. Whoever serves it has bounded its length."""
    fields = unpacked(data, len(data), "push")

    def read() -> Push:
        fragment, base, frame = fields
        return Push(_fragment(fragment, num_fragments), checked.text(base), checked.blob(frame))

    return reading("push", read)


def pack_reply(reply: Reply) -> bytes:
    """A server's answer."""
    return bytes(msgpack.packb([int(reply.kind), reply.version, reply.counted, reply.frame]))


def unpack_reply(data: bytes, limit: int) -> Reply:
    """The inverse of ``pack_reply``; raises FrameError."""
    fields = unpacked(data, limit, "answer of a server")

    def read() -> Reply:
        kind, version, counted, frame = fields
        reply = Reply(Kind(checked.count(kind)), checked.count(version), checked.blob(counted), checked.blob(frame))
        if (reply.kind is Kind.ELSEWHERE) == bool(reply.frame):
            raise ValueError(f"{reply.kind.name} with{'' if reply.frame else 'out'} values")
        return reply

    return reading("answer of a server", read)


def _fragment(value: object, num_fragments: int) -> int:
    fragment = checked.count(value)
    if fragment >= num_fragments:
        raise ValueError(f"there is no fragment {fragment}")
    return fragment
