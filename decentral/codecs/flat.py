"""What all codec families share: the checks on values and payloads, and the walk in cache-sized chunks.

Legend: N = values in the vector. Byte order on the wire is little-endian.
"""

import math
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.errors import FrameError
from decentral.tensors.finite import all_finite

#: Values worked on at a time: 512 KiB of float32, so that a chunk and its scratch stay in a core's second-level cache
#: while the fixed cost of a dozen small operations a chunk stays small beside them.
CHUNK = 1 << 17

_NOT_FINITE = "cannot encode a vector with NaN or infinite values"


def check_vector(x_N: Tensor) -> None:
    """Refuse anything but a flat float32 vector on the CPU.

    Raises:
        ValueError: another dtype, number of dimensions or device.
    """
    if x_N.dtype is not torch.float32 or x_N.ndim != 1 or not x_N.is_cpu:
        shape = tuple(x_N.shape)
        raise ValueError(f"a codec takes a flat float32 vector on the CPU, not {x_N.dtype} {shape} on {x_N.device}")


def check_finite(x_N: npt.NDArray[np.float32]) -> None:
    """Refuse NaN and infinity in what is about to be sent.

    Raises:
        ValueError: there is one.
    """
    if not all_finite(x_N):
        raise ValueError(_NOT_FINITE)


def largest_magnitude(x_N: Tensor) -> float:
    """The largest absolute value, 0 for an empty vector.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not x_N.numel():
        return 0.0
    low, high = torch.aminmax(x_N)  # both are NaN if any value is
    largest = max(-low.item(), high.item())
    if not math.isfinite(largest):
        raise ValueError(_NOT_FINITE)
    return largest


def check_length(name: str, payload: bytes | memoryview, expected_bytes: int) -> None:
    """Refuse a payload that is not exactly as long as the codec says.

    Raises:
        FrameError: it is shorter or longer.
    """
    if len(payload) != expected_bytes:
        raise FrameError(f"{name} payload length: {len(payload)} bytes received, {expected_bytes} expected")


def filled(size_bytes: int, fill: Callable[[memoryview], None]) -> bytes:
    """``size_bytes`` bytes that ``fill`` writes in place, without the copy that an array's ``tobytes`` takes."""
    if not size_bytes:
        return b""
    buffer = BytesIO()
    buffer.seek(size_bytes - 1)
    buffer.write(b"\0")
    fill(buffer.getbuffer())
    return buffer.getvalue()  # hands its own memory over once nobody holds a view of it


def spans(numel: int, step: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Cut [0, numel) into ranges (start, stop) of ``step`` values; the last may be shorter."""
    for start in range(0, numel, step):
        yield start, min(start + step, numel)
