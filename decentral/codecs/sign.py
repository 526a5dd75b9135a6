"""The sign of each value, and of int2 whether it is large; the scale of a block is fitted to its magnitudes.

Formulae and errors are in ``docs/algorithms/codecs.md``, the payload's layout in ``blocks.py``.

Legend: R = blocks at hand, B = values in a block, M = values at hand, C = bytes of their codes.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.codecs.blocks import BLOCKS, BlockCodec, Scratch
from decentral.codecs.scales import nearest

#: Names this family can make, for help texts; any multiple of 8 in ``BLOCKS`` will do, for int2 one of 4.
NAMES: Final = ("int2-b128", "sign-b1024")

_NAME: Final = re.compile(r"(int2|sign)-b([1-9][0-9]{0,4})")

#: The bits of each byte, the lowest first.
_BITS: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)
#: Each byte with a zero behind every bit.
_SPREAD: Final = (_BITS @ 4.0 ** np.arange(8)).astype("<u2")
#: Of int2: a magnitude above so many means is large before the scale is known; that of normal noise, halfway between
#: the two levels that leave it the least error.
_LARGE: Final = 1.25


def parse(name: str) -> "Sign | None":
    """The codec called ``name``, or ``None`` if it is not of this family."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kind, block = Int2 if match[1] == Int2.kind else Sign, int(match[2])
    return None if block not in BLOCKS or block % kind.per_byte else kind(block)


@dataclass(frozen=True, slots=True)
class Sign(BlockCodec):
    """Signs by blocks: 1 + 16/B bits per value.

    s = mean|x| over the block, rounded to the nearest bfloat16, 0 if below 2^-126; x' = -s if x < 0, else s. Of all
    multiples of the signs, the mean magnitude has the least squared error, sum(x^2) - B s^2: 0.603 of the norm of
    normal noise. Biased, and of use only where the error is fed back.

    Source: signSGD (Bernstein et al., arXiv 1802.04434); the scale as in EF-signSGD (Karimireddy et al., arXiv
    1901.09847), theirs over a whole layer; ours is by blocks and in bfloat16.
    """

    kind: ClassVar[str] = "sign"
    per_byte: ClassVar[int] = 8
    top: ClassVar[int] = 1
    zero_scale: ClassVar[bool] = True
    values: ClassVar[npt.NDArray[np.float32]] = 1 - 2 * _BITS
    """Of each byte, in scales."""

    @property
    def name(self) -> str:
        """``<kind>-b<block>``."""
        return f"{self.kind}-b{self.block}"

    def _measure(self, magnitude_RB: Tensor, out_R1: Tensor) -> None:
        # In float64 no sum overflows, and torch would add in another order on another number of threads.
        out_R1.numpy()[:] = magnitude_RB.numpy().mean(axis=1, keepdims=True, dtype=np.float64)

    def _scales(self, measures: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        return nearest(measures, self.top)

    def _write(self, x_RB: Tensor, factor_R1: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        negative_M = np.less(x_RB.numpy().reshape(-1), 0, out=scratch.codes_M[: x_RB.numel()].view(np.bool_))
        codes_C[:] = np.packbits(negative_M, bitorder="little")

    def _read(self, codes_C: npt.NDArray[np.uint8], out_M: npt.NDArray[np.float32]) -> None:
        np.take(self.values, codes_C, axis=0, out=out_M.reshape(-1, self.per_byte), mode="clip")


@dataclass(frozen=True, slots=True)
class Int2(Sign):
    """A sign and one of two magnitudes, four values to the byte: 2 + 16/B bits per value.

    With m = mean|x| over the block, q = 3 where |x| > 1.25 m, else 1; s = sum(|x| q) / sum(q^2), rounded to the nearest
    bfloat16; x' = sign(x) s, or three times that if |x| > 2 s. That s has the least squared error of all multiples of
    the q, at most sum(x^2) - 3/4 B m^2, and on normal noise hardly more than the best four levels there are: 0.345 of
    the norm. Biased as signs are: to be used where the error is fed back.

    Source: two bits with error feedback as in MuLoCo (Therien et al., arXiv 2505.23725); levels and scale are ours.
    """

    kind: ClassVar[str] = "int2"
    per_byte: ClassVar[int] = 4
    top: ClassVar[int] = 3
    values: ClassVar[npt.NDArray[np.float32]] = Sign.values[:, ::2] * (1 + 2 * _BITS[:, 1::2])

    def _measure(self, magnitude_RB: Tensor, out_R1: Tensor) -> None:
        x_RB, num_values = magnitude_RB.numpy(), magnitude_RB.shape[1]
        mean_R1 = x_RB.mean(axis=1, keepdims=True, dtype=np.float64)
        bound_R1 = torch.from_numpy(mean_R1.astype(np.float32)).mul_(_LARGE)  # infinite above any value
        large_RB = torch.gt(magnitude_RB, bound_R1, out=torch.empty_like(magnitude_RB))  # 1.0 or 0.0
        num_large_R1 = large_RB.sum(dim=1, keepdim=True).numpy()  # exact in any order
        large_R1 = large_RB.mul_(magnitude_RB).numpy().sum(axis=1, keepdims=True, dtype=np.float64)
        out_R1.numpy()[:] = (num_values * mean_R1 + 2 * large_R1) / (num_values + 8 * num_large_R1)

    def _write(self, x_RB: Tensor, factor_R1: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        y_RB = torch.mul(x_RB, factor_R1, out=scratch.like(x_RB)).abs_()
        bits_M = scratch.codes_M[: x_RB.numel()].view(np.bool_)
        negative = np.packbits(np.less(x_RB.numpy().reshape(-1), 0, out=bits_M), bitorder="little")
        large = np.packbits(np.greater(y_RB.numpy().reshape(-1), 2, out=bits_M), bitorder="little")
        codes_C[:] = (_SPREAD.take(negative, mode="clip") | _SPREAD.take(large, mode="clip") << 1).view(np.uint8)[
            : len(codes_C)
        ]
