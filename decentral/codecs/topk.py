"""The few largest values of every chunk: positions of 12 bits, and each value in 2, 4 or 8 bits.

Chunks have 4,096 values, so that a position within one takes 12 bits. Up to 16 whole chunks form a piece, which has a
table of its own for the values (see ``codebook``); the short last chunk is a piece by itself. A piece is its table as
bfloat16 numbers, then the positions, then the codes, each padded with zero bits to whole bytes; pieces follow each
other without gaps.

Legend: N = values in the vector, C = chunks of a piece, V = values in a chunk, k = values kept of a chunk, K = C k.
The layout in figures is in ``docs/wire-format.md``, error bounds in ``docs/algorithms/codecs.md``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.codecs.codebook import CodeBook, Linear, Quantiser
from decentral.codecs.flat import check_finite, check_length, check_vector, filled
from decentral.errors import FrameError

#: Values kept of a whole chunk, by the rounded percentage in the name.
KEPT: Final = {"0.4": 16, "0.8": 32, "1.5": 64, "3": 128, "6": 256}
_QUANTISERS: Final[dict[str, Quantiser]] = {"2": CodeBook(2), "4": CodeBook(4), "8": Linear()}

#: Names this family makes, for help texts.
NAMES: Final = tuple(f"topk{percent}-{bits}bit" for percent in KEPT for bits in _QUANTISERS)

_NAME: Final = re.compile(r"topk([0-9.]+)-([0-9])bit")

#: By bits of a code: the codes in each of the 256 bytes.
_CODES: Final = {
    bits: (np.arange(256)[:, None] >> np.arange(0, 8, bits) & (1 << bits) - 1).astype(np.uint8) for bits in (2, 4, 8)
}

_CHUNK: Final = 4096
_CHUNKS: Final = 16


def parse(name: str) -> "TopK | None":
    """The codec called ``name``, or ``None`` if it is not of this family."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in KEPT or match[2] not in _QUANTISERS:
        return None
    return TopK(match[1], _QUANTISERS[match[2]])


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest magnitudes of every 4,096 values; all others decode to zero.

    x' = Q(x) where |x| is among the k largest of its chunk, else 0. A short last chunk of n values keeps
    ceil(n k / 4096). Among equals the first are kept. ||x' - x|| <= ||x||, and below unless x is all zero or subnormal.

    Source: SparseLoCo (Sarfi et al., arXiv 2508.15706), 64 of 4,096 at 2 bits, packing two positions into three bytes
    as its public code does. There a matrix is cut into squares of 64 x 64, here the flat vector into runs; there the
    bins of the values have equal width and serve a whole parameter, here they follow the values of up to 16 chunks.
    """

    percent: str
    """Share that is kept, rounded; a key of ``KEPT``."""
    quantiser: Quantiser
    """What makes codes of the values."""

    @property
    def name(self) -> str:
        """``topk<percent>-<bits>bit``."""
        return f"topk{self.percent}-{self.quantiser.bits}bit"

    @property
    def lossless(self) -> bool:
        """No: most values are dropped."""
        return False

    def nbytes(self, numel: int) -> int:
        """Payload size in bytes."""
        num_pieces, rest = divmod(numel, _CHUNKS * _CHUNK)
        num_chunks, width = divmod(rest, _CHUNK)
        last = (num_chunks * KEPT[self.percent], self._kept(width))
        size = num_pieces * sum(self._sizes(_CHUNKS * KEPT[self.percent]))
        return size + sum(sum(self._sizes(num_kept)) for num_kept in last if num_kept)

    def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
        """See ``Codec.encode``."""
        check_vector(x_N)
        return filled(self.nbytes(x_N.numel()), lambda payload: self._fill(payload, x_N.contiguous().numpy()))

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        """See ``Codec.decode``."""
        check_length(self.name, payload, self.nbytes(numel))
        x_N = np.zeros(numel, np.float32)  # fresh zero pages; torch.zeros writes the zeros itself
        for out_CV, parts in self._pieces(x_N, payload):
            table, positions, codes = parts
            num_chunks, width = out_CV.shape
            num_kept = num_chunks * self._kept(width)
            positions_Ck = _unpack_positions(self.name, positions, num_kept).reshape(num_chunks, -1)
            _check_positions(self.name, positions_Ck, width)
            codes_K = _unpack_codes(self.name, codes, self.quantiser.bits, num_kept)
            places_K = (positions_Ck + _starts(out_CV)).reshape(-1)
            out_CV.reshape(-1)[places_K] = self.quantiser.decode(self.name, table.view("<u2"), codes_K)
        return torch.from_numpy(x_N)

    def _fill(self, payload: memoryview, x_N: npt.NDArray[np.float32]) -> None:
        for x_CV, parts in self._pieces(x_N, payload):
            table, positions, codes = parts
            places_K = _largest(x_CV, self._kept(x_CV.shape[1]))
            kept_K = x_CV.reshape(-1)[places_K]
            check_finite(kept_K)  # a NaN or an infinity is always among the largest
            table.view("<u2")[:], codes_K = self.quantiser.encode(kept_K)
            positions[:] = _pack_positions((places_K.reshape(len(x_CV), -1) - _starts(x_CV)).reshape(-1))
            codes[:] = _pack_codes(codes_K, self.quantiser.bits)

    def _kept(self, width: int) -> int:
        """Values kept of a chunk of ``width``."""
        return -(-width * KEPT[self.percent] // _CHUNK)

    def _sizes(self, num_kept: int) -> tuple[int, int, int]:
        """Bytes of table, positions and codes in a piece of ``num_kept`` values."""
        return 2 * self.quantiser.num_words, -(-12 * num_kept // 8), -(-self.quantiser.bits * num_kept // 8)

    def _pieces(
        self, x_N: npt.NDArray[np.float32], payload: bytes | memoryview
    ) -> Iterator[tuple[npt.NDArray[np.float32], list[npt.NDArray[np.uint8]]]]:
        """The vector's pieces [C, V] as views, each with views of its table, positions and codes in the payload."""
        whole, offset = x_N.size - x_N.size % _CHUNK, 0
        for start, stop in pairwise((*range(0, whole, _CHUNKS * _CHUNK), whole, x_N.size)):
            if start == stop:
                continue
            x_CV = x_N[start:stop].reshape(-1, min(_CHUNK, stop - start))
            parts = []
            for size in self._sizes(x_CV.shape[0] * self._kept(x_CV.shape[1])):
                parts.append(np.frombuffer(payload, np.uint8, size, offset))
                offset += size
            yield x_CV, parts


