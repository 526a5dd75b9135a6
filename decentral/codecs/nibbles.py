"""Two 4-bit codes to the byte: packing and unpacking by table.

The first of two values is in the low half of a byte. Bit 3 of a code is the sign: of two's complement in an integer, of
a magnitude in a power of two. The code 8 is -8 or -0, and is never sent.

Legend: M = values at hand, C = bytes of their codes.
"""

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.errors import FrameError


def pack(
    y_M: Tensor, pairs: npt.NDArray[np.uint8], scratch: npt.NDArray[np.int8], codes_C: npt.NDArray[np.uint8]
) -> None:
    """Truncate values to int8 and look up the byte of each pair; a last value alone is paired with 0.

    Args:
        y_M: from -127 to 127.
        pairs: the byte for the 16 bits of every two int8.
        scratch: at least M + 1 of them.
        codes_C: where the bytes go.
    """
    torch.from_numpy(scratch[: len(y_M)]).copy_(y_M)
    scratch[len(y_M)] = 0
    np.take(pairs, scratch[: 2 * len(codes_C)].view(np.uint16), out=codes_C, mode="clip")  # "raise" buffers the output


def unpack(
    name: str, codes_C: npt.NDArray[np.uint8], values: npt.NDArray[np.uint64], out_M: npt.NDArray[np.float32]
) -> None:
    """Look up the two values of each byte.

    Args:
        name: of the codec, for the message.
        codes_C: what was received.
        values: for each byte two float32 side by side.
        out_M: where the values go, two for each byte.

    Raises:
        FrameError: a code is 8.
    """
    if ((codes_C & 0x0F) == 0x08).any() or ((codes_C & 0xF0) == 0x80).any():
        raise FrameError(f"{name} code: 8, allowed 0 to 7 and 9 to 15")
    np.take(values, codes_C, out=out_M.view(np.uint64), mode="clip")


@functools.cache
def integer_pairs() -> npt.NDArray[np.uint8]:
    """Table for ``pack`` of integers from -7 to 7."""
    return _pairs(np.arange(256, dtype=np.uint8) & np.uint8(0x0F))


@functools.cache
def integer_values() -> npt.NDArray[np.uint64]:
    """Table for ``unpack`` of integers."""
    return _values([*range(8), *range(-8, 0)])


@functools.cache
def power_pairs(starts: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Table for ``pack`` of powers of two: the magnitudes at which levels 1 to 7 start."""
    levels = np.searchsorted(starts, np.abs(_all_int8().astype(int)), side="right")
    return _pairs(np.where((_all_int8() < 0) & (levels > 0), levels | 8, levels).astype(np.uint8))


@functools.cache
def power_values() -> npt.NDArray[np.uint64]:
    """Table for ``unpack`` of powers of two."""
    magnitudes = [0, *(2**k for k in range(7))]
    return _values([*magnitudes, *(-magnitude for magnitude in magnitudes)])


def _all_int8() -> npt.NDArray[np.int8]:
    """Every int8, at the place of its bits."""
    return np.arange(256, dtype=np.uint8).view(np.int8)


def _pairs(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The table of all pairs of int8, from the code of each."""
    pairs: npt.NDArray[np.uint8] = codes[None, :] | codes[:, None] << np.uint8(4)
    return pairs.reshape(-1)


def _values(of_codes: list[int]) -> npt.NDArray[np.uint64]:
    one = np.array(of_codes, np.float32)
    both = np.empty((16, 16, 2), np.float32)
    both[..., 0], both[..., 1] = one[None, :], one[:, None]
    return both.reshape(256, 2).view(np.uint64).reshape(256)
