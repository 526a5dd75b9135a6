"""What travels between heads and stages, packed with msgpack, and the checks every message passes before use.

Layouts are documented in ``docs/wire-format.md``. Activations and gradients travel in the frames of ``codecs.frame``,
which check themselves; this module checks everything around them, and knows nothing of who sends what to whom when.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgpack

from decentral.exchange.packed import reading, unpacked
from decentral.swarm import checked
from decentral.types import PeerId

T = TypeVar("T")

#: Stages in a pipeline, without the head.
MAX_STAGES: Final = 256
#: Micro-batches in a batch.
MAX_MICROBATCHES: Final = 4_096
#: What a packet has beside its frame: a path and the loads of its hops, 112 bytes or fewer for each with libp2p's ids.
MAX_HEADER_BYTES: Final = 1 << 15
#: Longest message without a frame: the indices of all micro-batches.
MAX_SMALL_BYTES: Final = 1 << 14
_MAX_TEXT: Final = 200


@dataclass(frozen=True, slots=True, order=True)
class Hop:
    """One stop on the path of a micro-batch."""

    stage: int
    """0 is the head."""
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a replica of a stage was when a packet came through."""

    stage: int
    peer: PeerId
    queued: int
    """Micro-batches that waited there."""
    seconds: float
    """What a micro-batch takes there, forward and backward."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A micro-batch under way: activations on the way there, their gradient on the way back."""

    slot: int
    batch: int
    index: int
    attempt: int
    """The head's count of how often it sent this micro-batch: an answer to an earlier attempt is stale."""
    path: tuple[Hop, ...]
    """The head first and last, every stage once between them, in the order of the way there."""
    hop: int
    """Where in the path the packet is going."""
    train: bool
    """False: no gradient is wanted."""
    loads: tuple[Load, ...]
    """Of hops that it came through."""
    frame: bytes

    @property
    def head(self) -> PeerId:
        """Whose micro-batch it is."""
        return self.path[0].peer


@dataclass(frozen=True, slots=True)
class Commit:
    """A head to a replica: a batch is complete, and this is your share of it."""

    slot: int
    batch: int
    step: int
    """Global step that the batch is for."""
    indices: tuple[int, ...] | None
    """Micro-batches that the replica is to count, ascending; ``None``: whatever it holds of the batch."""
    loss: float
    """Mean over the batch, nats per token; NaN if it is not finite."""
    num_tokens: int
    """In the whole batch."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A replica's answer to a commit."""

    step: int
    """The next one it will take."""
    missing: tuple[int, ...]
    """Indices of its share that it has not counted, ascending."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A hop to the head: this micro-batch goes no further."""

    slot: int
    batch: int
    index: int
    attempt: int
    culprit: PeerId | None
    """Whom the sender could not deliver it to; ``None`` if it has lost the micro-batch itself."""
    reason: str
    """For people; the wire takes its first 200 characters."""


@dataclass(frozen=True, slots=True)
class Settle:
    """A head that takes over a data slot to a replica: how far is this slot?"""

    slot: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The answer: what was committed last, and what the replica is like since."""

    batch: int
    """-1 for none."""
    step: int
    """The next one it will take."""
    pending: int
    """Micro-batches counted of the batch after it."""
    grad_norm: float
    """L2 norm of its last mean gradient, before clipping; NaN for none."""
    loss: float
    """Of the last batch of any head, nats per token; NaN if it is not known."""


def pack(packet: Packet) -> bytes:
    """A micro-batch under way."""
    path = [(hop.stage, hop.peer) for hop in packet.path]
    loads = [(load.stage, load.peer, load.queued, load.seconds) for load in packet.loads]
    key = (packet.slot, packet.batch, packet.index, packet.attempt)
    return bytes(msgpack.packb([*key, path, packet.hop, packet.train, loads, packet.frame]))


def unpack(data: bytes, *, num_stages: int, frame_bytes: int) -> Packet:
    """The inverse of ``pack``; raises FrameError.

    Args:
        data: what came.
        num_stages: stages of this run's pipeline, without the head.
        frame_bytes: the longest frame that may be in it.
    """

    def packet(
        slot: Any, batch: Any, index: Any, attempt: Any, path: Any, hop: Any, train: Any, loads: Any, frame: Any
    ) -> Packet:
        hops = _path(path, num_stages)
        return Packet(
            checked.count(slot),
            checked.count(batch),
            _index(index),
            checked.count(attempt),
            hops,
            _below(len(hops), "hop", hop),
            checked.flag(train),
            _loads(loads, hops),
            _frame(frame, frame_bytes),
        )

    return _read(data, MAX_HEADER_BYTES + frame_bytes, "packet", packet)


def pack_commit(commit: Commit) -> bytes:
    """A batch is complete."""
    loss = _finite(commit.loss)
    return bytes(msgpack.packb([commit.slot, commit.batch, commit.step, commit.indices, loss, commit.num_tokens]))


def unpack_commit(data: bytes) -> Commit:
    """The inverse of ``pack_commit``; raises FrameError."""

    def commit(slot: Any, batch: Any, step: Any, indices: Any, loss: Any, num_tokens: Any) -> Commit:
        share = None if indices is None else _indices(indices)
        count = checked.count
        return Commit(count(slot), count(batch), count(step), share, _figure(loss), count(num_tokens))

    return _read(data, MAX_SMALL_BYTES, "commit", commit)


def pack_committed(reply: Committed) -> bytes:
    """A replica's answer to a commit."""
    return bytes(msgpack.packb([reply.step, reply.missing]))


