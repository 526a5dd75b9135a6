"""Memory before disk: neighbours keep what a worker alone has, its inner optimizer and its place in the data.

The anchor is everybody's; what a machine takes with it when it is lost are the moments of its inner optimizer, where it
was in its data, and its random state. A worker that asks for it gives these to a few **guards**, members of the swarm
that keep them in memory. A newcomer without a state of its own takes up that of a worker which is gone.

    owner                          guard                              newcomer
    keep(piece) ...            ->  one snapshot per owner
    (is lost)                      its owner is dead: an orphan   <-  orphans()
                                   promised to one newcomer       <-  claim(owner)
                                   piece                          <-  fetch(owner, offset) ...

Nothing here says what is in a snapshot: it is bytes with a digest. Which peers live is the roster's.

Source: REFT (arXiv 2310.12670), snapshots in the memory of other nodes before any on disk. Differences: whole copies
in place of erasure code (docs/resuming.md has the bytes), and a guard is any member, chosen by hash.
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from decentral.errors import CallRefused, FrameError, PeerUnreachable, TransportError
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import MAX_SMALL_BYTES, Message, Peer, Text, from_wire, to_wire
from decentral.swarm.presence import State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import Count, PeerId

KEEP, ORPHANS, CLAIM, FETCH = "guard.keep", "guard.orphans", "guard.claim", "guard.fetch"
PIECE_BYTES = 1 << 20
_ENVELOPE_BYTES = 512
#: Pieces that are taken in or handed out at a time.
_MAX_AT_ONCE = 4
#: Owners that one guard keeps something of.
_MAX_OWNERS = 64
#: An orphan is promised to one newcomer for so long; then another may have it.
_PROMISE_S = 600.0
#: A snapshot is sent again at the earliest when this many times as long has passed as the last one took: the line is
#: there for the rounds.
_PAUSE_FACTOR = 9.0
#: Before a guard is looked for again after none was found, or all refused.
_RETRY_S = 5.0


class _Piece(Message, frozen=True):
    what: ClassVar[str] = "piece of a snapshot"
    max_bytes: ClassVar[int] = PIECE_BYTES + _ENVELOPE_BYTES
    step: Count
    size: Count
    """Of the whole snapshot, bytes."""
    digest: Text
    offset: Count
    data: bytes


class Orphan(Message, frozen=True):
    """The snapshot of a worker that is gone, and who gives it."""

    what: ClassVar[str] = "orphan"
    owner: Peer
    step: Count
    size: Count
    digest: Text


class _Orphans(Message, frozen=True):
    what: ClassVar[str] = "list of orphans"
    max_bytes: ClassVar[int] = _MAX_OWNERS * MAX_SMALL_BYTES
    orphans: tuple[Orphan, ...]


class _Wanted(Message, frozen=True):
    what: ClassVar[str] = "question for an orphan"
    owner: Peer
    digest: Text
    offset: Count


@dataclass(slots=True)
class _Kept:
    """What a guard has of one owner."""

    step: int
    size: int
    digest: str
    data: bytearray = field(default_factory=bytearray)
    promised_to: PeerId | None = None
    promised_until: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether all of it is there, and what it should be."""
        return len(self.data) == self.size


