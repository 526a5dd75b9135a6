"""The messages between workers and servers.

Layouts are documented in ``docs/wire-format.md``. Values travel in the frames of ``codecs.frame``, which check
themselves; this module says what is allowed around them.
"""

from enum import IntEnum
from typing import ClassVar

from decentral.exchange.server.pushes import MAX_COUNTED_BYTES
from decentral.swarm.message import Message, Peer, Text
from decentral.types import Count

#: What a message with values may have beside them.
ENVELOPE_BYTES = MAX_COUNTED_BYTES + 1_024
_ID_BYTES = 8


class Question(Message, frozen=True):
    """How far are you with this fragment, and do you keep it?"""

    what: ClassVar[str] = "question"
    fragment: Count
    claim: Count | None = None
    """The version of the one who asks, if it keeps the fragment itself."""
    push: bytes = b""
    """A push of the one who asks: was it counted? Empty for none."""

    def check(self) -> None:
        """Refuse what is no name of a push."""
        if len(self.push) not in (0, _ID_BYTES):
            raise ValueError(f"name of a push with {len(self.push)} bytes")


class Standing(Message, frozen=True):
    """The answer to a question."""

    what: ClassVar[str] = "standing"
    version: Count
    """Of the anchor that the answerer holds; 0 if it does not know."""
    server: Peer | None
    """Who keeps the fragment, or knows who does; ``None`` if the answerer does not."""
    counted: bool = False
    """Whether the push is in that anchor."""


class Push(Message, frozen=True):
    """What a worker brings to a server."""

    what: ClassVar[str] = "push"
    fragment: Count
    base: Text
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


class Reply(Message, frozen=True):
    """A server's answer, or an anchor handed to a new server."""

    what: ClassVar[str] = "answer of a server"
    kind: Kind
    version: Count = 0
    counted: bytes = b""
    """See ``CountedPushes``."""
    frame: bytes = b""

    def check(self) -> None:
        """Refuse values that come from elsewhere, and an answer without them."""
        if (self.kind is Kind.ELSEWHERE) == bool(self.frame):
            raise ValueError(f"{self.kind.name} with{'' if self.frame else 'out'} values")
