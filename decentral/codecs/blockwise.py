"""Integers by blocks with one scale per block: int8.

Payload: the scales of all blocks as bfloat16, then one code per value. The scale has 8 significant bits and a code 7,
so code x scale is exact in float32, and no decoded value is subnormal: every machine decodes to the same bits, also
one that flushes subnormals to zero.

Legend: N = values in the vector, B = values in a block, R = blocks at hand. Formulae and error bounds are in
``docs/algorithms/codecs.md``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.codecs.flat import CHUNK, check_finite, check_length, check_vector, filled, spans
from decentral.errors import FrameError

#: Names this family can make, for help texts; any block size in ``BLOCKS`` will do.
NAMES: Final = ("int8-b64", "int8-b128", "int8-b256", "int8-b1024")
#: Values that may share a scale.
BLOCKS: Final = range(8, 65536 + 1)

_NAME: Final = re.compile(r"int8-b([1-9][0-9]{0,4})")

_TOP: Final = 127
#: Bits of the smallest and the largest bfloat16 in use as scale: 2^-126, the smallest normal number, and
#: 129/128 x 2^121, the largest whose product with 127 is a finite float32.
_LOWEST_SCALE: Final = 0x0080
_HIGHEST_SCALE: Final = 0x7C01


def parse(name: str) -> "Int8 | None":
    """The codec called ``name``, or ``None`` if it is not of this family."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) not in BLOCKS:
        return None
    return Int8(int(match[1]))


@dataclass(frozen=True, slots=True)
class Int8:
    """Symmetric 8-bit integers: 8 + 16/B bits per value.

    s = max|x| / 127 over the block, rounded up to a bfloat16, at least 2^-126; q = round(x / s), ties to even;
    x' = q s. |x' - x| <= s/2 (1 + 2^-16), that is max|x| / 252, or 2^-127 in a block with max|x| below 1.5e-36.

    Source: absmax blocks as in 8-bit optimizers (Dettmers et al., arXiv 2110.02861, linear instead of dynamic codes);
    the bfloat16 scale and its rounding upwards are ours.
    """

    block: int
    """Values that share a scale."""

    @property
    def name(self) -> str:
        """``int8-b<block>``."""
        return f"int8-b{self.block}"

    @property
    def lossless(self) -> bool:
        """No: see the bound."""
        return False

    def nbytes(self, numel: int) -> int:
        """Payload size in bytes."""
        return 2 * self._num_blocks(numel) + numel

    def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
        """See ``Codec.encode``."""
        check_vector(x_N)
        return filled(self.nbytes(x_N.numel()), lambda payload: self._fill(payload, x_N.contiguous()))

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        """See ``Codec.decode``."""
        check_length(self.name, payload, self.nbytes(numel))
        scales, codes = self._split(payload, numel)
        x_N = torch.empty(numel)
        for first, start, stop, width in self._pieces(numel):
            bits_R = scales[first : first + (stop - start) // width]
            _check_payload(self.name, bits_R, codes[start:stop])
            out_N = x_N[start:stop]
            out_N.numpy()[:] = codes[start:stop]
            out_N.view(-1, width).mul_(torch.from_numpy(_widen(bits_R))[:, None])
        return x_N

    def _fill(self, payload: memoryview, x_N: Tensor) -> None:
        numel = x_N.numel()
        scales, codes = self._split(payload, numel)
        codes_N, scratch = torch.from_numpy(codes), torch.empty(min(numel, CHUNK))
        for first, start, stop, width in self._pieces(numel):
            x_RB, scaled_RB = x_N[start:stop].view(-1, width), scratch[: stop - start].view(-1, width)
            bits_R = _scale_bits(torch.abs(x_RB, out=scaled_RB).amax(dim=1).numpy())
            scales[first : first + len(bits_R)] = bits_R
            inverse_R = torch.from_numpy(np.float32(1) / _widen(bits_R))
            torch.mul(x_RB, inverse_R[:, None], out=scaled_RB).round_()
            codes_N[start:stop].view(-1, width).copy_(scaled_RB)

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _split(self, payload: bytes | memoryview, numel: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int8]]:
        """Views of a payload: the scales' bits, one per block, and the codes, one per value."""
        num_blocks = self._num_blocks(numel)
        return np.frombuffer(payload, "<u2", num_blocks), np.frombuffer(payload, np.int8, numel, 2 * num_blocks)

    def _pieces(self, numel: int) -> Iterator[tuple[int, int, int, int]]:
        """Whole blocks by the chunk, then the short last block: (first block, start, stop, values in a block)."""
        whole = numel - numel % self.block
        for start, stop in spans(whole, CHUNK // self.block * self.block):
            yield start // self.block, start, stop, self.block
        if whole < numel:
            yield whole // self.block, whole, numel, numel - whole


def _scale_bits(absmax_R: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """max|x| / 127 rounded up to bfloat16, as bits, within the range of scales."""
    check_finite(absmax_R)
    bits_R: npt.NDArray[np.uint32] = (absmax_R / np.float32(_TOP)).view(np.uint32)
    bits_R += 0xFFFF
    bits_R >>= 16
    np.maximum(bits_R, _LOWEST_SCALE, out=bits_R)
    np.minimum(bits_R, _HIGHEST_SCALE, out=bits_R)
    return bits_R


def _widen(bits_R: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Bits of bfloat16 numbers to float32."""
    wide_R: npt.NDArray[np.uint32] = np.left_shift(bits_R, 16, dtype=np.uint32)
    return wide_R.view(np.float32)


def _check_payload(name: str, bits_R: npt.NDArray[np.uint16], codes: npt.NDArray[np.int8]) -> None:
    """Refuse what ``encode`` cannot have produced; what passes decodes to finite values."""
    lowest, highest = int(bits_R.min()), int(bits_R.max())
    if lowest < _LOWEST_SCALE or highest > _HIGHEST_SCALE:
        bits = highest if highest > _HIGHEST_SCALE else lowest
        allowed = f"{_LOWEST_SCALE:#06x} to {_HIGHEST_SCALE:#06x}"
        raise FrameError(f"{name} scale: bfloat16 bits {bits:#06x}, allowed {allowed}")
    if codes.min() < -_TOP:
        raise FrameError(f"{name} code: {codes.min()}, allowed {-_TOP} to {_TOP}")
