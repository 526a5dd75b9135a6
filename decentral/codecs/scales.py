"""The scale of a block: a bfloat16 number, sent as its 16 bits.

It has the range of a float32 in half the bytes. Its 8 significant bits times a code of at most 7 are exact in float32,
and as none is subnormal, no decoded value is: every machine decodes to the same bits, also one that flushes subnormals
to zero.

Legend: R = blocks at hand.
"""

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from decentral.codecs.flat import check_finite
from decentral.errors import FrameError

#: Bits of the smallest scale, 2^-126: the smallest normal number.
LOWEST: Final = 0x0080


@functools.cache
def highest(top: int) -> int:
    """Bits of the largest scale whose product with ``top`` is a finite float32."""
    return int((np.finfo(np.float32).max / np.float32(top)).view(np.uint32)) >> 16


def rounded_up(absmax_R: npt.NDArray[np.float32], top: int) -> npt.NDArray[np.uint32]:
    """max|x| / ``top`` rounded up to bfloat16, as bits, from ``LOWEST`` to ``highest(top)``.

    Upwards, so that no value of a block exceeds ``top`` scales; only under the largest scale one may, by 0.4 % at most.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    check_finite(absmax_R)
    bits_R: npt.NDArray[np.uint32] = (absmax_R / np.float32(top)).view(np.uint32)
    bits_R += 0xFFFF
    bits_R >>= 16
    # In two steps: np.clip looks up the range of the type every time.
    np.minimum(bits_R, highest(top), out=bits_R)
    return np.maximum(bits_R, LOWEST, out=bits_R)


def nearest(mean_R: npt.NDArray[np.float32] | npt.NDArray[np.float64], top: int = 1) -> npt.NDArray[np.uint32]:
    """Means rounded to the nearest bfloat16, ties up, as bits, at most ``highest(top)``; below 2^-126 they become 0.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    narrow_R = mean_R.astype(np.float32)
    check_finite(narrow_R)
    bits_R: npt.NDArray[np.uint32] = narrow_R.view(np.uint32)
    bits_R += 0x8000
    bits_R >>= 16
    bits_R[bits_R < LOWEST] = 0
    return np.minimum(bits_R, highest(top), out=bits_R)


def widen(bits_R: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Bits of bfloat16 numbers to float32."""
    wide_R: npt.NDArray[np.uint32] = np.left_shift(bits_R, 16, dtype=np.uint32)
    return wide_R.view(np.float32)


def check_scales(name: str, bits_R: npt.NDArray[np.uint16], top: int, *, zero: bool) -> None:
    """Refuse a scale that encoding cannot give.

    Args:
        name: of the codec, for the message.
        bits_R: what was received.
        top: the largest code.
        zero: whether a scale of 0 may be among them.

    Raises:
        FrameError: a scale is out of range.
    """
    most = highest(top)
    refused = (bits_R < LOWEST) | (bits_R > most)
    if zero:
        refused &= bits_R != 0
    if refused.any():
        allowed = f"{'0 or ' if zero else ''}{LOWEST:#06x} to {most:#06x}"
        raise FrameError(f"{name} scale: bfloat16 bits {bits_R[refused][0]:#06x}, allowed {allowed}")
