"""What all block-wise codecs share: the payload's layout and the walk over it.

Payload: the scales of all blocks, then the codes of all values, packed as tightly as they go. What a code is, and how
a value becomes one, only the codec knows that derives from ``BlockCodec``.

Legend: N = values in the vector, B = values in a block, R = blocks at hand, M = values at hand, C = bytes of their
codes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decentral.codecs.flat import CHUNK, blank, check_length, check_vector, filled, spans
from decentral.codecs.noise import Noise
from decentral.codecs.scales import check_scales, widen
from decentral.errors import FrameError

#: Values that may share a scale; a block ends on a whole byte.
BLOCKS: Final = range(8, 65536 + 1)


class Scratch:
    """What encoding one vector needs beside the vector and the payload; reused from chunk to chunk."""

    def __init__(self, size: int, seed: int) -> None:
        self.values_M, self.spare_M = torch.empty(size), torch.empty(size)
        #: One more for the pair of the last value of an odd number.
        self.codes_M = np.empty(size + 1, np.int8)
        self.noise = Noise(size, seed)


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
    def _measure(self, magnitude_RB: Tensor, out_R: Tensor) -> None:
        """What the scale of each block is made from: not finite if a value is not."""

    @abstractmethod
    def _scales(self, measures: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        """Measures of all blocks to scales, as the bits of bfloat16 numbers; refuse what is not finite."""

    @abstractmethod
    def _write(self, x_RB: Tensor, scale_R1: Tensor, codes_C: npt.NDArray[np.uint8], scratch: Scratch) -> None:
        """Encode whole blocks, or one short one, into ``codes_C``."""

    @abstractmethod
    def _read(self, codes_C: npt.NDArray[np.uint8], out_M: npt.NDArray[np.float32]) -> None:
        """Codes to values in units of their scale; refuse what ``_write`` never writes.

        Args:
            codes_C: what was received.
            out_M: as many values as ``codes_C`` has room for.
        """

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
        padded = blank(len(codes) * self.per_byte)
        values_N = torch.from_numpy(padded[:numel])
        for first, last, start, stop, width in self._pieces(numel):
            codes_C = codes[self._bytes(start, stop)]
            self._read(codes_C, padded[start : start + len(codes_C) * self.per_byte])
            values_N[start:stop].view(-1, width).mul_(scales[first:last, None])
        return values_N

    def _fill(self, payload: memoryview, x_N: Tensor, seed: int) -> None:
        numel = x_N.numel()
        bits, codes = self._split(payload, numel)
        scratch = Scratch(min(numel, CHUNK), seed)
        # First all scales, then all codes: a dozen small operations on scales for the vector, not for every chunk.
        measures = torch.empty(len(bits))
        for first, last, start, stop, width in self._pieces(numel):
            x_RB = x_N[start:stop].view(-1, width)
            magnitude_RB = torch.abs(x_RB, out=scratch.values_M[: stop - start].view(-1, width))
            self._measure(magnitude_RB, measures[first:last])
        bits[:] = self._scales(measures.numpy())
        scales = torch.from_numpy(widen(bits))
        for first, last, start, stop, width in self._pieces(numel):
            codes_C = codes[self._bytes(start, stop)]
            self._write(x_N[start:stop].view(-1, width), scales[first:last, None], codes_C, scratch)

    def _num_blocks(self, numel: int) -> int:
        return -(-numel // self.block)

    def _bytes(self, start: int, stop: int) -> slice:
        """Where the codes of a piece are; ``start`` is at the start of a block and so of a byte."""
        return slice(start // self.per_byte, -(-stop // self.per_byte))

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

    def _pieces(self, numel: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Whole blocks by the chunk, then the short last one: (first block, behind the last, start, stop, width)."""
        whole = numel - numel % self.block
        for start, stop in spans(whole, CHUNK // self.block * self.block):
            yield start // self.block, stop // self.block, start, stop, self.block
        if whole < numel:
            yield whole // self.block, whole // self.block + 1, whole, numel, numel - whole
