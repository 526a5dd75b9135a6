"""One bit per value and the mean magnitude of its block: sign.

The formula and its error are in ``docs/algorithms/codecs.md``, the payload's layout in ``blocks.py``.

Legend: R = blocks at hand, B = values in a block, M = values at hand, C = bytes of their codes.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from decentral.codecs.blocks import BLOCKS, BlockCodec, Scratch
from decentral.codecs.scales import nearest

#: Names this family can make, for help texts; any multiple of 8 in ``BLOCKS`` will do.
NAMES: Final = ("sign-b1024",)

_NAME: Final = re.compile(r"sign-b([1-9][0-9]{0,4})")

#: The eight signs of each byte.
_SIGNS: Final = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(
    np.float32
)


def parse(name: str) -> "Sign | None":
    """The codec called ``name``, or ``None`` if it is not of this family."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) not in BLOCKS or int(match[1]) % Sign.per_byte:
        return None
    return Sign(int(match[1]))


@dataclass(frozen=True, slots=True)
class Sign(BlockCodec):
    """Signs by blocks: 1 + 16/B bits per value.

    s = mean|x| over the block, rounded to the nearest bfloat16, 0 if below 2^-126; x' = -s if x < 0, else s. Of all
    multiples of the signs, the mean magnitude has the least squared error, sum(x^2) - B s^2: 0.603 of the norm of
    normal noise. Biased, and of use only where the error is fed back.

    Source: signSGD (Bernstein et al., arXiv 1802.04434); the scale as in EF-signSGD (Karimireddy et al., arXiv
    1901.09847), theirs over a whole layer; ours is by blocks and in bfloat16.
    """

    per_byte: ClassVar[int] = 8
    top: ClassVar[int] = 1
    zero_scale: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """``sign-b<block>``."""
        return f"sign-b{self.block}"

    def _measure(self, magnitude_RB: Tensor, out_R1: Tensor) -> None:
        # In float64 no sum overflows, and torch would add in another order on another number of threads.
        out_R1.numpy()[:] = magnitude_RB.numpy().mean(axis=1, keepdims=True, dtype=np.float64)

    def _scales(self, measures: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        return nearest(measures)

    def _write(self, x_RB: Tensor, factor_R1: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        negative_M = np.less(x_RB.numpy().reshape(-1), 0, out=scratch.codes_M[: x_RB.numel()].view(np.bool_))
        codes_C[:] = np.packbits(negative_M, bitorder="little")

    def _read(self, codes_C: npt.NDArray[np.uint8], out_M: npt.NDArray[np.float32]) -> None:
        np.take(_SIGNS, codes_C, axis=0, out=out_M.reshape(-1, 8), mode="clip")
