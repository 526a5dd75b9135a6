"""The checked wire frame of one encoded vector: a header of fixed size, then the codec's payload.

Layout in ``docs/wire-format.md``. The receiver knows which codec and how many values were agreed; the header repeats
them, so that a peer of another mind is found out before a byte is decoded or allocated. The checksum catches damage
and bugs; it is no protection against forgery, which is the transport's task.
"""

import struct
import zlib
from typing import Final

from torch import Tensor

from decentral.codecs.codec import Codec
from decentral.errors import FrameError

MAGIC: Final = b"DCVF"
VERSION: Final = 1

#: Magic, version, codec name padded with zeros, numel, CRC-32 of the payload; little-endian, no gaps.
_HEADER: Final = struct.Struct("<4sH22sQI")
_NAME_BYTES: Final = 22


def pack(codec: Codec, x_N: Tensor, seed: int = 0) -> bytes:
    """One frame holding ``x_N``; ``seed`` is for codecs with stochastic rounding, see ``Codec.encode``.

    Raises:
        ValueError: ``codec`` cannot encode ``x_N``; see ``Codec.encode``.
    """
    payload = codec.encode(x_N, seed)
    return b"".join((_header(codec.name, x_N.numel(), payload), payload))


def unpack(data: bytes | memoryview, codec: Codec, numel: int) -> Tensor:
    """The ``numel`` values of a frame of ``codec``: float32 on the CPU, all finite.

    Args:
        data: the whole frame, from anybody.
        codec: what was agreed; the frame cannot choose another.
        numel: how many values were agreed.

    Raises:
        FrameError: the frame breaks a rule; the message names the first one and the value seen.
    """
    if len(data) < _HEADER.size:
        raise FrameError(f"frame length: {len(data)} bytes, the header alone takes {_HEADER.size}")
    magic, version, name, seen_numel, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"frame magic: {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise FrameError(f"frame version: {version}, expected {VERSION}")
    if name != _padded(codec.name):
        raise FrameError(f"frame codec: {name.rstrip(bytes(1))!r}, agreed on {codec.name!r}")
    if seen_numel != numel:
        raise FrameError(f"frame numel: {seen_numel}, agreed on {numel}")
    payload = memoryview(data)[_HEADER.size :]
    if len(payload) != codec.nbytes(numel):
        raise FrameError(f"frame payload length: {len(payload)} bytes, {numel} values take {codec.nbytes(numel)}")
    seen_checksum = zlib.crc32(payload)
    if seen_checksum != checksum:
        raise FrameError(f"frame checksum: header says {checksum:#010x}, payload has {seen_checksum:#010x}")
    return codec.decode(payload, numel)


def reread(frame: bytes, codec: Codec, numel: int) -> Tensor:
    """The values that others find in a frame of our own making, whose checks it has passed: float32 on the CPU."""
    return codec.decode(memoryview(frame)[_HEADER.size :], numel)


def frame_overhead(codec_name: str) -> int:
    """Bytes that a frame adds to the payload of codec ``codec_name``: the same for all."""
    _padded(codec_name)
    return _HEADER.size


def framed_nbytes(codec: Codec, numel: int) -> int:
    """Exact size in bytes of the frame of ``numel`` values."""
    return _HEADER.size + codec.nbytes(numel)


def _header(name: str, numel: int, payload: bytes) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, _padded(name), numel, zlib.crc32(payload))


def _padded(name: str) -> bytes:
    raw = name.encode("ascii")
    if len(raw) > _NAME_BYTES:
        raise ValueError(f"codec name {name!r} is longer than the {_NAME_BYTES} bytes a frame has for it")
    return raw.ljust(_NAME_BYTES, b"\0")