def digest_of(data: bytes | bytearray) -> str:
    """Names a snapshot by its content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Guard:
    """Keeps other workers' snapshots, within a bound, and hands those of workers that are gone to newcomers.

    Args:
        transport: to answer through.
        roster: who lives.
        clock: for the time.
        max_bytes: for all of them together; 0 to keep nothing.
    """

    def __init__(self, transport: Transport, roster: Roster, clock: Clock, max_bytes: int) -> None:
        self._transport = transport
        self._roster = roster
        self._clock = clock
        self._max_bytes = max_bytes
        self._kept: dict[PeerId, _Kept] = {}
        self._coming: dict[PeerId, _Kept] = {}

    async def start(self) -> None:
        """Begin to answer."""
        serve = self._transport.serve
        await serve(KEEP, self._on_keep, max_request_bytes=_Piece.max_bytes, max_concurrent=_MAX_AT_ONCE)
        await serve(ORPHANS, self._on_orphans, max_request_bytes=0)
        await serve(CLAIM, self._on_claim, max_request_bytes=MAX_SMALL_BYTES)
        await serve(FETCH, self._on_fetch, max_request_bytes=MAX_SMALL_BYTES, max_concurrent=_MAX_AT_ONCE)

    @property
    def kept_bytes(self) -> int:
        """Memory that others' snapshots take here."""
        return sum(each.size for each in (*self._kept.values(), *self._coming.values()))

    async def _on_keep(self, sender: PeerId, request: bytes) -> bytes:
        piece = from_wire(_Piece, request)
        if not self._roster.is_live(sender, self._clock.monotonic()):
            raise CallRefused("not heard of yet; come again")
        coming = self._coming.get(sender)
        if coming is None or coming.digest != piece.digest:
            self._coming.pop(sender, None)
            self._make_room(sender, piece.size)
            coming = self._coming[sender] = _Kept(piece.step, piece.size, piece.digest)
        if piece.offset < len(coming.data):  # it came before; the answer was lost
            return b""
        if piece.offset > len(coming.data) or len(coming.data) + len(piece.data) > coming.size or not piece.data:
            raise CallRefused(f"a piece at {piece.offset}; the next one here begins at {len(coming.data)}")
        coming.data += piece.data
        if coming.whole:
            del self._coming[sender]
            if await self._clock.run_aside(lambda: digest_of(coming.data)) != coming.digest:
                raise CallRefused("the snapshot has not the digest that it was announced with")
            self._kept[sender] = coming
        return b""

    def _make_room(self, owner: PeerId, size: int) -> None:
        """See that so much more fits, at the price of those who have been gone for longest; or refuse it.

        What is kept of the owner stays until its successor is whole, so for a while both are counted.
        """
        known = self._kept.keys() | self._coming.keys()
        now = self._clock.monotonic()
        for other in list(known - {owner}):
            if not self._roster.is_live(other, now):
                self._coming.pop(other, None)
        for other in [peer for peer in self._kept if peer != owner and not self._is_here(peer)]:
            if self.kept_bytes + size <= self._max_bytes and len(known) < _MAX_OWNERS:
                break
            del self._kept[other]
            known = self._kept.keys() | self._coming.keys()
        if self.kept_bytes + size > self._max_bytes or len(known | {owner}) > _MAX_OWNERS:
            raise CallRefused(f"no room for {size} bytes more")

    def _is_here(self, owner: PeerId) -> bool:
        """Whether an owner may still want its snapshot to be kept for itself."""
        presence = self._roster.get(owner)
        if presence is None or presence.state is State.LEAVING:  # its machine may be given back to whoever lent it
            return False
        return self._roster.is_live(owner, self._clock.monotonic())

    def _is_free(self, owner: PeerId, asker: PeerId) -> bool:
        """Whether a newcomer may have what an owner left."""
        kept = self._kept[owner]
        promised = kept.promised_to not in (None, asker) and self._clock.monotonic() < kept.promised_until
        return owner == asker or not (promised or self._is_here(owner))

    async def _on_orphans(self, sender: PeerId, request: bytes) -> bytes:
        free = [
            Orphan(owner, kept.step, kept.size, kept.digest)
            for owner, kept in self._kept.items()
            if self._is_free(owner, sender)
        ]
        return to_wire(_Orphans(tuple(free)))

    async def _on_claim(self, sender: PeerId, request: bytes) -> bytes:
        kept = self._of(sender, from_wire(_Wanted, request))
        kept.promised_to, kept.promised_until = sender, self._clock.monotonic() + _PROMISE_S
        return b""

    async def _on_fetch(self, sender: PeerId, request: bytes) -> bytes:
        wanted = from_wire(_Wanted, request)
        kept = self._of(sender, wanted)
        if kept.promised_to != sender:
            raise CallRefused("it is not promised to you")
        return bytes(kept.data[wanted.offset : wanted.offset + PIECE_BYTES])

    def _of(self, sender: PeerId, wanted: _Wanted) -> _Kept:
        kept = self._kept.get(wanted.owner)
        if kept is None or kept.digest != wanted.digest:
            raise CallRefused("this snapshot is not kept here")
        if not self._is_free(wanted.owner, sender):
            raise CallRefused("its owner is back, or it is promised to another")
        return kept


def guards_of(owner: PeerId, others: Sequence[PeerId], count: int) -> list[PeerId]:
    """Who is to keep an owner's snapshot: of those who live, the first by a hash of both; few change as others come."""

    def rank(peer: PeerId) -> bytes:
        return hashlib.blake2b(f"{owner}/{peer}".encode(), digest_size=8).digest()

    return sorted(others, key=rank)[:count]


