"""One number per value: fp32, bf16, fp16.

Legend: N = values in the vector. Formulae and error bounds are in ``docs/algorithms/codecs.md``.
"""

import math
import struct
from typing import Final

import numpy as np
import torch
from torch import Tensor

from decentral.codecs.flat import (
    CHUNK,
    check_finite,
    check_length,
    check_vector,
    filled,
    largest_magnitude,
    spans,
)
from decentral.errors import FrameError
from decentral.tensors.blank import blank
from decentral.tensors.finite import all_finite

#: Names this family can make, for help texts.
NAMES: Final = ("fp32", "bf16", "fp16")

_BF16_MAX: Final = torch.finfo(torch.bfloat16).max
#: Bits of bfloat16 infinity without sign: every finite magnitude is below.
_BF16_INF: Final = 0x7F80

_FP16_EXPONENT: Final = struct.Struct("<h")
#: Largest half below 2^15. Scaled values end here, so 2^113 times any of them is still a finite float32.
_FP16_TOP: Final = 32752.0
_FP16_TOP_BITS: Final = 0x77FF
#: Exponents of the shared scale: the largest float32 needs -113; above 102 a decoded value could be subnormal, which
#: a peer that flushes subnormals to zero would decode to other bits.
_FP16_LOWEST: Final = -113
_FP16_HIGHEST: Final = 102


def parse(name: str) -> "Fp32 | Bf16 | Fp16 | None":
    """The codec called ``name``, or ``None`` if it is not of this family."""
    match name:
        case "fp32":
            return Fp32()
        case "bf16":
            return Bf16()
        case "fp16":
            return Fp16()
        case _:
            return None


class Fp32:
    """The values as they are: 32 bits each, no error."""

    name: Final = "fp32"
    lossless: Final = True

    def nbytes(self, numel: int) -> int:
        """Payload size in bytes."""
        return 4 * numel

    def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
        """See ``Codec.encode``."""
        check_vector(x_N)
        values = x_N.numpy()
        check_finite(values)
        return values.tobytes()

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        """See ``Codec.decode``."""
        check_length(self.name, payload, self.nbytes(numel))
        values = np.frombuffer(payload, "<f4").copy()
        if not all_finite(values):
            raise FrameError("fp32 payload: a value is NaN or infinite")
        return torch.from_numpy(values)


class Bf16:
    """Upper half of a float32, rounded to nearest, ties to even; 16 bits each.

    x' = bf16(x), so |x' - x| <= 2^-8 |x|, or 2^-134 for subnormals. Magnitudes above the largest bfloat16
    (3.39e38) are sent as that, within the same bound, and not as infinity.
    """

    name: Final = "bf16"
    lossless: Final = False

    def nbytes(self, numel: int) -> int:
        """Payload size in bytes."""
        return 2 * numel

    def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
        """See ``Codec.encode``."""
        check_vector(x_N)
        largest = largest_magnitude(x_N)

        def fill(payload: memoryview) -> None:
            codes_N = torch.from_numpy(np.frombuffer(payload, "<i2")).view(torch.bfloat16).copy_(x_N)
            if largest > _BF16_MAX:
                codes_N.clamp_(-_BF16_MAX, _BF16_MAX)

        return filled(self.nbytes(x_N.numel()), fill)

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        """See ``Codec.decode``."""
        check_length(self.name, payload, self.nbytes(numel))
        x_N = blank(numel)
        codes, bits = np.frombuffer(payload, "<u2"), x_N.numpy().view(np.uint32)
        for start, stop in spans(numel):
            part = codes[start:stop]
            if (part & 0x7FFF).max() >= _BF16_INF:
                raise FrameError("bf16 payload: a value is NaN or infinite")
            np.left_shift(part, 16, out=bits[start:stop], dtype=np.uint32)
        return x_N


class Fp16:
    """Half precision under one power of two for the whole vector; 16 bits each and 2 bytes.

    k = 14 - floor(log2 max|x|), at most 102; x' = 2^-k fp16(2^k x). The scale puts the largest value in
    [2^14, 2^15): nothing overflows, and the small values of a pseudo-gradient do not vanish below the smallest half
    (6e-8). |x' - x| <= 2^-11 |x| down to 2^-28 max|x|, and 2^(-25-k) below.

    Source: loss scaling of Micikevicius et al., arXiv 1710.03740, with the exact scale in place of a search for it.
    """

    name: Final = "fp16"
    lossless: Final = False

    def nbytes(self, numel: int) -> int:
        """Payload size in bytes."""
        return _FP16_EXPONENT.size + 2 * numel

    def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
        """See ``Codec.encode``."""
        check_vector(x_N)
        largest = largest_magnitude(x_N)
        exponent = min(15 - math.frexp(largest)[1], _FP16_HIGHEST) if largest else 0
        factor = math.ldexp(1.0, exponent)

        def fill(payload: memoryview) -> None:
            _FP16_EXPONENT.pack_into(payload, 0, exponent)
            codes_N = torch.from_numpy(np.frombuffer(payload[_FP16_EXPONENT.size :], "<i2")).view(torch.float16)
            scratch = torch.empty(min(x_N.numel(), CHUNK))
            for start, stop in spans(x_N.numel()):
                scaled = torch.mul(x_N[start:stop], factor, out=scratch[: stop - start])
                codes_N[start:stop] = scaled.clamp_(-_FP16_TOP, _FP16_TOP)

        return filled(self.nbytes(x_N.numel()), fill)

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        """See ``Codec.decode``."""
        check_length(self.name, payload, self.nbytes(numel))
        (exponent,) = _FP16_EXPONENT.unpack_from(payload)
        if not _FP16_LOWEST <= exponent <= _FP16_HIGHEST:
            raise FrameError(f"fp16 scale: exponent {exponent}, allowed {_FP16_LOWEST} to {_FP16_HIGHEST}")
        factor = math.ldexp(1.0, -exponent)
        x_N = blank(numel)
        codes = np.frombuffer(payload, "<u2", offset=_FP16_EXPONENT.size)
        for start, stop in spans(numel):
            part = codes[start:stop]
            if (part & 0x7FFF).max() > _FP16_TOP_BITS:
                raise FrameError(f"fp16 payload: a scaled value is not finite or above {_FP16_TOP:.0f}")
            halves = torch.frombuffer(bytearray(part), dtype=torch.float16)  # numpy widens halves far slower
            torch.mul(x_N[start:stop].copy_(halves), factor, out=x_N[start:stop])
        return x_N
