"""Weights for those who bring back a stage: its own as they are now, and copies of heads that it keeps.

Both are handed over as snapshots are: in pieces, checked by digest. Legend: N = values of a stage or of the head.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import framed_nbytes, pack, unpack
from decentral.errors import CallRefused, FrameError
from decentral.outer.rule import OuterState
from decentral.pipeline.scoped import Scoped
from decentral.ports.clock import Clock
from decentral.ports.trainer import Model
from decentral.ports.transport import Transport
from decentral.state.download.donor import Donor
from decentral.state.download.downloader import Download, Downloader, NoDownload
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.message import Message, from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.tensors.layout import Layout
from decentral.types import Count, PeerId

KEEP = "keep"
_LIVE = "live"
_KEPT = "kept"
_EXACT = make_codec("fp32")
_HEADER_BYTES = 64
#: Copies of a head: that of the last commit, and that of the one which may be under way.
_NUM_KEPT = 2
#: Copies that are taken in at a time.
_MAX_AT_ONCE = 4
#: Data slots that a stage keeps copies for.
_MAX_SLOTS = 256


class _Keep(Message, frozen=True):
    what: ClassVar[str] = "copy of a head"
    slot: Count
    batch: Count
    frame: bytes


def shapes_signature(parameters: Mapping[str, Tensor]) -> str:
    """16 hex characters, equal for stages whose values can stand for each other's, whatever their names."""
    shapes = [list(value.shape) for value in parameters.values()]
    return hashlib.blake2b(json.dumps(shapes).encode(), digest_size=8).hexdigest()


class LiveWeights:
    """Hands out the weights of a stage as they are between two micro-batches.

    Args:
        transport: of the stage.
        model: its weights.
        clock: they are copied on its thread.
    """

    def __init__(self, transport: Transport, model: Model, clock: Clock) -> None:
        self._model = model
        self._clock = clock
        self._layout = Layout.of(model.parameters())
        signature = shapes_signature(model.parameters())
        self._donor = Donor(Scoped(transport, _LIVE), signature, self._copy, clock)

    async def start(self) -> None:
        """Begin to answer."""
        await self._donor.start()

    async def _copy(self) -> Snapshot:
        values_N = await self._clock.run(lambda: self._layout.gather(self._model.parameters(), 0))
        return _as_snapshot(0, values_N)


class KeptHeads:
    """Keeps exact copies of heads, those after their last two batches, and hands out the one that was committed.

    Args:
        transport: of the stage that keeps them.
        numel: N, of a head.
        signature: of a head's shapes.
        committed: last committed batch of a slot.
        is_head: whether a peer is the head of a slot; nobody else's copies are taken.
        clock: they are decoded beside its thread.
    """

    def __init__(
        self,
        transport: Transport,
        numel: int,
        signature: str,
        committed: Callable[[int], int],
        is_head: Callable[[PeerId, int], bool],
        clock: Clock,
    ) -> None:
        self._is_head = is_head
        self._clock = clock
        self._transport = transport
        self._numel = numel
        self._signature = signature
        self._committed = committed
        self._kept: dict[int, dict[int, Tensor]] = {}

    async def start(self) -> None:
        """Begin to answer."""
        size = _HEADER_BYTES + framed_nbytes(_EXACT, self._numel)
        await self._transport.serve(KEEP, self._on_keep, max_request_bytes=size, max_concurrent=_MAX_AT_ONCE)

    async def _on_keep(self, sender: PeerId, request: bytes) -> bytes:
        try:
            slot, batch, values_N = await self._clock.run_aside(lambda: _unpack_keep(request, self._numel))
        except FrameError as err:
            raise CallRefused(str(err)) from err
        if not self._is_head(sender, slot):
            raise CallRefused(f"{sender} is not known as the head of slot {slot}")
        copies = self._kept.get(slot)
        if copies is None:
            if len(self._kept) >= _MAX_SLOTS:
                raise CallRefused(f"copies of {_MAX_SLOTS} heads are kept already")
            copies = self._kept[slot] = {}
            current = functools.partial(self._current, slot)
            donor = Donor(_kept_scope(self._transport, slot), self._signature, current, self._clock)
            await donor.start()
        copies[batch] = values_N
        for old in sorted(copies)[:-_NUM_KEPT]:
            del copies[old]
        return b""

    async def _current(self, slot: int) -> Snapshot | None:
        """The copy of the last committed batch; of none that is only about to be."""
        committed = self._committed(slot)
        known = [batch for batch in self._kept.get(slot, {}) if batch <= committed]
        return _as_snapshot(max(known), self._kept[slot][max(known)]) if known else None


def pack_keep(slot: int, batch: int, values_N: Tensor) -> bytes:
    """The copy of a head after a batch."""
    return to_wire(_Keep(slot, batch, pack(_EXACT, values_N)))


async def fetch_live(
    transport: Transport, peers: Sequence[PeerId], signature: str, numel: int, timing: Timing, clock: Clock
) -> Download | NoDownload:
    """The weights of a stage as one of its holders has them now, or why nobody gave them."""
    downloader = Downloader(Scoped(transport, _LIVE), signature, (numel,), 0, timing, clock)
    return await _one_by_one(downloader, peers)


async def _one_by_one(downloader: Downloader, peers: Sequence[PeerId]) -> Download | NoDownload:
    """From the first that can: each has other weights, and makes a copy when it is asked."""
    problems: list[str] = []
    for peer in peers:
        download = await downloader.fetch([peer])
        if isinstance(download, Download):
            return download
        problems.append(download.why)
    return NoDownload("; ".join(problems) or "nobody holds it")


async def fetch_kept(
    transport: Transport, slot: int, peers: Sequence[PeerId], signature: str, numel: int, timing: Timing, clock: Clock
) -> Download | NoDownload:
    """The copy of a slot's head that holders of a stage keep; its step is the batch after which it was made."""
    return await Downloader(_kept_scope(transport, slot), signature, (numel,), 0, timing, clock).fetch(peers)


def values_of(download: Download) -> Tensor:
    """What was fetched [N]."""
    return download.snapshot.fragments[0].anchor_N


def _kept_scope(transport: Transport, slot: int) -> Scoped:
    return Scoped(transport, f"{_KEPT}/{slot}")


def _as_snapshot(step: int, values_N: Tensor) -> Snapshot:
    return Snapshot(step, (FragmentState.of(0, values_N, OuterState()),))


def _unpack_keep(request: bytes, numel: int) -> tuple[int, int, Tensor]:
    keep = from_wire(_Keep, request, _HEADER_BYTES + framed_nbytes(_EXACT, numel))
    return keep.slot, keep.batch, unpack(keep.frame, _EXACT, numel)
