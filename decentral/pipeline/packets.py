"""What travels between heads and stages.

Layouts are documented in ``docs/wire-format.md``. Activations and gradients travel in the frames of ``codecs.frame``,
which check themselves; this module says what is allowed around them, and knows nothing of who sends what to whom when.
"""

import math
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from decentral.errors import FrameError
from decentral.swarm.message import Duration, Message, Peer, Text, ascending, below, from_wire
from decentral.types import Count, PeerId

#: Stages in a pipeline, without the head.
MAX_STAGES: Final = 256
#: Micro-batches in a batch.
MAX_MICROBATCHES: Final = 4_096
#: What a packet has beside its frame: a path and the loads of its hops, 112 bytes or fewer for each with libp2p's ids.
MAX_HEADER_BYTES: Final = 1 << 15
#: Longest message without a frame: the indices of all micro-batches.
MAX_SMALL_BYTES: Final = 1 << 14
_MAX_TEXT: Final = 200

#: A micro-batch of a batch.
Index = Annotated[int, Meta(ge=0, lt=MAX_MICROBATCHES)]


class Hop(Message, frozen=True, order=True):
    """One stop on the path of a micro-batch."""

    stage: Count
    """0 is the head."""
    peer: Peer


class Load(Message, frozen=True):
    """How busy a replica of a stage was when a packet came through."""

    stage: Count
    peer: Peer
    queued: Count
    """Micro-batches that waited there."""
    seconds: Duration
    """What a micro-batch takes there, forward and backward."""


class Packet(Message, frozen=True):
    """A micro-batch under way: activations on the way there, their gradient on the way back."""

    what: ClassVar[str] = "packet"
    slot: Count
    batch: Count
    index: Index
    attempt: Count
    """The head's count of how often it sent this micro-batch: an answer to an earlier attempt is stale."""
    path: tuple[Hop, ...]
    """The head first and last, every stage once between them, in the order of the way there."""
    hop: Count
    """Where in the path the packet is going."""
    train: bool
    """False: no gradient is wanted."""
    loads: tuple[Load, ...]
    """Of hops that it came through."""
    frame: bytes
    marks: bytes = b""
    """What the blocks are told of the micro-batch besides; on the way there alone."""

    @property
    def head(self) -> PeerId:
        """Whose micro-batch it is."""
        return self.path[0].peer

    def check(self) -> None:
        """Refuse a path that goes astray, and loads of others than stages on it."""
        hops = self.path
        if [hop.stage for hop in sorted(hops)] != [0, 0, *range(1, len(hops) - 1)]:
            raise ValueError("path does not go through every stage once")
        if hops[0].stage != 0 or hops[0] != hops[-1]:
            raise ValueError("path does not begin and end at one head")
        below(len(hops), "hop", self.hop)
        loaded = {(load.stage, load.peer) for load in self.loads}
        if len(loaded) < len(self.loads) or not loaded <= {(hop.stage, hop.peer) for hop in hops[1:-1]}:
            raise ValueError("loads are not those of stages on the path")
        if any(math.isinf(load.seconds) for load in self.loads):
            raise ValueError("a micro-batch takes for ever")


class Commit(Message, frozen=True):
    """A head to a replica: a batch is complete, and this is your share of it."""

    what: ClassVar[str] = "commit"
    max_bytes: ClassVar[int] = MAX_SMALL_BYTES
    slot: Count
    batch: Count
    step: Count
    """Global step that the batch is for."""
    indices: tuple[Index, ...] | None
    """Micro-batches that the replica is to count, ascending; ``None``: whatever it holds of the batch."""
    loss: float
    """Mean over the batch, nats per token; NaN if it is not finite."""
    num_tokens: Count
    """In the whole batch."""

    def check(self) -> None:
        """Refuse micro-batches that are not in order, and an infinite loss."""
        ascending("micro-batches", self.indices or ())
        _refuse_infinite("loss", self.loss)


class Committed(Message, frozen=True):
    """A replica's answer to a commit."""

    what: ClassVar[str] = "answer to a commit"
    max_bytes: ClassVar[int] = MAX_SMALL_BYTES
    step: Count
    """The next one it will take."""
    missing: tuple[Index, ...]
    """Indices of its share that it has not counted, ascending."""

    def check(self) -> None:
        """Refuse micro-batches that are not in order."""
        ascending("micro-batches", self.missing)


class Failed(Message, frozen=True):
    """A hop to the head: this micro-batch goes no further."""

    what: ClassVar[str] = "failure"
    max_bytes: ClassVar[int] = MAX_SMALL_BYTES
    slot: Count
    batch: Count
    index: Index
    attempt: Count
    culprit: Peer | None
    """Whom the sender could not deliver it to; ``None`` if it has lost the micro-batch itself."""
    reason: Text
    """For people; see ``shortened``."""


class Settle(Message, frozen=True):
    """A head that takes over a data slot to a replica: how far is this slot?"""

    what: ClassVar[str] = "question for a slot"
    max_bytes: ClassVar[int] = MAX_SMALL_BYTES
    slot: Count


class Settled(Message, frozen=True):
    """The answer: what was committed last, and what the replica is like since."""

    what: ClassVar[str] = "answer for a slot"
    max_bytes: ClassVar[int] = MAX_SMALL_BYTES
    num_batches: Count
    """Committed so far."""
    step: Count
    """The next one it will take."""
    pending: Count
    """Micro-batches counted of the batch after them."""
    grad_norm: float
    """L2 norm of its last mean gradient, before clipping; NaN for none."""
    loss: float
    """Of the last batch of any head, nats per token; NaN if it is not known."""

    @property
    def batch(self) -> int:
        """The last one committed; -1 for none."""
        return self.num_batches - 1

    def check(self) -> None:
        """Refuse figures that are infinite, and a negative norm."""
        _refuse_infinite("norm", self.grad_norm)
        _refuse_infinite("loss", self.loss)
        if self.grad_norm < 0:
            raise ValueError(f"norm {self.grad_norm}")


def unpack_packet(data: bytes, *, num_stages: int, frame_bytes: int, marks_bytes: int = 0) -> Packet:
    """A packet of this run; raises FrameError.

    Args:
        data: what came.
        num_stages: stages of this run's pipeline, without the head.
        frame_bytes: the longest frame that may be in it.
        marks_bytes: of the marks that have to be in it.
    """
    packet = from_wire(Packet, data, MAX_HEADER_BYTES + frame_bytes + marks_bytes)
    if len(packet.path) != num_stages + 2:
        raise FrameError("malformed packet: path does not go through every stage once")
    if len(packet.frame) > frame_bytes:
        raise FrameError(f"malformed packet: frame of {len(packet.frame)} bytes, allowed are {frame_bytes}")
    if len(packet.marks) != marks_bytes:
        raise FrameError(f"malformed packet: marks of {len(packet.marks)} bytes in place of {marks_bytes}")
    return packet


def figure(value: float) -> float:
    """A figure for a message: NaN for what is not finite."""
    return float(value) if math.isfinite(value) else math.nan


def shortened(reason: str) -> str:
    """A reason as far as a message takes it."""
    return reason[:_MAX_TEXT]


def _refuse_infinite(what: str, value: float) -> None:
    if math.isinf(value):
        raise ValueError(f"{what} {value}")
