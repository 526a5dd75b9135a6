"""Which rows of a data set are read by whom, so that no two workers read the same in an epoch. Pure.

The rows are cut into chunks, and chunks are claimed one at a time (``engine.rows``). What is in a chunk follows from
the run's seed and the epoch by a permutation that needs no memory, so that books say only which chunks are taken. Knows
neither the rows nor the network.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from decentral.types import Grant, Page, PeerId

#: Chunks of an epoch at most: a book of so many is 128 bytes.
MAX_CHUNKS = 1024
#: A chunk that is smaller is read before the next one can be claimed.
_MIN_ROWS = 16
_ROUNDS = 4
#: Taken by somebody, nobody remembers by whom.
_SOMEBODY = PeerId("")


def num_chunks_of(num_rows: int) -> int:
    """Into how many chunks so many rows are cut: the same on all workers that have them."""
    return -(-num_rows // _rows_per_chunk(num_rows))


def rows_of(grant: Grant, num_rows: int, seed: int) -> NDArray[np.int64]:
    """The rows of a chunk, in the order in which they are read.

    Args:
        grant: chunk and epoch.
        num_rows: of the data set.
        seed: equal on all workers: the run's.
    """
    size = _rows_per_chunk(num_rows)
    places = np.arange(grant.chunk * size, min(num_rows, (grant.chunk + 1) * size), dtype=np.uint64)
    return _permuted(places, num_rows, f"{seed}/{grant.epoch}")


class Book:
    """What one worker knows of the chunks of a data set.

    Args:
        num_chunks: of an epoch; at most ``MAX_CHUNKS``.
    """

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = num_chunks
        self.page = Page(0, 0)
        """Replaced, never changed: any thread may read it."""
        self._owners: dict[int, PeerId] = {}

    def learn(self, page: Page) -> None:
        """Take in what another book, or an earlier life of this one, has on its page."""
        if page.epoch > self.page.epoch:
            self._owners.clear()
            self.page = Page(page.epoch, 0)
        if page.epoch == self.page.epoch:
            self.page = Page(page.epoch, self.page.taken | (page.taken & self._all))

    def write(self, grant: Grant, peer: PeerId) -> bool:
        """Write a claim down, unless the chunk is another's or its epoch is over; says whether it now is the peer's."""
        if grant.epoch > self.page.epoch:
            self.learn(Page(grant.epoch, 0))
        owner = self._owners.get(grant.chunk, _SOMEBODY)
        taken = bool(self.page.taken >> grant.chunk & 1)
        if grant.epoch < self.page.epoch or (taken and owner != peer):
            return False
        self._owners[grant.chunk] = peer
        self.page = Page(grant.epoch, self.page.taken | 1 << grant.chunk)
        return True

    def next(self, peer: PeerId) -> Grant:
        """Write down a claim of the peer's that this book allows, and return it; of the next epoch if all is taken.

        Each peer begins elsewhere, so that two seldom want the same.
        """
        if self.page.taken == self._all:
            self.learn(Page(self.page.epoch + 1, 0))
        epoch, taken = self.page
        first = _hash(f"{peer}/{epoch}") % self.num_chunks
        order = ((first + step) % self.num_chunks for step in range(self.num_chunks))
        grant = Grant(epoch, next(chunk for chunk in order if not taken >> chunk & 1))
        self.write(grant, peer)
        return grant

    def keep(self, grants: Iterable[Grant], peer: PeerId) -> None:
        """These are a peer's, as it says of itself: it had them in an earlier life."""
        for grant in grants:
            if grant.epoch == self.page.epoch:
                self._owners[grant.chunk] = peer
                self.page = Page(grant.epoch, self.page.taken | 1 << grant.chunk)

    @property
    def _all(self) -> int:
        return (1 << self.num_chunks) - 1


def _rows_per_chunk(num_rows: int) -> int:
    return max(_MIN_ROWS, -(-num_rows // MAX_CHUNKS))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _permuted(places: NDArray[np.uint64], size: int, key: str) -> NDArray[np.int64]:
    """Where a permutation of ``range(size)`` takes these places: a Feistel network, walked until it is inside."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(_hash(f"{key}/{number}")) for number in range(_ROUNDS)]
    places, outside = places.copy(), np.ones(len(places), dtype=bool)
    while outside.any():
        left, right = places[outside] >> half, places[outside] & mask
        for each in keys:
            left, right = right, left ^ (_mixed(right ^ each) & mask)
        places[outside] = left << half | right
        outside = places >= size
    return places.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Values whose bits all depend on all bits of what came in."""
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        values = (values ^ values >> np.uint64(31)) * np.uint64(factor)
    return values ^ values >> np.uint64(29)
