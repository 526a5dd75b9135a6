"""Memory for the values of a whole fragment, and its way back to the system.

It is taken from numpy, which asks the kernel for large pages. Those of ``torch.empty`` come 4 KiB at a time, and the
first touch of 200 MB of them takes 90 ms of a processor in place of 15: as long as several passes over the values.
"""

import ctypes

import numpy as np
import torch
from torch import Tensor

#: glibc's; other C libraries give back what is freed without being asked, or not at all.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def blank(numel: int) -> Tensor:
    """So many uninitialised values, float32 on the CPU."""
    return torch.from_numpy(np.empty(numel, np.float32))


def blank_like(values: Tensor) -> Tensor:
    """Uninitialised values of the same type and shape, on the CPU like them."""
    return torch.from_numpy(np.empty_like(values.numpy()))


def give_back_freed() -> None:
    """Give the system what was freed and the C library keeps for later, on any thread.

    After a sync that is one to two values a parameter. Whoever needs memory next has to have it from the kernel again.
    """
    if _trim is not None:
        _trim(0)
