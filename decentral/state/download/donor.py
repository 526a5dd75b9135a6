"""Handing the current state to others, piece by piece, beside the training and within a share of the uplink.

A donor keeps the snapshots that are being fetched from it while it goes on training: a bounded number, of which those
in use stay. A newcomer that finds all places in use is given the newest of them, and takes the rounds since as means.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import torch

from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.state.download.pieces import HEAD, PIECE, VALUES, Ask, AskValues, Cut, Head, head_of
from decentral.state.snapshot import Snapshot, to_bytes
from decentral.swarm.message import below, from_wire, to_wire
from decentral.types import PeerId

#: Pieces on their way at a time; whoever asks beyond that is refused and asks again.
_MAX_UPLOADS = 16
#: Of an upload limit that is known, so much is for the state: the rest is for rounds.
_UPLOAD_SHARE = 0.5
_MAX_SNAPSHOTS = 3
#: Whoever has not asked for so long, and for as long as a piece takes at this rate, has all or is gone.
_IDLE_S, _SLOW_BYTES_PER_S = 15.0, 200_000.0
#: A snapshot of which nobody has asked anything for so long is given up.
_UNASKED_S = 60.0


@dataclass(slots=True)
class _Offer:
    """A snapshot that is kept."""

    snapshot: Snapshot
    head: Head
    cut: Cut
    asked_at: float
    """When anybody asked for it, or for values of it, last."""


class Donor:
    """Serves this worker's state.

    Args:
        transport: to answer through.
        layout: signature of the cut of the model.
        current: makes the latest snapshot, or ``None`` while there is none to give.
        clock: for the time, and its second thread for digests.
    """

    def __init__(
        self, transport: Transport, layout: str, current: Callable[[], Awaitable[Snapshot | None]], clock: Clock
    ) -> None:
        self._transport = transport
        self._layout = layout
        self._current = current
        self._clock = clock
        self._offers: dict[str, _Offer] = {}
        """By name, the oldest first."""
        self._places: dict[str, tuple[_Offer, int]] = {}
        """Where the fragment of a digest is."""
        self._askers: dict[PeerId, tuple[str, float]] = {}
        """Which snapshot was offered to whom, and when they last asked."""
        self._making = asyncio.Lock()

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(HEAD, self._head, max_request_bytes=0)
        await self._transport.serve(
            PIECE,
            self._piece,
            max_request_bytes=Ask.max_bytes,
            max_concurrent=_MAX_UPLOADS,
            upload_share=_UPLOAD_SHARE,
        )
        await self._transport.serve(VALUES, self._values, max_request_bytes=AskValues.max_bytes)

    async def _head(self, sender: PeerId, request: bytes) -> bytes:
        async with self._making:  # the same digests are not computed for several at once
            snapshot = await self._current()
            if snapshot is None:
                raise ValueError("no state to give yet")
            self._forget_askers()
            self._askers.pop(sender, None)
            if snapshot.name not in self._offers and self._is_full():
                offer = list(self._offers.values())[-1]
            else:  # one of this name may be of an earlier round, if nothing was mixed since
                offer = await self._offer(snapshot)
            offer.asked_at = self._clock.monotonic()
            self._askers[sender] = offer.snapshot.name, offer.asked_at
        return to_wire(offer.head)

    async def _piece(self, sender: PeerId, request: bytes) -> bytes:
        """A piece; empty if its fragment is not here."""
        ask = from_wire(Ask, request)
        if ask.digest not in self._places:
            return b""
        offer, fragment = self._places[ask.digest]
        pieces = offer.cut.pieces[fragment]
        below(len(pieces), "piece", ask.index)
        if sender in self._askers:
            self._askers[sender] = self._askers[sender][0], self._clock.monotonic()
        offer.asked_at = self._clock.monotonic()
        piece = pieces[ask.index]
        values_N = offer.snapshot.fragments[fragment].tensors[piece.part]
        return bytes(to_bytes(values_N)[piece.start : piece.stop])

    async def _values(self, sender: PeerId, request: bytes) -> bytes:
        """Of each fragment the values of all its tensors, at the positions asked for; empty if one is not here."""
        said = [torch.empty(0)]
        for asked in from_wire(AskValues, request).fragments:
            if asked.digest not in self._places:
                return b""
            offer, number = self._places[asked.digest]
            offer.asked_at = self._clock.monotonic()
            tensors = offer.snapshot.fragments[number].tensors
            below(tensors[0].numel(), "position", max(asked.indices, default=-1))
            said += [values_N[list(asked.indices)] for values_N in tensors]
        return torch.cat(said).numpy().tobytes()

    def forget_idle(self) -> None:
        """Give up snapshots of which nobody asks anything any more: each takes as much memory as the model's anchor."""
        since = self._clock.monotonic() - _UNASKED_S
        idle = [name for name, offer in self._offers.items() if offer.asked_at <= since]
        if idle:
            for name in idle:
                del self._offers[name]
            self._index()

    def _forget_askers(self) -> None:
        """Of those who have not asked for long."""
        now = self._clock.monotonic()
        pieces_s = max((offer.cut.piece_bytes / _SLOW_BYTES_PER_S for offer in self._offers.values()), default=0.0)
        self._askers = {peer: (name, at) for peer, (name, at) in self._askers.items() if now - at < _IDLE_S + pieces_s}

    def _is_full(self) -> bool:
        """Make room; whether there is none, since all that is kept is in use."""
        in_use = {name for name, _ in self._askers.values()}
        while len(self._offers) >= _MAX_SNAPSHOTS:
            idle = next((name for name in self._offers if name not in in_use), None)
            if idle is None:
                return True
            del self._offers[idle]
        return False

    async def _offer(self, snapshot: Snapshot) -> _Offer:
        """Keep a snapshot; of fragments that are kept already the digests are known."""
        cut = Cut.of(snapshot)
        heads = []
        for number, fragment in enumerate(snapshot.fragments):
            if fragment.digest in self._places:
                there, place = self._places[fragment.digest]
                pieces = there.head.fragments[place].pieces
            else:
                pieces = await self._clock.run_aside(functools.partial(cut.digests, number, fragment.tensors))
            heads.append(head_of(fragment, pieces))
        head = Head(self._layout, snapshot.step, tuple(heads))
        self._offers.pop(snapshot.name, None)
        offer = self._offers[snapshot.name] = _Offer(snapshot, head, cut, self._clock.monotonic())
        self._index()
        return offer

    def _index(self) -> None:
        self._places = {
            fragment.digest: (each, number)
            for each in self._offers.values()
            for number, fragment in enumerate(each.snapshot.fragments)
        }
