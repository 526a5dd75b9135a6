"""The rows of a data set that are this worker's, without end: no two workers of a swarm read the same in an epoch.

What is claimed is remembered with the worker's state, so that it goes on where it was.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from decentral.engine.rows import RowClaims
from decentral.errors import ConfigError, UsageError
from decentral.ports.trainer import Claims
from decentral.run.network import NetworkThread
from decentral.swarm.rows import Book, num_chunks_of, rows_of
from decentral.types import Grant, Page, PeerId

if TYPE_CHECKING:  # all of torch's distributed tensors
    from decentral.run.ranks import Ranks

#: Claimed before they are needed; so many are lost for an epoch at most when a worker dies, beside the one it reads.
_AHEAD = 2
#: A claim ends sooner: the network's side has deadlines for all that it waits for.
_CLAIM_S = 300.0
_ME, _OTHERS = PeerId("me"), PeerId("others")
_MAX_NAME = 100


class Alone:
    """``Claims`` where nobody is asked: nobody else reads, or each of several has every n-th chunk.

    Args:
        part: this one's, from 0.
        parts: how many there are; of fewer chunks several have the same.
    """

    def __init__(self, part: int = 0, parts: int = 1) -> None:
        self._part, self._parts = part, parts
        self._books: dict[str, Book] = {}

    def take(self, data: str, num_chunks: int) -> "Future[Grant]":
        """See ``Claims``; the result is there at once."""
        taken: Future[Grant] = Future()
        book, parts = self._book(data, num_chunks), min(self._parts, num_chunks)
        while (grant := book.free(_ME)).chunk % parts != self._part % parts:
            book.write(grant, _OTHERS)
        book.write(grant, _ME)
        taken.set_result(grant)
        return taken

    def page(self, data: str, num_chunks: int) -> Page:
        """See ``Claims``."""
        return self._book(data, num_chunks).page

    def remember(self, data: str, num_chunks: int, page: Page, held: Sequence[Grant]) -> Sequence[Grant]:
        """See ``Claims``."""
        self._books[data] = book = Book(num_chunks)
        book.learn(page)
        return held

    def _book(self, data: str, num_chunks: int) -> Book:
        return self._books.setdefault(data, Book(num_chunks))


class SwarmClaims:
    """``Claims`` in a swarm. What is trained may hold it before the worker is in the swarm."""

    def __init__(self) -> None:
        self._network: NetworkThread | None = None
        self._service: RowClaims | None = None
        self.seed = 0
        """Of the run; equal on all workers."""

    def bind(self, network: NetworkThread, service: RowClaims, seed: int) -> None:
        """From now on claims go to the others."""
        self._network, self._service, self.seed = network, service, seed

    def take(self, data: str, num_chunks: int) -> "Future[Grant]":
        """See ``Claims``.

        Raises:
            UsageError: this worker is not in a swarm yet.
        """
        network, service = self._bound()
        return network.submit(service.take(data, num_chunks))

    def page(self, data: str, num_chunks: int) -> Page:
        """See ``Claims``."""
        return self._bound()[1].page(data, num_chunks)

    def remember(self, data: str, num_chunks: int, page: Page, held: Sequence[Grant]) -> Sequence[Grant]:
        """See ``Claims``."""
        network, service = self._bound()
        return network.call(service.remember(data, num_chunks, page, held), timeout_s=_CLAIM_S)

    def _bound(self) -> tuple[NetworkThread, RowClaims]:
        if self._network is None or self._service is None:
            raise UsageError(
                "Rows are shared out among the workers of a swarm, and this one is not in it yet.",
                hint="Read the first row after found or join has returned; in a task, in train_steps.",
            )
        return self._network, self._service


class Chunks:
    """Chunks of a data set that this worker reads, one after the other without end.

    Args:
        claims: settles whose they are; ``None`` where nobody else reads.
        data: see ``Claims.take``.
        num_chunks: that an epoch has.
    """

    def __init__(self, claims: Claims | None, data: str, num_chunks: int) -> None:
        self._claims = claims or Alone()
        self._data = (data, num_chunks)
        self._to_read: deque[Grant] = deque()
        self._reads: deque[Grant] = deque()
        self._coming: deque[Future[Grant]] = deque()
        self._lock = threading.Lock()
        """One thread may take chunks while another one reads them."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Grant:
        """The next one; waits until it is granted, which it mostly was before."""
        while len(self._coming) < (1 if self._to_read else 1 + _AHEAD):
            self._coming.append(self._claims.take(*self._data))
        claim = None if self._to_read else self._coming[0]
        come = None if claim is None else claim.result(_CLAIM_S)
        with self._lock:
            if come is None:
                come = self._to_read.popleft()
            else:
                self._coming.popleft()
            self._reads.append(come)
        return come

    def done(self) -> None:
        """The first of those that were given out has been read to its end."""
        self._reads.popleft()

    def state_dict(self) -> dict[str, Any]:
        """What is taken, and what of it this worker has not read to its end."""
        with self._lock:
            come = [claim.result() for claim in self._coming if claim.done() and not claim.exception()]
            held = [list(grant) for grant in (*self._reads, *self._to_read, *come)]
        epoch, tags = self._claims.page(*self._data)
        return {"epoch": epoch, "tags": tags.hex(), "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go on from there; whether with the chunk that was being read. If it is not, it begins with another one."""
        held = [Grant(*grant) for grant in state["held"]]
        page = Page(state["epoch"], bytes.fromhex(state["tags"]))
        self._coming.clear()
        self._reads.clear()
        self._to_read = deque(self._claims.remember(*self._data, page, held))
        return bool(self._to_read)


class Rows:
    """Indices of the rows of a data set that are this worker's: a ``sampler=`` of torch's ``DataLoader``, without end.

    Given to ``decentral.found``, ``join`` or ``resume`` as ``rows=``; to be read once they have returned. Of several
    ranks that are one worker each is given every n-th of its rows, and reads as many as the others before each step.

    Args:
        num_rows: of the data set, at least 1.
        data: names it; the same on all workers that have the same rows in the same order, and on no others.
    """

    def __init__(self, num_rows: int, data: str = "") -> None:
        if num_rows < 1 or len(data) > _MAX_NAME:
            raise ConfigError(
                f"Rows({num_rows!r}, {data!r}) names no data set.",
                hint=f"Give the number of its rows, at least 1, and a name of at most {_MAX_NAME} characters.",
            )
        self.claims = SwarmClaims()
        self._num_rows = num_rows
        self._chunks = Chunks(self.claims, f"{data}/{num_rows}", num_chunks_of(num_rows))
        self._ranks: Ranks | None = None
        self._at_hand: deque[tuple[int, list[int]]] = deque()
        """Epoch and rows of the chunks that are read."""
        self._row = 0
        """Of the first of them, or behind it: what all ranks have been given together."""
        self._given = 0
        """Rows of this rank since it began."""
        self.epoch = 0
        """Of the row that was given last."""

    def deal_to(self, ranks: "Ranks") -> None:
        """From now on rank 0 claims, and each has its part. To be called by all."""
        self._ranks = ranks

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        """The next row of this worker's, or of this rank's."""
        rank, size = (0, 1) if self._ranks is None else (self._ranks.rank, self._ranks.size)
        while self._at_hand and self._row >= len(self._at_hand[0][1]):
            self._row -= len(self._at_hand.popleft()[1])
            if rank == 0:
                self._chunks.done()
        # All ranks ask for a chunk at the same row, though its first may be another one's.
        while sum(len(rows) for _, rows in self._at_hand) < self._row + size:
            self._take()
        place = self._row + rank
        self._row, self._given = self._row + size, self._given + 1
        for epoch, rows in self._at_hand:
            if place < len(rows):
                self.epoch = epoch
                return rows[place]
            place -= len(rows)
        raise AssertionError(place)

    def state_dict(self) -> dict[str, Any]:
        """Behind the row that was given last; of several ranks rank 0 has it."""
        if self._ranks is not None and not self._ranks.leads:
            return {}
        return {"chunks": self._chunks.state_dict(), "row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the row behind it, if its chunk is still this worker's."""
        self._at_hand.clear()
        self._row = state["row"] if state and self._chunks.load_state_dict(state["chunks"]) else 0

    def _take(self) -> None:
        """One chunk more is at hand, on all ranks."""
        mine = (next(self._chunks), self.claims.seed, self._row) if self._ranks is None or self._ranks.leads else None
        if self._ranks is not None:
            mine, *_ = self._ranks.meet("the next row", self._given, mine)
        assert mine is not None
        grant, seed, self._row = mine
        self._at_hand.append((grant.epoch, rows_of(grant, self._num_rows, seed).tolist()))
