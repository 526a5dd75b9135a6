"""How a list of selected values is sent in few bits each: codes, and the table that gives them back.

A table serves one list (``topk`` makes a list of what it keeps of 16 chunks). It travels as bfloat16 numbers and
decoding only looks up or multiplies exactly, so every machine decodes to the same bits; no decoded value is subnormal.
Must not know where in the vector the values stand.

Legend: K = values in the list, L = levels of a code book, W = bfloat16 numbers in a table. Formulae and error bounds
are in ``docs/algorithms/codecs.md``.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from decentral.codecs.scales import check_scales, nearest, rounded_up, widen
from decentral.errors import FrameError

#: Smallest normal float32. What is below is sent as zero: its mean could not be decoded without subnormals.
_TINY: Final = np.float32(2.0**-126)
_TOP: Final = 127


class Quantiser(Protocol):
    """Values to codes of ``bits`` bits, with a table of ``num_words`` bfloat16 numbers."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    @property
    def num_words(self) -> int:
        """Numbers in the table."""
        ...

    def encode(self, x_K: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """The table's bits [W] and one code per value [K]; values are finite."""
        ...

    def decode(
        self, name: str, table_W: npt.NDArray[np.uint16], codes_K: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """The values [K], all finite.

        Raises:
            FrameError: the table or a code is none that ``encode`` makes; the message starts with ``name``.
        """
        ...


@dataclass(frozen=True, slots=True)
class CodeBook:
    """A sign and one of L = 2^(bits - 1) magnitudes, chosen for the list: x' = sign(x) level, the nearest one.

    The sorted magnitudes are cut into bins, one cut at a time, each where it lowers the sum of squares within bins
    most; levels are the bins' means, rounded to bfloat16. Two levels are thus the best two there are (before rounding),
    eight are within a fifth of the best squared error on what was tried. If a value is zero or subnormal, one level is
    zero and the rest are fitted to the others. The squared error of the list never exceeds its squared norm.

    Source: look-up of the bins' means as in SparseLoCo (arXiv 2508.15706), whose bins have equal width.
    """

    bits: int
    """Bits of a code, the sign included: 2 to 8."""

    @property
    def num_words(self) -> int:
        """See ``Quantiser.num_words``."""
        return 1 << (self.bits - 1)

    def encode(self, x_K: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """See ``Quantiser.encode``."""
        magnitudes_K = np.abs(x_K)
        table_L = self._fit(np.sort(magnitudes_K))
        levels_L = widen(table_L).astype(np.float64)
        above = magnitudes_K > ((levels_L[1:] + levels_L[:-1]) / 2)[:, None]
        codes_K = above.view(np.uint8).sum(axis=0, dtype=np.uint8)
        codes_K |= (x_K < 0).view(np.uint8) << (self.bits - 1)
        return table_L, codes_K

    def decode(
        self, name: str, table_W: npt.NDArray[np.uint16], codes_K: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """See ``Quantiser.decode``."""
        check_scales(name, table_W, 1, zero=True)
        if (table_W[1:] < table_W[:-1]).any():
            raise FrameError(f"{name} levels: they do not ascend")
        levels_L = widen(table_W)
        values: npt.NDArray[np.float32] = np.concatenate((levels_L, 0 - levels_L)).take(codes_K)
        return values

    def _fit(self, sorted_K: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        """Levels for ascending magnitudes, as bits of bfloat16; zero where fewer are of use."""
        table_L = np.zeros(self.num_words, np.uint16)
        num_zeros = int(np.searchsorted(sorted_K, _TINY))
        if num_zeros < len(sorted_K):
            means = _bin_means(sorted_K[num_zeros:], self.num_words - (num_zeros > 0))
            table_L[-len(means) :] = nearest(means)
        return table_L


@dataclass(frozen=True, slots=True)
class Linear:
    """Whole multiples of one scale, 8 bits: s = max|x| / 127 rounded up to bfloat16, q = round(x / s), x' = q s.

    |x' - x| <= s/2 and |x' - x| <= |x|; a scale is at least 2^-126.
    """

    bits: Final = 8
    num_words: Final = 1

    def encode(self, x_K: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """See ``Quantiser.encode``."""
        table_W = rounded_up(np.abs(x_K).max(keepdims=True), _TOP).astype(np.uint16)
        # A product with 1 / s could round half a step upwards, to an error above |x|; the quotient cannot.
        return table_W, np.rint(x_K / widen(table_W)).astype(np.int8).view(np.uint8)

    def decode(
        self, name: str, table_W: npt.NDArray[np.uint16], codes_K: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        """See ``Quantiser.decode``."""
        check_scales(name, table_W, _TOP, zero=False)
        signed_K = codes_K.view(np.int8)
        if signed_K.min() < -_TOP:
            raise FrameError(f"{name} code: {signed_K.min()}, allowed {-_TOP} to {_TOP}")
        return signed_K * widen(table_W)


def _bin_means(sorted_K: npt.NDArray[np.float32], num_bins: int) -> npt.NDArray[np.float64]:
    """Ascending means of at most ``num_bins`` bins of ascending values, which are at least one."""
    sums = np.concatenate(([0.0], np.cumsum(sorted_K, dtype=np.float64)))
    edges, cuts, new_bins = [0, len(sorted_K)], [], [(0, len(sorted_K))]
    while len(edges) <= num_bins:
        cuts += [_best_cut(sums, *ends) for ends in new_bins]
        fall, start, cut, stop = best = max(cuts)
        if not fall:
            break
        cuts.remove(best)
        edges.append(cut)
        new_bins = [(start, cut), (cut, stop)]
    edges.sort()
    means: npt.NDArray[np.float64] = np.diff(sums[edges]) / np.diff(edges)
    return means


def _best_cut(sums: npt.NDArray[np.float64], start: int, stop: int) -> tuple[float, int, int, int]:
    """Where to cut the bin [start, stop), given sums of all before: (fall in the sum of squares, start, cut, stop)."""
    if stop - start < 2:
        return 0.0, start, start, stop
    size = stop - start
    below = np.arange(1, size, dtype=np.float64)
    apart = sums[start + 1 : stop] - sums[start] - below * ((sums[stop] - sums[start]) / size)
    fall = apart**2 / (below * (size - below))
    best = int(fall.argmax())
    return float(fall[best]) * size, start, start + 1 + best, stop
