"""The interface of a codec and the registry of their names.

A codec is a pure function of the vector and a seed: no state, no randomness of its own. Each family (dense numbers,
codes by blocks) has a file of its own with ``NAMES`` and ``parse``; a new family is one more entry in ``_FAMILIES``.

Legend: N = values in the vector.
"""

import difflib
from typing import Final, Protocol

from torch import Tensor

from decentral.codecs import blockwise, dense, sign, topk
from decentral.codecs.blocks import BLOCKS
from decentral.errors import ConfigError


class Codec(Protocol):
    """Flat float32 vectors to bytes and back. Immutable, deterministic to the bit on any number of threads."""

    @property
    def name(self) -> str:
        """Says what it costs, such as ``int8-b128``; travels in the frame, ``make_codec`` understands it."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether ``decode`` gives back the very values that were encoded, so that there is no error to feed back."""
        ...

    def encode(self, x_N: Tensor, seed: int = 0) -> bytes:
        """The payload of ``x_N``, exactly ``nbytes(N)`` long.

        Args:
            x_N: finite float32 values on the CPU.
            seed: from 0 to 2^64 - 1; only codecs with stochastic rounding read it. The same values and seed give the
                same bytes; independent errors take a different seed each time.

        Raises:
            ValueError: a value is NaN or infinite, or the tensor is not a flat float32 vector on the CPU.
        """
        ...

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        """The ``numel`` values of a payload: new, float32, on the CPU, every one of them finite.

        Nothing larger than the answer is allocated, and nothing before the payload's length was checked.

        Raises:
            FrameError: the payload is not what ``encode`` produces; the message names the first broken rule.
        """
        ...

    def nbytes(self, numel: int) -> int:
        """Exact size in bytes of the payload of ``numel`` values."""
        ...


_FAMILIES: Final = (dense, blockwise, sign, topk)


def make_codec(name: str) -> Codec:
    """The codec called ``name``.

    Raises:
        ConfigError: there is none; the hint names the nearest one.
    """
    for family in _FAMILIES:
        codec: Codec | None = family.parse(name)
        if codec is not None:
            return codec
    nearest = difflib.get_close_matches(name, codec_names(), n=1, cutoff=0.0)[0]
    blocks = (
        f"blocks of {BLOCKS[0]} to {BLOCKS[-1]} values: even for int4 and e3m0, a multiple of 4 for int2, of 8 for sign"
    )
    raise ConfigError(
        f"unknown codec {name!r}", hint=f"did you mean {nearest}? `decentral codecs` lists them ({blocks})"
    )


def bits_per_value(codec: Codec, numel: int) -> float:
    """Of the payload of ``numel`` values, with what their blocks add."""
    return 8 * codec.nbytes(numel) / numel


def codec_names() -> tuple[str, ...]:
    """Names for help texts: every codec of a fixed shape, and examples of those with a block size."""
    return tuple(name for family in _FAMILIES for name in family.NAMES)
