"""Handing the current state to a newcomer, and fetching it: in chunks, from any donor that has it, checked by digest.

A snapshot is named by its content. A donor keeps the snapshots that are being fetched from it while it goes on
training, and a download that loses its donor continues from another one that has the same content.

Legend: N = values in a fragment.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from decentral.errors import FrameError, TransportError
from decentral.outer.rule import OuterState
from decentral.ports.transport import Transport
from decentral.state.snapshot import FragmentState, Snapshot, combined_digest, from_bytes, to_bytes
from decentral.swarm.message import Message, Peer, Text, from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.tensors.finite import all_finite
from decentral.types import Count, PeerId, short_id

HEAD = "state.head"
CHUNK = "state.chunk"
CHUNK_BYTES = 1 << 20
_MAX_UPLOADS = 16
_KEPT_SNAPSHOTS = 3


class Head(Message, frozen=True):
    """What a donor says of its snapshot."""

    what: ClassVar[str] = "head"
    max_bytes: ClassVar[int] = 1 << 20
    layout: Text
    """Signature of the cut of the model."""
    step: Count
    rounds: tuple[Count, ...]
    num_steps: tuple[Count, ...]
    """Outer steps of every fragment."""
    digests: tuple[Text, ...]
    counted: tuple[tuple[Peer, ...], ...]
    """Members that the outer state of every fragment counts."""

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return combined_digest(self.digests)


class Chunk(Message, frozen=True):
    """Which part of a snapshot is wanted."""

    what: ClassVar[str] = "question for a chunk"
    name: Text
    fragment: Count
    part: Count
    offset: Count
    """In bytes."""


class Donor:
    """Serves this worker's state.

    Args:
        transport: to answer through.
        layout: signature of the cut of the model.
        current: makes the latest snapshot, or ``None`` while there is none to give.
    """

    def __init__(self, transport: Transport, layout: str, current: Callable[[], Awaitable[Snapshot | None]]) -> None:
        self._transport = transport
        self._layout = layout
        self._current = current
        self._kept: OrderedDict[str, Snapshot] = OrderedDict()

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(HEAD, self._head, max_request_bytes=0)
        await self._transport.serve(CHUNK, self._chunk, max_request_bytes=Chunk.max_bytes, max_concurrent=_MAX_UPLOADS)

    async def _head(self, sender: PeerId, request: bytes) -> bytes:
        snapshot = await self._current()
        if snapshot is None:
            raise ValueError("no state to give yet")
        self._kept[snapshot.name] = snapshot
        self._kept.move_to_end(snapshot.name)
        while len(self._kept) > _KEPT_SNAPSHOTS:
            self._kept.popitem(last=False)
        steps = tuple(fragment.outer.num_steps for fragment in snapshot.fragments)
        counted = tuple(fragment.outer.counted for fragment in snapshot.fragments)
        return to_wire(Head(self._layout, snapshot.step, snapshot.rounds, steps, snapshot.digests, counted))

    async def _chunk(self, sender: PeerId, request: bytes) -> bytes:
        wanted = from_wire(Chunk, request)
        snapshot = self._kept.get(wanted.name)
        if snapshot is None:
            raise ValueError("this snapshot is gone")
        self._kept.move_to_end(wanted.name)
        values_N = snapshot.fragments[wanted.fragment].tensors[wanted.part]
        return bytes(to_bytes(values_N)[wanted.offset : wanted.offset + CHUNK_BYTES])


@dataclass(frozen=True, slots=True)
class Download:
    """A finished download."""

    donor: PeerId
    """Who gave the last part of it."""
    head: Head
    snapshot: Snapshot
    received_bytes: int


@dataclass(frozen=True, slots=True)
class NoDownload:
    """Why nobody could give the state."""

    why: str
    """In words, donor by donor."""
    other_model: bool = False
    """Whether a donor said that it trains another model."""

    def __str__(self) -> str:
        return self.why


class _OtherModelError(FrameError):
    """A donor trains another model."""


class Downloader:
    """Fetches the state of the swarm.

    Args:
        transport: to the donors.
        layout: signature of the cut of this worker's model.
        numels: values in each fragment.
        num_buffers: tensors of the outer rule's state of a fragment.
        timing: bounds for every call.
    """

    def __init__(
        self, transport: Transport, layout: str, numels: Sequence[int], num_buffers: int, timing: Timing
    ) -> None:
        self._transport = transport
        self._layout = layout
        self._numels = tuple(numels)
        self._num_parts = 1 + num_buffers
        self._timing = timing

    async def fetch(
        self, donors: Sequence[PeerId], report: Callable[[int, int], None] | None = None
    ) -> Download | NoDownload:
        """Download from the first donor that can give; the others continue where it fails.

        Args:
            donors: best first; all of them believed to hold the same state.
            report: told of bytes received and bytes in all after every chunk.

        Returns:
            The state, or why nobody could give it.
        """
        problems: list[str] = []
        other_model = False
        received: dict[str, bytearray] = {}
        for donor in donors:
            try:
                head = await self._head(donor)
                # Bytes under another name belong to another state and cannot be continued.
                received = {name: data for name, data in received.items() if name == head.name}
                data = received.setdefault(head.name, bytearray())
                await self._fill(donor, head, data, report)
                return Download(donor, head, self._assemble(head, data), len(data))
            except (TransportError, FrameError) as err:
                problems.append(f"{short_id(donor)}: {err}")
                other_model |= isinstance(err, _OtherModelError)
        return NoDownload("; ".join(problems) or "there is no donor", other_model)

    async def _head(self, donor: PeerId) -> Head:
        """The donor's head, checked."""
        timeout_s = self._timing.call_timeout_s(Head.max_bytes)
        reply = await self._transport.call(donor, HEAD, b"", timeout_s=timeout_s, max_reply_bytes=Head.max_bytes)
        head = from_wire(Head, reply)
        if head.layout != self._layout:
            raise _OtherModelError(f"it trains another model (layout {head.layout[:16]}, ours is {self._layout})")
        if {len(head.rounds), len(head.num_steps), len(head.digests), len(head.counted)} != {len(self._numels)}:
            raise FrameError("head with a wrong number of fragments")
        return head

    async def _fill(
        self, donor: PeerId, head: Head, data: bytearray, report: Callable[[int, int], None] | None
    ) -> None:
        """Append chunks to ``data`` until the state is whole; what is there already is not fetched again."""
        total = 4 * self._num_parts * sum(self._numels)
        timeout_s = self._timing.call_timeout_s(CHUNK_BYTES)
        position = 0
        for fragment, numel in enumerate(self._numels):
            for part in range(self._num_parts):
                while len(data) < position + 4 * numel:
                    offset = len(data) - position
                    expected = min(CHUNK_BYTES, 4 * numel - offset)
                    request = to_wire(Chunk(head.name, fragment, part, offset))
                    chunk = await self._transport.call(
                        donor, CHUNK, request, timeout_s=timeout_s, max_reply_bytes=CHUNK_BYTES
                    )
                    if len(chunk) != expected:
                        raise FrameError(f"chunk of {len(chunk)} bytes, expected {expected}")
                    data += chunk
                    if report is not None:
                        report(len(data), total)
                position += 4 * numel

    def _assemble(self, head: Head, data: bytearray) -> Snapshot:
        """The state, if its digests are those promised."""
        fragments = []
        start = 0
        for i, numel in enumerate(self._numels):
            stop = start + 4 * numel * self._num_parts
            anchor_N, *buffers_N = (from_bytes(data[at : at + 4 * numel]) for at in range(start, stop, 4 * numel))
            start = stop
            outer = OuterState(tuple(buffers_N), head.num_steps[i], head.counted[i])
            state = FragmentState.of(head.rounds[i], anchor_N, outer)
            if state.digest != head.digests[i]:
                data.clear()
                raise FrameError("the state received does not have the promised digest")
            if not all(all_finite(values_N.numpy()) for values_N in state.tensors):
                data.clear()
                raise FrameError("the state received is not finite")
            fragments.append(state)
        return Snapshot(head.step, tuple(fragments))
