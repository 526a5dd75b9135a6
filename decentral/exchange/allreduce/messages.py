"""The messages of an all-reduce.

Layouts are documented in ``docs/wire-format.md``. Values travel in the frames of ``codecs.frame``, which check
themselves; this module says what is allowed around them.
"""

import functools
import math
from collections.abc import Collection, Iterable
from enum import IntEnum
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.errors import FrameError
from decentral.exchange.allreduce.participants import MAX_MEMBERS, MAX_PARTICIPANTS_BYTES, Call, Participants
from decentral.exchange.bounds import Finding, Kind
from decentral.swarm.message import Duration, Message, Peer, Text, from_wire
from decentral.types import Count, PeerId, SyncKey

MAX_CONVENE_BYTES = 64 * MAX_MEMBERS
#: Leaders that a member passes over in one round; after that it believes what the first one said.
MAX_DOUBTED = 16


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


class Convene(Message, frozen=True):
    """A member's request to be among the participants."""

    what: ClassVar[str] = "call to the leader"
    max_bytes: ClassVar[int] = MAX_CONVENE_BYTES
    key: SyncKey
    base: Text
    num_steps: Count
    unreachable: tuple[Peer, ...]
    """Better candidates for leader that the member could not reach."""
    slack_s: Duration = math.inf
    """See ``Call``."""
    doubted: Annotated[tuple[Peer, ...], Meta(max_length=MAX_DOUBTED)] = ()
    """Better candidates whose word the member does not take in this round: most members contradict it."""

    def call_of(self, sender: PeerId) -> Call:
        """The call, made by the authenticated sender."""
        return Call(sender, self.base, self.num_steps, self.slack_s)


class ConveneReply(Message, frozen=True):
    """The leader's answer: the fields that its kind needs are filled."""

    what: ClassVar[str] = "answer of the leader"
    max_bytes: ClassVar[int] = MAX_PARTICIPANTS_BYTES
    kind: Answer
    participants: bytes = b""
    source: Peer | None = None


class Held(Message, frozen=True):
    """Where are you, and have you been told the participants of this synchronisation?"""

    what: ClassVar[str] = "question for participants"
    max_bytes: ClassVar[int] = 64
    round: Count
    fragment: Count


class Where(Message, frozen=True):
    """Where a member is."""

    what: ClassVar[str] = "answer where a member is"
    max_bytes: ClassVar[int] = MAX_PARTICIPANTS_BYTES
    round: Count
    """The next one of the fragment."""
    base: Text
    """Digest of the fragment's anchor and outer state that it holds; empty if it has none."""
    participants: bytes
    """As it was told them; empty if it was not."""
    is_new: bool = False
    """Whether it has its state of another member and was among the participants of no round since: it may be behind the
    one that gave it, and so may many that joined together."""


class Shard(Message, frozen=True):
    """One member's part of one shard on its way to the reducer; an empty frame when it only listens or asks again."""

    what: ClassVar[str] = "contribution"
    participants: bytes
    index: Count
    weight: float
    frame: bytes
    seal: bytes = b""
    """The member's signature of ``account.part_claim``; empty with an empty frame, or where nobody signs."""


class Result(Message, frozen=True):
    """What is the answer to this shard?"""

    what: ClassVar[str] = "question for a result"
    max_bytes: ClassVar[int] = MAX_PARTICIPANTS_BYTES + 64
    participants: bytes
    index: Count


class Mean(Message, frozen=True):
    """The reducer's answer, the same bytes for every member."""

    what: ClassVar[str] = "mean"
    bits: bytes
    """Bit i, little-endian: whether the values of member i are in the mean."""
    frame: bytes
    bounded: tuple[tuple[Count, Kind, float], ...] = ()
    """Whose contribution was bounded, by index into the participants; how; and the ratio (see ``bounds.Finding``)."""
    account: bytes = b""
    """Digest of the reducer's ``account.Account``; empty where nobody signs, like the next one."""
    seal: bytes = b""
    """Its signature of ``account.mean_claim``."""

    def check(self) -> None:
        """Refuse ratios that are no numbers."""
        if any(ratio != ratio for _, _, ratio in self.bounded):
            raise ValueError("a ratio is not a number")

    @classmethod
    def of(cls, contributors: Collection[int], frame: bytes, findings: Iterable[Finding] = ()) -> "Mean":
        """The answer with the contributors' indices into the participants."""
        number = sum(1 << index for index in contributors)
        bounded = tuple([(found.index, found.kind, found.ratio) for found in findings])
        return cls(number.to_bytes(number.bit_length() // 8 + 1, "little"), frame, bounded)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Who was bounded."""
        return tuple([Finding(*each) for each in self.bounded])

    @property
    def contributors(self) -> tuple[int, ...]:
        """Indices into the participants of those whose values are in the mean, ascending."""
        return _indices(self.bits)


@functools.lru_cache(maxsize=256)
def unpack_participants(data: bytes) -> Participants:
    """The participants in ``data``; cached, because a reducer reads the same participants in every member's message."""
    return from_wire(Participants, data)


def unpack_mean(data: bytes, limit: int, num_members: int) -> Mean:
    """A mean of at most so many members; raises FrameError."""
    mean = from_wire(Mean, data, limit)
    contributors = mean.contributors if len(mean.bits) <= num_members // 8 + 1 else ()
    if not contributors or contributors[-1] >= num_members:
        raise FrameError("malformed mean: contributors are not members")
    if any(index not in contributors for index, _, _ in mean.bounded):
        raise FrameError("malformed mean: who was bounded is no contributor")
    return mean


@functools.lru_cache(maxsize=256)
def _indices(bits: bytes) -> tuple[int, ...]:
    """The positions of the ones in a little-endian bit map, in order."""
    number = int.from_bytes(bits, "little")
    return tuple(i for i in range(number.bit_length()) if number >> i & 1)