class Protector:
    """Gives this worker's snapshots to its guards, the newest one, as often as the line allows.

    Args:
        transport: to the guards.
        roster: who lives.
        clock: for the time.
        timing: bounds of calls.
        copies: how many guards there are to be.
        told: hears, after each snapshot, of its step, bytes, seconds, and who keeps it.
    """

    def __init__(
        self,
        transport: Transport,
        roster: Roster,
        clock: Clock,
        timing: Timing,
        copies: int,
        told: Callable[[int, int, float, Sequence[PeerId]], None],
    ) -> None:
        self._transport = transport
        self._roster = roster
        self._clock = clock
        self._timing = timing
        self._copies = copies
        self._told = told
        self._next: tuple[int, Callable[[], bytes]] | None = None
        self._offered = asyncio.Event()

    def offer(self, step: int, encode: Callable[[], bytes]) -> None:
        """There is a newer snapshot; one that was not sent yet is not needed any more.

        Args:
            step: of it.
            encode: its bytes; called beside the training.
        """
        if self._copies:
            self._next = step, encode
            self._offered.set()

    async def run(self) -> None:
        """Send what is offered, until cancelled."""
        while True:
            await self._offered.wait()
            if self._next is None or not self._others():
                await asyncio.sleep(_RETRY_S)  # alone; somebody may come
                continue
            (step, encode), self._next = self._next, None
            self._offered.clear()
            began = self._clock.monotonic()
            data = await self._clock.run_aside(encode)
            keepers = await self._give(step, data)
            seconds = self._clock.monotonic() - began
            self._told(step, len(data), seconds, keepers)
            await asyncio.sleep(max(_RETRY_S, _PAUSE_FACTOR * seconds) if keepers else _RETRY_S)

    def _others(self) -> list[PeerId]:
        me = self._transport.peer_id
        return [presence.peer for presence in self._roster.active(self._clock.monotonic()) if presence.peer != me]

    async def _give(self, step: int, data: bytes) -> list[PeerId]:
        """Give a snapshot to as many guards as it is to have; those that refuse are passed over."""
        name = await self._clock.run_aside(lambda: digest_of(data))
        keepers: list[PeerId] = []
        for guard in guards_of(self._transport.peer_id, self._others(), _MAX_OWNERS):
            if len(keepers) == self._copies:
                break
            if await self._give_to(guard, step, name, data):
                keepers.append(guard)
        return keepers

    async def _give_to(self, guard: PeerId, step: int, name: str, data: bytes) -> bool:
        """Whether a guard has all of it."""
        timeout_s = self._timing.call_timeout_s(_Piece.max_bytes)
        for offset in range(0, len(data), PIECE_BYTES):
            piece = to_wire(_Piece(step, len(data), name, offset, data[offset : offset + PIECE_BYTES]))
            for last in (False, True):
                try:
                    await self._transport.call(guard, KEEP, piece, timeout_s=timeout_s, max_reply_bytes=0)
                    break
                except (CallRefused, PeerUnreachable):
                    return False
                except TransportError:
                    if last:
                        return False
        return bool(data)


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot of a worker that is gone."""

    owner: PeerId
    step: int
    guard: PeerId
    data: bytearray


async def claim(
    transport: Transport, peers: Sequence[PeerId], timing: Timing, clock: Clock, *, max_bytes: int
) -> Found | None:
    """Take up what a lost worker left, the newest there is; ``None`` if nobody has any, or no whole one.

    Args:
        transport: to the guards.
        peers: members of the swarm, who may be guards.
        timing: bounds of calls.
        clock: its second thread is for the digest.
        max_bytes: a larger snapshot is none of this worker's model.
    """
    lists = await asyncio.gather(*[_orphans(transport, peer, timing) for peer in peers])
    offers = [(orphan, guard) for guard, orphans in zip(peers, lists, strict=True) for orphan in orphans]
    me = transport.peer_id
    # The own first, then the newest: whoever is asked first by all newcomers says no to the second.
    offers.sort(key=lambda offer: (offer[0].owner != me, -offer[0].step, offer[0].owner, offer[1]))
    for orphan, guard in offers:
        if orphan.size > max_bytes:
            continue
        data = await _fetch(transport, guard, orphan, timing)
        if data is not None and await clock.run_aside(functools.partial(digest_of, data)) == orphan.digest:
            return Found(orphan.owner, orphan.step, guard, data)
    return None


async def _orphans(transport: Transport, peer: PeerId, timing: Timing) -> tuple[Orphan, ...]:
    limit = _Orphans.max_bytes
    try:
        timeout_s = timing.call_timeout_s(limit)
        reply = await transport.call(peer, ORPHANS, b"", timeout_s=timeout_s, max_reply_bytes=limit)
        return from_wire(_Orphans, reply).orphans
    except (TransportError, FrameError):
        return ()


async def _fetch(transport: Transport, guard: PeerId, orphan: Orphan, timing: Timing) -> bytearray | None:
    """All of a snapshot, not checked yet, if its guard promises and gives it."""
    data = bytearray()
    try:
        request = to_wire(_Wanted(orphan.owner, orphan.digest, 0))
        timeout_s = timing.call_timeout_s(MAX_SMALL_BYTES)
        await transport.call(guard, CLAIM, request, timeout_s=timeout_s, max_reply_bytes=0)
        while len(data) < orphan.size:
            request = to_wire(_Wanted(orphan.owner, orphan.digest, len(data)))
            expected = min(PIECE_BYTES, orphan.size - len(data))
            timeout_s = timing.call_timeout_s(expected)
            piece = await transport.call(guard, FETCH, request, timeout_s=timeout_s, max_reply_bytes=expected)
            if len(piece) != expected:
                return None
            data += piece
    except TransportError:
        return None
    return data
