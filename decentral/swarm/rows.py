"""Which rows of a data set are read by whom, so that no two workers read the same in an epoch. Pure.

The rows are cut into chunks, and chunks are claimed one at a time (``engine.rows``). What is in a chunk follows from
the run's seed and the epoch by a permutation that needs no memory, so that books say only who has which chunk. Knows
neither the rows nor the network.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from decentral.types import Grant, Page, PeerId

#: Chunks of an epoch at most: a page of so many is 2 kB.
MAX_CHUNKS = 512
#: A chunk that is smaller is read before the next one can be claimed.
_MIN_ROWS = 16
_ROUNDS = 4
_TAG = np.dtype("<u4")


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
    """What one worker knows of the chunks of a data set: who has taken what in the newest epoch and in the one before.

    A peer is a tag of 32 bits in it, and 0 is nobody.

    Args:
        num_chunks: of an epoch; at most ``MAX_CHUNKS``.
    """

    def __init__(self, num_chunks: int) -> None:
        self._free = np.zeros(num_chunks, dtype=_TAG)
        self._epochs = {0: self._free.copy()}

    @property
    def page(self) -> Page:
        """Of the newest epoch; to be asked for on any thread."""
        epoch, tags = list(self._epochs.items())[-1]
        return Page(epoch, tags.tobytes())

    def learn(self, page: Page) -> None:
        """Take in what another book, or an earlier life of this one, has on its page.

        Raises:
            ValueError: it is of another number of chunks.
        """
        heard = np.frombuffer(page.tags, dtype=_TAG)
        if len(heard) != len(self._free):
            raise ValueError(f"a page of {len(heard)} chunks, not {len(self._free)}")
        self._turn_to(page.epoch)
        if (tags := self._epochs.get(page.epoch)) is not None:
            np.copyto(tags, heard, where=tags == 0)

    def write(self, grant: Grant, peer: PeerId) -> bool:
        """Write a claim down, unless the chunk is another's or its epoch is long over; whether it now is the peer's."""
        self._turn_to(grant.epoch)
        tags = self._epochs.get(grant.epoch)
        if tags is None:
            return False
        if not tags[grant.chunk]:
            tags[grant.chunk] = _tag(peer)
        return bool(tags[grant.chunk] == _tag(peer))

    def free(self, peer: PeerId) -> Grant:
        """A chunk for the peer to claim that nobody has, as far as is known; of the next epoch if all are taken.

        Each peer begins elsewhere, so that two seldom want the same.
        """
        epoch = max(self._epochs)
        if self._epochs[epoch].all():
            epoch += 1
            self._turn_to(epoch)
        first = _hash(f"{peer}/{epoch}") % len(self._free)
        chunk = (first + int(np.argmin(np.roll(self._epochs[epoch], -first) != 0))) % len(self._free)
        return Grant(epoch, chunk)

    def _turn_to(self, epoch: int) -> None:
        """A newer epoch has begun; somebody may still be claiming the last of the one before."""
        newest = max(self._epochs)
        if epoch > newest:
            before = self._epochs[newest] if epoch == newest + 1 else self._free.copy()
            self._epochs = {epoch - 1: before, epoch: self._free.copy()}


def _rows_per_chunk(num_rows: int) -> int:
    return max(_MIN_ROWS, -(-num_rows // MAX_CHUNKS))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _tag(peer: PeerId) -> int:
    return 1 + _hash(peer) % (2**32 - 1)


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
