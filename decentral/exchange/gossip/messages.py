"""The messages of a gossip.

Layouts are documented in ``docs/wire-format.md``. Values travel in the frames of ``codecs.frame``, which check
themselves; this module says what is allowed around them. Durations travel as whole milliseconds.
"""

import math
from enum import IntEnum
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.errors import FrameError
from decentral.exchange.merge import MAX_WEIGHT
from decentral.swarm.message import Message, Peer, Text, ascending, from_wire
from decentral.types import Count

#: Durations on the wire are at most three years.
_MAX_MS = 10**11
Milliseconds = Annotated[int, Meta(ge=0, le=_MAX_MS)]


class Question(Message, frozen=True):
    """Where will you be at your next sync of this fragment?"""

    what: ClassVar[str] = "question"
    fragment: Count
    patience_ms: Milliseconds | None = None
    """For how long who asks would wait for us to be ready: if we are by then, it comes, and a seat is kept for it.
    ``None`` from one that only asks."""


class Plan(Message, frozen=True):
    """Where a worker will be at its next sync of a fragment, and when: the answer to a question."""

    what: ClassVar[str] = "plan"
    host: Peer
    """Whom it will visit, or itself if it stays at home."""
    eta_ms: Milliseconds | None
    """Until then; ``None`` if it has no room for the one who asks."""

    @property
    def eta_s(self) -> float | None:
        """The same in seconds."""
        return None if self.eta_ms is None else self.eta_ms / 1000


class Anchor(Message, frozen=True):
    """A guest's anchor, ahead of its pseudo-gradient."""

    what: ClassVar[str] = "anchor"
    fragment: Count
    base: Text
    """Digest of the anchor and outer state."""
    frame: bytes


class Bring(Message, frozen=True):
    """What a guest brings to its host."""

    what: ClassVar[str] = "contribution"
    fragment: Count
    base: Text
    """Digest of the anchor and outer state that the pseudo-gradient was taken against."""
    serial: Count
    """Of the guest's syncs: two of them are never mistaken for each other."""
    weight: Annotated[float, Meta(ge=0.0, le=MAX_WEIGHT)]
    """0 to listen only; the frame of the pseudo-gradient is empty then."""
    patience_ms: Milliseconds | None
    """How long the guest will stay; ``None`` for not at all."""
    delta: bytes
    anchor: bytes
    """Empty if it went ahead."""

    def check(self) -> None:
        """Refuse values without a weight, and a weight without values."""
        if (self.weight > 0) != bool(self.delta):
            raise ValueError(f"weight {self.weight} with{'' if self.delta else 'out'} values")

    @property
    def patience_s(self) -> float:
        """How long the guest will stay, in seconds."""
        return (self.patience_ms or 0) / 1000


class Visit(Message, frozen=True):
    """Which of its visits a guest asks about: for the answer, or for what its host brings itself."""

    what: ClassVar[str] = "visit"
    fragment: Count
    serial: Count


class Kind(IntEnum):
    """How a host answers."""

    HOLD = 0
    """Others are missing: ask again."""
    NO = 1
    """No room, or not soon enough."""
    ANCHOR = 2
    """The anchor that should have come ahead is not here: send it along."""
    DONE = 3


class Reply(Message, frozen=True):
    """A host's answer; the fields after ``eta_ms`` are filled when it is done."""

    what: ClassVar[str] = "answer of a host"
    kind: Kind
    eta_ms: Milliseconds | None = None
    """When a host that says no would be ready, if it knows."""
    held_ms: Milliseconds | None = 0
    """How long the guest's values waited for others."""
    members: tuple[Peer, ...] = ()
    """The group, the host first."""
    contributors: tuple[Count, ...] = ()
    """Indices of those members whose pseudo-gradients are in the mean."""
    mean: bytes = b""
    """Empty where the guest takes it itself, of its own pseudo-gradient and its host's."""
    pull: bytes = b""
    own_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """How much of the mean is the guest's own."""

    def check(self) -> None:
        """Refuse members that are not different, and contributors that are none or not in order."""
        if len(set(self.members)) < len(self.members):
            raise ValueError("members are not different")
        if any(index >= len(self.members) for index in self.contributors):
            raise ValueError("contributors are not members")
        ascending("contributors", self.contributors)

    @property
    def is_of_two(self) -> bool:
        """Whether the guest takes the mean itself."""
        return self.kind is Kind.DONE and bool(self.contributors) and not self.mean

    @property
    def eta_s(self) -> float | None:
        """When the host would be ready, in seconds from now."""
        return None if self.eta_ms is None else self.eta_ms / 1000

    @property
    def held_s(self) -> float:
        """How long the guest's values waited for others, in seconds."""
        return (self.held_ms or 0) / 1000


class Given(Message, frozen=True):
    """What a host brings itself, for its only guest."""

    what: ClassVar[str] = "pseudo-gradient of a host"
    kind: Kind
    """``HOLD`` while it still trains, ``NO`` where others sit at its table as well: then its answer has the mean."""
    delta: bytes = b""
    """Empty of one that only listens."""


def unpack_reply(data: bytes, limit: int, max_members: int) -> Reply:
    """An answer that names at most so many members; raises FrameError."""
    reply = from_wire(Reply, data, limit)
    if len(reply.members) > max_members:
        raise FrameError(f"malformed {Reply.what}: {len(reply.members)} members, allowed are {max_members}")
    return reply


def ms(seconds: float | None) -> int | None:
    """Whole milliseconds for the wire; ``None`` for what is not finite."""
    return None if seconds is None or not math.isfinite(seconds) else min(_MAX_MS, max(0, int(1000 * seconds)))
