"""What all block-wise codecs share: the payload's layout and the walk over it.

Payload: the scales of all blocks, then the codes of all values, packed as tightly as they go. What a code is, and how
a value becomes one, only the codec knows that derives from ``BlockCodec``.

Legend: N = values in the vector, B = values in a block, R = blocks at hand, M = values at hand, C = bytes of their
codes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.codecs.flat import CHUNK, check_length, check_vector, filled
from decentral.codecs.noise import Noise
from decentral.codecs.scales import check_scales, widen
from decentral.errors import FrameError
from decentral.tensors.blank import blank

#: Values that may share a scale; a block ends on a whole byte.
BLOCKS: Final = range(8, 65536 + 1)


class Scratch:
    """What encoding one vector needs beside the vector and the payload; made if needed, reused from chunk to chunk."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self.values_M, self.spare_M = torch.empty(size), torch.empty(size)
        self._shaped_RB = self.values_M
        #: One more for the pair of the last value of an odd number.
        self.codes_M = np.empty(size + 1, np.int8)

    @cached_property
    def noise(self) -> Noise:
        """Drawn from the seed; most codecs need none."""
        return Noise(self._size, self._seed)

    def like(self, x_RB: Tensor) -> Tensor:
        """``values_M`` in the shape of ``x_RB``."""
        if self._shaped_RB.shape != x_RB.shape:
            self._shaped_RB = self.values_M[: x_RB.numel()].view(x_RB.shape)
        return self._shaped_RB


@dataclass(frozen=True, slots=True)
class BlockCodec(ABC):
    """One scale per block, then one code per value, several to the byte."""

    block: int
    """Values that share a scale."""

    lossless: ClassVar[bool] = False
    per_byte: ClassVar[int]
    """Codes in a byte; divides ``block``."""
    top: ClassVar[int]
    """A decoded value has at most ``top`` times the magnitude of its scale."""
    zero_scale: ClassVar[bool] = False
    """Whether a scale may be 0."""

    @property
    @abstractmethod
    def name(self) -> str:
        """See ``Codec.name``."""

    @abstractmethod
    def _measure(self, magnitude_RB: Tensor, out_R1: Tensor) -> None:
        """What the scale of each block is made from: not finite if a value is not."""

    @abstractmethod
    def _scales(self, measures: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        """Measures of all blocks to scales, as the bits of bfloat16 numbers; refuse what is not finite."""

    @abstractmethod
    def _write(self, x_RB: Tensor, factor_R1: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        """Encode whole blocks, or one short one.

        Args:
            x_RB: what to encode.
            factor_R1: for each block ``_units`` over its scale.
            codes_C: where the codes go.
            scratch: to be used freely.
        """

    @abstractmethod
    def _read(self, codes_C: npt.NDArray[np.uint8], out_M: npt.NDArray[np.float32]) -> None:
        """Codes to values in units of their scale; refuse what ``_write`` never writes.

        Args:
            codes_C: what was received.
            out_M: as many values as ``codes_C`` has room for.
        """

    @property
    def _units(self) -> int:
        """How many of the units that ``_write`` counts in make a scale."""
        return 1

    def nbytes(self, numel: int) -> int:
        """Payload size in bytes."""
        return 2 * self._num_blocks(numel) + -(-numel // self.per_byte)

    def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
        """See ``Codec.encode``."""
        check_vector(x_N)
        return filled(self.nbytes(x_N.numel()), lambda payload: self._fill(payload, x_N.contiguous(), seed))

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        """See ``Codec.decode``."""
        check_length(self.name, payload, self.nbytes(numel))
        bits, codes = self._split(payload, numel)
        self._check_padding(codes, numel)
        check_scales(self.name, bits, self.top, zero=self.zero_scale)
        scales = torch.from_numpy(widen(bits))
        padded_M = blank(len(codes) * self.per_byte)
        padded, values_N = padded_M.numpy(), padded_M[:numel]
        for out_RB, scale_R1, place in self._pieces(values_N, scales):
            self._read(codes[place], padded[place.start * self.per_byte : place.stop * self.per_byte])
            out_RB.mul_(scale_R1)
        return values_N

    def _fill(self, payload: memoryview, x_N: Tensor, seed: int) -> None:
        bits, codes = self._split(payload, x_N.numel())
        scratch = Scratch(min(x_N.numel(), CHUNK), seed)
        # First all scales, then all codes: a dozen small operations on scales for the vector, not for every chunk.
        measures = torch.empty(len(bits))
        for x_RB, out_R1, _ in self._pieces(x_N, measures):
            self._measure(torch.abs(x_RB, out=scratch.like(x_RB)), out_R1)
        bits[:] = self._scales(measures.numpy())
        factors = torch.from_numpy(widen(bits)).reciprocal_().mul_(self._units)
        for x_RB, factor_R1, place in self._pieces(x_N, factors):
            self._write(x_RB, factor_R1, codes[place], scratch)

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _split(self, payload: bytes | memoryview, numel: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """Views of a payload: the scales' bits, one per block, and the bytes of the codes."""
        num_blocks = self._num_blocks(numel)
        scales = np.frombuffer(payload, "<u2", num_blocks)
        return scales, np.frombuffer(payload, np.uint8, len(payload) - scales.nbytes, scales.nbytes)

    def _check_padding(self, codes: npt.NDArray[np.uint8], numel: int) -> None:
        """Refuse bits set behind the last code; they would be another payload of the same values."""
        used = numel % self.per_byte * 8 // self.per_byte
        if used and codes[-1] >> used:
            raise FrameError(f"{self.name} padding: last byte {codes[-1]:#04x}, only its lowest {used} bits are codes")

    def _pieces(self, values_N: Tensor, per_block: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
        """Whole blocks by the chunk, then the short last one.

        Args:
            values_N: one for each value.
            per_block: one for each block.

        Yields:
            (R, B) of the first, (R, 1) of the second, and where their codes are.
        """
        numel = values_N.numel()
        whole = numel // self.block * self.block
        if 0 < whole == numel <= CHUNK:  # what there is to do to a short vector costs less than to cut it
            yield values_N.view(-1, self.block), per_block[:, None], slice(0, numel // self.per_byte)
            return
        # Cut all at once: a chunk's own views would cost as much as a pass over it.
        parts = [*torch.split(values_N[:whole].view(-1, self.block), CHUNK // self.block), values_N[whole:].view(1, -1)]
        parts = [part for part in parts if part.numel()]
        start = 0
        for part_RB, part_R1 in zip(parts, torch.split(per_block[:, None], [*map(len, parts)]), strict=True):
            stop = start + -(-part_RB.numel() // self.per_byte)
            yield part_RB, part_R1, slice(start, stop)
            start = stop
