"""Rows of a data set as documents of tokens, a block of rows at a time, in whichever process asks for it.

A ``Table`` gives any rows; a ``Stream`` is read from the beginning of a shard to its end. Both know which rows are held
out, by a hash of their text: whatever the order and the files, equal rows are on the same side on all machines.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from decentral.errors import DataError
from decentral.swarm.rows import MAX_CHUNKS, num_chunks_of, rows_of
from decentral.types import Grant
from decentral.workers.hf.data.opening import Opened

Tokens = NDArray[np.int64]
#: Read and tokenised at a time.
BLOCK_ROWS = 64
_HASHED_AT_ONCE = 1000
#: Into so many chunks at least is an epoch of a stream cut: one for each worker of a swarm of usual size.
_MIN_CHUNKS = 16
#: Of a stream so many rows are looked at for held-out ones at most.
_MAX_LOOKED_AT = 100_000
#: Rows behind an estimate of the tokens of all.
_SAMPLED = 256


class Block(NamedTuple):
    """Rows that are asked for."""

    grant: Grant
    start: int
    """Behind so many rows of the chunk."""


class Documents(NamedTuple):
    """What there is in their place."""

    block: Block
    tokens: list[Tokens]
    last: bool
    """Whether the chunk ends here."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Text to tokens, with an end behind each."""

    tokenizer: Any
    """Of transformers, or callable like one of them."""

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, and the tokenizer's end of a text if it has one."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        end = self.tokenizer.eos_token_id
        ends = [] if end is None else [end]
        return [np.array([*tokens, *ends], dtype=np.int64) for tokens in encoded["input_ids"]]


@dataclass
class Table:
    """Rows that any can be read of.

    Args:
        opened: the data set.
        encode: makes tokens of texts.
        held_out: share of the rows.
        seed: of the order in which rows are read; equal on all workers.

    Raises:
        DataError: no row has text, or none is held out, or all are.
    """

    opened: Opened
    encode: Encoder
    held_out: float
    seed: int
    key: str = field(init=False)
    num_chunks: int = field(init=False)

    def __post_init__(self) -> None:
        """Go through all rows once, for their hashes: rows are counted in the order of these."""
        hashes, has_text = _hashes(self.opened)
        order = np.argsort(hashes, kind="stable")
        order = order[has_text[order]]
        num_held_out = int(np.searchsorted(hashes[order], _cut(self.held_out)))
        self._held_out, self._train = order[:num_held_out], order[num_held_out:]
        if not len(order):
            raise DataError(f"{self.opened.name} has no row with text", hint="Is it the right field (--text-field)?")
        if not len(self._train) or (not num_held_out and self.held_out):
            raise DataError(
                f"of {len(order):,} rows of {self.opened.name} {num_held_out:,} are held out, the others trained on",
                hint="Give more rows, or another task.settings.data.held_out; 0 validates on nothing.",
            )
        self.key = xxhash.xxh3_128_hexdigest(hashes[self._train].tobytes())
        self.num_chunks = num_chunks_of(len(self._train))

    def __getitem__(self, block: Block) -> Documents:
        """The documents of a block."""
        rows = rows_of(block.grant, len(self._train), self.seed)
        stop = block.start + BLOCK_ROWS
        tokens = self.encode(self._texts(self._train[rows[block.start : stop]]))
        return Documents(block, tokens, last=stop >= len(rows))

    def size(self, grant: Grant) -> int | None:
        """Rows in a chunk."""
        return len(rows_of(grant, len(self._train), self.seed))

    def held_out_rows(self) -> Iterator[Tokens]:
        """Their documents, always in the same order."""
        for start in range(0, len(self._held_out), BLOCK_ROWS):
            yield from self.encode(self._texts(self._held_out[start : start + BLOCK_ROWS]))

    def sample(self, count: int) -> list[str]:
        """The text of some rows."""
        return self._texts(self._train[:count])

    def describe(self) -> str:
        """One line: rows and tokens."""
        counted = self.encode(self._texts(self._train[:_SAMPLED]))
        mean = sum(map(len, counted)) / len(counted)
        about = "" if len(counted) == len(self._train) else f"about, by {len(counted)} rows, "
        return (
            f"{self.opened.name}: {len(self._train):,} rows, {about}{mean * len(self._train):,.0f} tokens to train on; "
            f"{len(self._held_out):,} rows held out"
        )

    def _texts(self, rows: NDArray[np.int64]) -> list[str]:
        return list(self.opened.rows[rows.tolist()][self.opened.field]) if len(rows) else []


