"""The random numbers of stochastic rounding: a function of the seed alone."""

import numpy as np
import torch
from torch import Tensor


class Noise:
    """Uniform numbers in (0, 1), drawn for one call of ``encode``.

    They are the odd multiples of 2^-16, so their mean is 1/2 to the bit. A value that is rounded up if such a number
    says so is right on average but for 2^-16 of a step. 16 bits are enough for each: four to a draw of SFC64, the
    fastest of numpy's generators.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._bits = np.random.SFC64(seed)
        self._uniform = torch.empty(size)

    def uniform(self, count: int) -> Tensor:
        """The next ``count`` numbers; the memory is the next call's."""
        words = self._bits.random_raw(-(-count // 4))
        words |= np.uint64(0x0001_0001_0001_0001)
        quarters = torch.from_numpy(words.view(np.int16)[:count])
        return self._uniform[:count].copy_(quarters).mul_(2.0**-16).add_(0.5)