def unpack_committed(data: bytes) -> Committed:
    """The inverse of ``pack_committed``; raises FrameError."""

    def committed(step: Any, missing: Any) -> Committed:
        return Committed(checked.count(step), _indices(missing))

    return _read(data, MAX_SMALL_BYTES, "answer to a commit", committed)


def pack_failed(failed: Failed) -> bytes:
    """A micro-batch goes no further."""
    key = (failed.slot, failed.batch, failed.index, failed.attempt)
    return bytes(msgpack.packb([*key, failed.culprit, failed.reason[:_MAX_TEXT]]))


def unpack_failed(data: bytes) -> Failed:
    """The inverse of ``pack_failed``; raises FrameError."""

    def failed(slot: Any, batch: Any, index: Any, attempt: Any, culprit: Any, reason: Any) -> Failed:
        return Failed(
            checked.count(slot),
            checked.count(batch),
            _index(index),
            checked.count(attempt),
            None if culprit is None else checked.peer(culprit),
            checked.text(reason),
        )

    return _read(data, MAX_SMALL_BYTES, "failure", failed)


def pack_settle(settle: Settle) -> bytes:
    """How far is a data slot?"""
    return bytes(msgpack.packb([settle.slot]))


def unpack_settle(data: bytes) -> Settle:
    """The inverse of ``pack_settle``; raises FrameError."""
    return _read(data, MAX_SMALL_BYTES, "question for a slot", lambda slot: Settle(checked.count(slot)))


def pack_settled(settled: Settled) -> bytes:
    """How far a data slot is; the wire counts batches, so that nothing on it is negative."""
    figures = (_finite(settled.grad_norm), _finite(settled.loss))
    return bytes(msgpack.packb([settled.batch + 1, settled.step, settled.pending, *figures]))


def unpack_settled(data: bytes) -> Settled:
    """The inverse of ``pack_settled``; raises FrameError."""

    def settled(num_batches: Any, step: Any, pending: Any, grad_norm: Any, loss: Any) -> Settled:
        if _figure(grad_norm) < 0:
            raise ValueError(f"norm {grad_norm}")
        count = checked.count
        return Settled(count(num_batches) - 1, count(step), count(pending), grad_norm, _figure(loss))

    return _read(data, MAX_SMALL_BYTES, "answer for a slot", settled)


def _read(data: bytes, limit: int, what: str, build: Callable[..., T]) -> T:
    """What ``build`` makes of the list in ``data``; it gets one argument for each element."""
    fields = unpacked(data, limit, what)
    return reading(what, lambda: build(*checked.all_of(lambda value: value, fields)))


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _figure(value: object) -> float:
    """A finite number, or NaN for one that is not known."""
    if not isinstance(value, float) or math.isinf(value):
        raise ValueError(f"number expected, got {checked.shown(value)}")
    return value


def _below(limit: int, what: str, value: object) -> int:
    number = checked.count(value)
    if number >= limit:
        raise ValueError(f"{what} {number}, allowed are 0 to {limit - 1}")
    return number


def _index(value: object) -> int:
    return _below(MAX_MICROBATCHES, "micro-batch", value)


def _indices(value: object) -> tuple[int, ...]:
    indices = checked.all_of(_index, value)
    if list(indices) != sorted(set(indices)):
        raise ValueError("micro-batches are not in order")
    return indices


def _frame(value: object, limit: int) -> bytes:
    frame = checked.blob(value)
    if len(frame) > limit:
        raise ValueError(f"frame of {len(frame)} bytes, allowed are {limit}")
    return frame


def _path(value: object, num_stages: int) -> tuple[Hop, ...]:
    """A path from the head through every stage once and back to the head."""

    def hop(fields: object) -> Hop:
        stage, peer = checked.all_of(lambda field: field, fields)
        return Hop(checked.count(stage), checked.peer(peer))

    hops = checked.all_of(hop, value)
    if [hop.stage for hop in sorted(hops)] != [0, 0, *range(1, num_stages + 1)]:
        raise ValueError("path does not go through every stage once")
    if hops[0].stage != 0 or hops[0] != hops[-1]:
        raise ValueError("path does not begin and end at one head")
    return hops


def _loads(value: object, path: tuple[Hop, ...]) -> tuple[Load, ...]:
    """Loads of different stages on the path."""

    def load(fields: object) -> Load:
        stage, peer, queued, seconds = checked.all_of(lambda field: field, fields)
        load = Load(checked.count(stage), checked.peer(peer), checked.count(queued), checked.duration(seconds))
        if not math.isfinite(load.seconds):
            raise ValueError("a micro-batch takes for ever")
        return load

    loads = checked.all_of(load, value)
    hops = {Hop(load.stage, load.peer) for load in loads}
    if len(hops) < len(loads) or not hops <= set(path[1:-1]):
        raise ValueError("loads are not those of stages on the path")
    return loads
