"""Small numbers by blocks, scaled by the largest of the block: int8, int4, e3m0; rounded to nearest or stochastically.

Formulae and error bounds are in ``docs/algorithms/codecs.md``, the payload's layout in ``blocks.py``.

Legend: N = values in the vector, B = values in a block, R = blocks at hand, M = values at hand, C = bytes of their
codes.
"""

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.codecs import nibbles
from decentral.codecs.blocks import BLOCKS, BlockCodec, Scratch
from decentral.codecs.scales import rounded_up
from decentral.errors import FrameError

#: Names this family can make, for help texts; any block size in ``BLOCKS`` will do.
NAMES: Final = (
    *("int8-b64", "int8-b128", "int8-b256", "int8-b1024", "int8-b128-sr"),
    *("int4-b128", "int4-b128-sr", "e3m0-b128", "e3m0-b128-sr"),
)

#: Where the levels 1 to 7 of e3m0 start: in scales, behind a dither; and to the nearest, in halves of a scale.
_POWERS: Final = (1, 2, 4, 8, 16, 32, 64)
_HALVES: Final = (1, 3, 6, 12, 24, 48, 96)

_NAME: Final = re.compile(r"(int8|int4|e3m0)-b([1-9][0-9]{0,4})(-sr)?")


def parse(name: str) -> "Int8 | Int4 | E3m0 | None":
    """The codec called ``name``, or ``None`` if it is not of this family."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kinds: dict[str, type[Int8] | type[Int4] | type[E3m0]] = {"int8": Int8, "int4": Int4, "e3m0": E3m0}
    kind, block = kinds[match[1]], int(match[2])
    if block not in BLOCKS or block % kind.per_byte:
        return None
    return kind(block, match[3] is not None)


@dataclass(frozen=True, slots=True)
class Scaled(BlockCodec):
    """s = max|x| / top over the block, rounded up to a bfloat16 from 2^-126; the code is x / s, rounded."""

    stochastic: bool = False
    """Whether codes are rounded up or down by chance, such that E[x'] = x."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """``<kind>-b<block>``, and ``-sr`` for stochastic rounding."""
        return f"{self.kind}-b{self.block}{'-sr' if self.stochastic else ''}"

    @abstractmethod
    def _code(self, y_M: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        """Round and pack values in ``_units`` of their scale; may overwrite them."""

    def _measure(self, magnitude_RB: Tensor, out_R1: Tensor) -> None:
        torch.amax(magnitude_RB, dim=1, keepdim=True, out=out_R1)

    def _scales(self, measures: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        return rounded_up(measures, self.top)

    def _write(self, x_RB: Tensor, factor_R1: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        y_RB = torch.mul(x_RB, factor_R1, out=scratch.like(x_RB))
        self._code(y_RB.view(-1), codes_C, scratch)

    def _to_integers(self, y_M: Tensor, scratch: Scratch) -> None:
        if self.stochastic:
            y_M.add_(scratch.noise.uniform(len(y_M))).floor_().clamp_(-self.top, self.top)
        else:
            y_M.round_()


@dataclass(frozen=True, slots=True)
class Int8(Scaled):
    """Symmetric 8-bit integers: 8 + 16/B bits per value.

    s = max|x| / 127; q = round(x / s), ties to even; x' = q s. |x' - x| <= s/2 (1 + 2^-16), that is max|x| / 252, or
    2^-127 in a block with max|x| below 1.5e-36. Stochastic: q = floor(x / s + u), u uniform; |x' - x| < max|x| / 126.

    Source: absmax blocks as in 8-bit optimizers (Dettmers et al., arXiv 2110.02861, linear instead of dynamic codes);
    the bfloat16 scale and its rounding upwards are ours.
    """

    kind: ClassVar[str] = "int8"
    per_byte: ClassVar[int] = 1
    top: ClassVar[int] = 127

    def _code(self, y_M: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        self._to_integers(y_M, scratch)
        torch.from_numpy(codes_C.view(np.int8)).copy_(y_M)

    def _read(self, codes_C: npt.NDArray[np.uint8], out_M: npt.NDArray[np.float32]) -> None:
        signed_C = codes_C.view(np.int8)
        if signed_C.min() < -self.top:
            raise FrameError(f"{self.name} code: {signed_C.min()}, allowed {-self.top} to {self.top}")
        out_M[:] = signed_C


@dataclass(frozen=True, slots=True)
class Int4(Scaled):
    """Symmetric 4-bit integers, two to the byte: 4 + 16/B bits per value.

    s = max|x| / 7; q = round(x / s), ties to even; x' = q s. |x' - x| <= s/2 (1 + 2^-16), that is max|x| / 13.8, or
    2^-127 in a block with max|x| below 8.2e-38. Stochastic: q = floor(x / s + u), u uniform; |x' - x| < max|x| / 6.9.

    Source: as ``Int8``.
    """

    kind: ClassVar[str] = "int4"
    per_byte: ClassVar[int] = 2
    top: ClassVar[int] = 7

    def _code(self, y_M: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        self._to_integers(y_M, scratch)
        nibbles.pack(y_M, nibbles.integer_pairs(), scratch.codes_M, codes_C)

    def _read(self, codes_C: npt.NDArray[np.uint8], out_M: npt.NDArray[np.float32]) -> None:
        nibbles.unpack(self.name, codes_C, nibbles.integer_values(), out_M)


@dataclass(frozen=True, slots=True)
class E3m0(Scaled):
    """A sign and 3 bits of exponent, two values to the byte: 4 + 16/B bits per value.

    s = max|x| / 64; x' = s l, where l is of 0, +-1, +-2, +-4, ..., +-64 the nearest to x / s, ties away from zero.
    |x' - x| <= |x| / 3 or s/2 if that is more; s/2 is at most max|x| / 127, or 2^-127. Stochastic: one of the two l
    around x / s, by chance; |x' - x| < max(|x|, s).

    Source: Streaming DiLoCo (Douillard et al., arXiv 2501.18512) sends E3M0 but tells neither scale nor rounding; both
    are ours.
    """

    kind: ClassVar[str] = "e3m0"
    per_byte: ClassVar[int] = 2
    top: ClassVar[int] = 64

    @property
    def _units(self) -> int:
        return 1 if self.stochastic else 2

    def _code(self, y_M: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        if self.stochastic:
            _dither(y_M, scratch)
        y_M.clamp_(-127, 127)
        nibbles.pack(y_M, nibbles.power_pairs(_POWERS if self.stochastic else _HALVES), scratch.codes_M, codes_C)

    def _read(self, codes_C: npt.NDArray[np.uint8], out_M: npt.NDArray[np.float32]) -> None:
        nibbles.unpack(self.name, codes_C, nibbles.power_values(), out_M)


def _dither(y_M: Tensor, scratch: Scratch) -> None:
    """Move each value away from zero by less than the gap between the levels around it.

    The gap below 1 is 1, else the largest power of two in the value: its exponent bits. The value then passes its upper
    level exactly as often as it should be rounded to that, and never the one after.
    """
    gap_M = scratch.spare_M[: len(y_M)]
    torch.bitwise_and(y_M.view(torch.int32), 0x7F80_0000, out=gap_M.view(torch.int32))
    y_M.add_(gap_M.clamp_min_(1).mul_(scratch.noise.uniform(len(y_M))).copysign_(y_M))