def _largest(x_CV: npt.NDArray[np.float32], num_kept: int) -> npt.NDArray[np.intp]:
    """Where the ``num_kept`` largest magnitudes of each chunk stand in the flat piece, ascending; of equals the first.

    A threshold by partition, then a comparison: several times as fast as an index per value, and the same on every
    machine. Without their sign bit floats compare as integers do, NaN above all; with all bits flipped the largest is
    the smallest, which the partition finds quickly also where most values are zero.
    """
    keys_CV = ~(x_CV.view(np.int32) & 0x7FFFFFFF)
    threshold_C1 = np.partition(keys_CV, num_kept - 1, axis=1)[:, num_kept - 1, None]
    keep_CV = keys_CV <= threshold_C1
    places_K = keep_CV.reshape(-1).nonzero()[0]
    if len(places_K) > len(x_CV) * num_kept:
        larger_CV = keys_CV < threshold_C1
        equal_CV = keep_CV & ~larger_CV
        num_equal_C1 = num_kept - larger_CV.sum(axis=1, keepdims=True)
        places_K = (larger_CV | (equal_CV & (equal_CV.cumsum(axis=1) <= num_equal_C1))).reshape(-1).nonzero()[0]
    return places_K


def _starts(x_CV: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Where each chunk begins in the flat piece [C, 1]."""
    num_chunks, width = x_CV.shape
    return np.arange(0, num_chunks * width, width)[:, None]


def _pack_positions(positions_K: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Two numbers of 12 bits in three bytes, low bits first; of an odd last one the two bytes it needs."""
    pairs = np.zeros((-(-len(positions_K) // 2), 2), np.uint16)
    pairs.reshape(-1)[: len(positions_K)] = positions_K
    first, second = pairs[:, 0], pairs[:, 1]
    triples = np.empty((len(pairs), 3), np.uint8)
    triples[:, 0] = first & 0xFF
    triples[:, 1] = first >> 8 | (second & 0xF) << 4
    triples[:, 2] = second >> 4
    return triples.reshape(-1)[: -(-12 * len(positions_K) // 8)]


def _unpack_positions(name: str, raw: npt.NDArray[np.uint8], num_kept: int) -> npt.NDArray[np.uint16]:
    """The inverse of ``_pack_positions``."""
    triples = np.zeros((-(-num_kept // 2), 3), np.uint8)
    triples.reshape(-1)[: len(raw)] = raw
    low, middle, high = (triples[:, place].astype(np.uint16) for place in range(3))
    pairs = np.empty((len(triples), 2), np.uint16)
    pairs[:, 0] = low | (middle & 0xF) << 8
    pairs[:, 1] = middle >> 4 | high << 4
    positions = pairs.reshape(-1)
    _check_padding(name, "positions", positions[num_kept:])
    return positions[:num_kept]


def _check_positions(name: str, positions_Ck: npt.NDArray[np.uint16], width: int) -> None:
    """Refuse positions that do not ascend within a chunk, or lie outside of it."""
    highest = int(positions_Ck[:, -1].max())
    if (positions_Ck[:, 1:] <= positions_Ck[:, :-1]).any():
        raise FrameError(f"{name} positions: they do not ascend within a chunk")
    if highest >= width:
        raise FrameError(f"{name} position: {highest} in a chunk of {width} values")


def _pack_codes(codes_K: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes of ``bits`` bits in bytes, low bits first."""
    per_byte = 8 // bits
    padded = np.zeros((-(-len(codes_K) // per_byte), per_byte), np.uint8)
    padded.reshape(-1)[: len(codes_K)] = codes_K
    packed = padded[:, 0].copy()
    for place in range(1, per_byte):
        packed |= padded[:, place] << place * bits
    return packed


def _unpack_codes(name: str, raw: npt.NDArray[np.uint8], bits: int, num_kept: int) -> npt.NDArray[np.uint8]:
    """The inverse of ``_pack_codes``."""
    codes = _CODES[bits].take(raw, axis=0).reshape(-1)
    _check_padding(name, "codes", codes[num_kept:])
    return codes[:num_kept]


def _check_padding(name: str, what: str, padding: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> None:
    if padding.any():
        raise FrameError(f"{name} {what}: the bits after the last are not zero")