@dataclass
class Stream:
    """Rows that are read in their order, shard by shard; of few shards each chunk is every n-th row of one.

    Args: see ``Table``.
    """

    opened: Opened
    encode: Encoder
    held_out: float
    key: str = field(init=False)
    num_chunks: int = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is read yet."""
        self._num_shards = min(self.opened.rows.num_shards, MAX_CHUNKS)
        self._num_lanes = max(1, -(-_MIN_CHUNKS // self._num_shards))
        self.key = self.opened.key
        self.num_chunks = self._num_shards * self._num_lanes
        self._open: tuple[Block, Iterator[str]] | None = None

    def __getitem__(self, block: Block) -> Documents:
        """The documents of a block; the next one of the same chunk follows at once, any other is sought."""
        if self._open is None or self._open[0] != block:
            self._open = block, islice(self._chunk(block.grant.chunk), block.start, None)
        texts = list(islice(self._open[1], BLOCK_ROWS))
        self._open = block._replace(start=block.start + BLOCK_ROWS), self._open[1]
        return Documents(block, self.encode(texts), last=len(texts) < BLOCK_ROWS)

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens it anew."""
        return self.__dict__ | {"_open": None}

    def size(self, grant: Grant) -> int | None:
        """Rows in a chunk: that is seen when it ends."""
        return None

    def held_out_rows(self) -> Iterator[Tokens]:
        """Documents of the first held-out rows."""
        texts = islice(self._texts(self.opened.rows), _MAX_LOOKED_AT)
        for text in texts:
            if _hash(text) < _cut(self.held_out):
                yield from self.encode([text])

    def sample(self, count: int) -> list[str]:
        """The text of the first rows.

        Raises:
            DataError: there is none.
        """
        texts = list(islice(self._texts(self.opened.rows), count))
        if not texts:
            raise DataError(f"{self.opened.name} has no row with text", hint="Is it the right field (--text-field)?")
        return texts

    def describe(self) -> str:
        """One line: tokens of the first rows, as nobody knows those of all."""
        counted = self.encode(self.sample(_SAMPLED))
        mean = sum(map(len, counted)) / len(counted)
        return f"{self.opened.name}: a stream of {self._num_shards} shards, {mean:,.0f} tokens a row by the first rows"

    def _chunk(self, chunk: int) -> Iterator[str]:
        shard, lane = divmod(chunk, self._num_lanes)
        rows = self.opened.rows.shard(num_shards=self._num_shards, index=shard, contiguous=True)
        lines = islice(self._texts(rows), lane, None, self._num_lanes)
        return (text for text in lines if _hash(text) >= _cut(self.held_out))

    def _texts(self, rows: Iterable[Any]) -> Iterator[str]:
        return (text for row in rows if (text := row[self.opened.field]))


def _hashes(opened: Opened) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """A hash of every row's text, and whether it has any."""
    hashes, has_text = [], []
    for batch in opened.rows.iter(batch_size=_HASHED_AT_ONCE):
        for text in batch[opened.field]:
            hashes.append(_hash(text or ""))
            has_text.append(bool(text))
    return np.array(hashes, dtype=np.uint64), np.array(has_text, dtype=bool)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _cut(held_out: float) -> int:
    """Rows of a smaller hash are held out."""
    return int(held_out * 2**64)
