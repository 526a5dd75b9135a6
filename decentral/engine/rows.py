"""Claims of chunks of a data set between workers: each is read by one worker in an epoch (``swarm.rows``).

A worker claims from all that live: from the lowest of them first, which settles who is first of several, then from the
others, who remember it when that one is gone.
"""

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from decentral.engine.membership import Membership
from decentral.errors import CallRefused, CallTimeout, FrameError, PeerUnreachable
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import Message, Text, from_wire, to_wire
from decentral.swarm.presence import State
from decentral.swarm.rows import MAX_CHUNKS, Book
from decentral.swarm.timing import Timing
from decentral.types import Count, Grant, Page, PeerId

ROWS = "rows"
#: Who was not heard of for so long is not counted any more: it is dead, or the swarm is cut in two.
_SILENT_S = 30.0
#: A worker that cannot reach most of those who live goes on with its claim after so long: it trains rather than waits.
_PATIENCE_S = 60.0
#: Data sets that a worker keeps a book of; beyond it the oldest is forgotten.
_MAX_BOOKS = 64
#: Workers in these states read no more.
_GONE = frozenset({State.LEAVING, State.DONE})

_MAX_BYTES = 4 * MAX_CHUNKS + 512


class _Claim(Message, frozen=True):
    what: ClassVar[str] = "claim of rows"
    max_bytes: ClassVar[int] = _MAX_BYTES
    data: Text
    epoch: Count
    chunk: Count
    page: tuple[Count, bytes]
    """What the claimant knows, without this claim."""

    def check(self) -> None:
        """See ``Message``."""
        num_chunks, rest = divmod(len(self.page[1]), 4)
        if rest or not self.chunk < num_chunks <= MAX_CHUNKS:
            raise ValueError(f"chunk {self.chunk} of {len(self.page[1]) / 4:g}")


class _Answer(Message, frozen=True):
    what: ClassVar[str] = "answer to a claim of rows"
    max_bytes: ClassVar[int] = _MAX_BYTES
    granted: bool
    page: tuple[Count, bytes]


class RowClaims:
    """What one worker claims, and remembers of others' claims.

    Args:
        transport: to the others.
        membership: who lives.
        clock: for the time.
        timing: how long a call may take.
    """

    def __init__(self, transport: Transport, membership: Membership, clock: Clock, timing: Timing) -> None:
        self._transport = transport
        self._membership = membership
        self._clock = clock
        self._timing = timing
        self._books: dict[tuple[str, int], Book] = {}
        self._claiming = asyncio.Lock()
        self._forfeited = False

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(ROWS, self._on_claim, max_request_bytes=_Claim.max_bytes)

    async def take(self, data: str, num_chunks: int) -> Grant:
        """Claim one chunk more; see ``Claims``. Ends with a grant, as there always is a next epoch."""
        async with self._claiming:
            while True:
                book = self._book(data, num_chunks)
                grant = book.free(self._transport.peer_id)
                claim = _Claim(data, grant.epoch, grant.chunk, book.page)
                if await self._is_granted(book, to_wire(claim)):
                    return grant

    def page(self, data: str, num_chunks: int) -> Page:
        """See ``Claims``. On any thread."""
        return (self._books.get((data, num_chunks)) or Book(num_chunks)).page

    async def remember(self, data: str, num_chunks: int, page: Page, held: Sequence[Grant]) -> Sequence[Grant]:
        """See ``Claims``."""
        book = self._book(data, num_chunks)
        book.learn(page)
        return () if self._forfeited else held

    def forfeit(self) -> None:
        """Rounds may have counted steps that this worker's state does not know of: it reads on in no chunk of then."""
        self._forfeited = True

    async def _is_granted(self, book: Book, claim: bytes) -> bool:
        """Whether nobody refuses a claim, and most of those who live have written it down."""
        me, until = self._transport.peer_id, self._clock.monotonic() + _PATIENCE_S
        granted: set[PeerId] = set()
        while True:
            members = self._members()
            # Its own book comes second: before the lowest has granted it, it would only keep others from the chunk.
            for group in (members[:1], [me], members):
                asked = [peer for peer in group if peer not in granted]
                answers = await asyncio.gather(*[self._ask(peer, claim, book) for peer in asked])
                if False in answers:
                    return False
                granted.update(peer for peer, answer in zip(asked, answers, strict=True) if answer)
            members = self._members()
            if 2 * len(granted.intersection(members)) > len(members) or self._clock.monotonic() >= until:
                return True
            await asyncio.sleep(self._timing.beat_s)

    def _members(self) -> list[PeerId]:
        """This worker and those that it heard of not long ago and that have not left, in order of peer id.

        A call that fails buries nobody here: then a worker that is cut off for a moment would take itself for alone.
        """
        known = self._membership.roster.with_ages(self._clock.monotonic())
        me = self._transport.peer_id
        return [p.peer for p, age_s in known if p.peer == me or (age_s < _SILENT_S and p.state not in _GONE)]

    async def _ask(self, peer: PeerId, claim: bytes, book: Book) -> bool | None:
        """Whether a worker grants a claim; ``None`` if it does not say. What it knows is taken in."""
        timeout_s = self._timing.beat_s + self._timing.grace_s
        try:
            reply = await self._transport.call(
                peer, ROWS, claim, timeout_s=timeout_s, max_reply_bytes=_Answer.max_bytes
            )
            answer = from_wire(_Answer, reply)
            book.learn(Page(*answer.page))
        except (PeerUnreachable, CallTimeout, CallRefused, FrameError, ValueError):
            return None
        return answer.granted

    async def _on_claim(self, sender: PeerId, request: bytes) -> bytes:
        claim = from_wire(_Claim, request)
        book = self._book(claim.data, len(claim.page[1]) // 4)
        granted = book.write(Grant(claim.epoch, claim.chunk), sender)
        book.learn(Page(*claim.page))
        return to_wire(_Answer(granted, book.page))

    def _book(self, data: str, num_chunks: int) -> Book:
        if (book := self._books.get((data, num_chunks))) is None:
            if len(self._books) >= _MAX_BOOKS:
                del self._books[next(iter(self._books))]
            book = self._books[data, num_chunks] = Book(num_chunks)
        return book
