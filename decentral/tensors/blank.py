"""Memory for the values of a whole fragment, and its way back to the system.

It is taken from numpy, which asks the kernel for large pages. Those of ``torch.empty`` come 4 KiB at a time, and the
first touch of 200 MB of them takes 90 ms of a processor in place of 15: as long as several passes over the values. On a
virtual machine, whose host has to find the memory as well, even large pages take up to 370 ms. So what a sync has freed
is kept for the next one, until it is given back.
"""

import ctypes
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: A block of so many, 32 MB, glibc has from the kernel each time; from smaller ones it learns to keep them.
LARGE_VALUES = 1 << 23
#: As many as a sync needs at a time.
_MAX_KEPT = 4
#: Any thread takes from one end and adds to either, which a deque bears.
_kept: deque[NDArray[np.float32]] = deque(maxlen=_MAX_KEPT)
#: glibc's; other C libraries give back what is freed without being asked, or not at all.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class _Lent:
    """A large block that is kept when nobody refers to its values any more."""

    def __init__(self, block_N: NDArray[np.float32]) -> None:
        self._block_N = block_N
        self.__array_interface__ = block_N.__array_interface__

    def __del__(self) -> None:
        if _kept is not None:  # as it is when the process ends
            _kept.append(self._block_N)


def blank(numel: int) -> Tensor:
    """So many uninitialised values, float32 on the CPU."""
    if numel < LARGE_VALUES:
        return torch.from_numpy(np.empty(numel, np.float32))
    return torch.from_numpy(np.asarray(_Lent(_large(numel))))


def _large(numel: int) -> NDArray[np.float32]:
    for _ in range(_MAX_KEPT):
        try:
            block_N = _kept.pop()
        except IndexError:
            break
        if block_N.size == numel:
            return block_N
        _kept.appendleft(block_N)
    return np.empty(numel, np.float32)


def blank_like(values: Tensor) -> Tensor:
    """Uninitialised values of the same type and shape, on the CPU like them."""
    if values.dtype == torch.float32:
        return blank(values.numel()).reshape(values.shape)
    return torch.from_numpy(np.empty_like(values.numpy()))


def give_back_freed() -> None:
    """Give the system what was freed and is kept for later, here and by the C library, on any thread.

    After a sync that is one to six values a parameter. Whoever needs memory next has to have it from the kernel again.
    """
    _kept.clear()
    if _trim is not None:
        _trim(0)
