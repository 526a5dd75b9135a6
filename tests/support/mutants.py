"""Broken frames for the decoder, drawn from a seed, and what must hold of each.

Half of all mutants get a right header and checksum after they were broken, else nearly none would come past the frame's
own checks; ``Tally`` counts how far they came.
"""

import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from decentral.codecs.codec import Codec
from decentral.codecs.frame import MAGIC, VERSION, pack, unpack
from decentral.errors import FrameError
from tests.support.address_space import at_most_more

#: Nothing, one value, odd numbers, several blocks; then two chunks of the top-k family and a short one.
NUMELS = (0, 1, 2, 7, 16, 33, 129, 300, 2 * 4096 + 77)
#: What a frame may claim to hold, beside numbers close to the right one.
LIES = (0, 2**31, 2**32 + 1, 2**60, 2**63, 2**64 - 1)
#: Allowed beyond what the process has when it begins: all answers above are far smaller, all lies far larger.
EXTRA_BYTES = 4 << 20

_HEADER = struct.Struct("<4sH22sQI")


@dataclass(frozen=True)
class Mutant:
    """One frame, and what its receiver was told to expect."""

    data: bytes
    codec: Codec
    numel: int
    made_by: str


@dataclass
class Tally:
    """How far the mutants came, by codec."""

    frames: Counter[str] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    """By the words before the first value seen."""


class Watched:
    """A codec that counts the payloads it is asked to decode."""

    def __init__(self, codec: Codec, decoded: Counter[str]) -> None:
        self.name, self.lossless = codec.name, codec.lossless
        self.encode, self.nbytes = codec.encode, codec.nbytes
        self._decode, self._decoded = codec.decode, decoded

    def decode(self, payload: bytes | memoryview, numel: int) -> Tensor:
        self._decoded[self.name] += 1
        return self._decode(payload, numel)


def fuzz(codecs: Sequence[Codec], num_frames: int, seed: int) -> Tally:
    """Unpack mutants of frames of ``codecs``.

    Raises:
        AssertionError: one was neither refused with a FrameError nor decoded to as many finite float32 values as were
            expected, or more memory was asked for than the answer needs; the message says how to make it again.
    """
    tally = Tally()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would be started within the limit of memory
    try:
        watched = [Watched(codec, tally.decoded) for codec in codecs]
        frames = [(codec, n, pack(codec, x_N)) for codec in watched for n in NUMELS for x_N in _vectors(n, seed)]
        with at_most_more(EXTRA_BYTES):
            for number, mutant in zip(range(num_frames), mutants(frames, seed), strict=False):
                _try(mutant, tally, f"mutant {number} of seed {seed}")
    finally:
        torch.set_num_threads(threads)
    return tally


def mutants(frames: Sequence[tuple[Codec, int, bytes]], seed: int) -> Iterator[Mutant]:
    """Endless broken frames made of valid ones (codec, values, bytes); the same for the same frames and seed."""
    rng = random.Random(seed)
    while True:
        codec, numel, frame = rng.choice(frames)
        data, made_by = bytearray(frame), []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            breaks = rng.choice(_BREAKS)
            breaks(rng, data, rng.choice(frames)[2])
            made_by.append(breaks.__name__)
        match rng.random():
            case draw if draw < 0.6:
                _repair(data, codec, numel)
                made_by.append("repaired")
            case draw if draw < 0.7:  # a whole frame of what the receiver did not agree on
                codec, numel = rng.choice(frames)[0], rng.choice((*LIES, *NUMELS))
                made_by.append("unexpected")
        yield Mutant(bytes(data), codec, numel, " ".join(made_by))


def _try(mutant: Mutant, tally: Tally, what: str) -> None:
    name = mutant.codec.name
    tally.frames[name] += 1
    try:
        x_N = unpack(mutant.data, mutant.codec, mutant.numel)
    except FrameError as refusal:
        tally.refusals[str(refusal).split(":")[0]] += 1
        return
    except Exception as error:
        raise AssertionError(f"{what} ({name}, {mutant.numel} values, {mutant.made_by}): {error!r}") from error
    tally.accepted[name] += 1
    values = x_N.numpy()
    sound = values.dtype == np.float32 and values.shape == (mutant.numel,) and bool(np.isfinite(values).all())
    assert sound, f"{what} ({name}, {mutant.numel} values, {mutant.made_by}): {values.dtype} {values.shape} {values}"


def _vectors(numel: int, seed: int) -> Iterator[Tensor]:
    """Something to encode: noise, the same with most values zero, and values at both ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    noise_N = torch.randn(numel, generator=generator)
    yield noise_N * 1e-3
    yield noise_N * (torch.rand(numel, generator=generator) < 0.002)
    yield (noise_N * 1e38).clamp(-3e38, 3e38) * (10.0 ** torch.randint(-70, 1, (numel,), generator=generator))


def _repair(data: bytearray, codec: Codec, numel: int) -> None:
    """Make the header that of an honest frame with this payload, cut or filled to its length two times in three."""
    size = _HEADER.size + codec.nbytes(numel)
    if len(data) < _HEADER.size or len(data) % 3:
        data[:] = data[:size].ljust(size, b"\x5a")
    checksum = zlib.crc32(memoryview(data)[_HEADER.size :])
    _HEADER.pack_into(data, 0, MAGIC, VERSION, codec.name.encode(), numel, checksum)


def _flip_bits(rng: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_bytes(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, count = rng.randrange(len(data) + 1), rng.randrange(1, 9)
    stop = min(start + count, len(data))
    data[start:stop] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * (stop - start)


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, source, count = rng.randrange(len(data) + 1), rng.randrange(len(other)), rng.randrange(1, 64)
    part = other[source : source + count]
    data[start : start + len(part)] = part


def _move(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, stop = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    part = data[start : min(stop, start + 64)]
    del data[start : start + len(part)]
    at = rng.randrange(len(data) + 1)
    data[at:at] = part


def _truncate(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _extend(rng: random.Random, data: bytearray, other: bytes) -> None:
    data += rng.choice((rng.randbytes(rng.randrange(1, 64)), other[: rng.randrange(1, 64)]))


def _edit_header(rng: random.Random, data: bytearray, other: bytes) -> None:
    """One field anew, of the other frame or invented; the checksum stays that of the payload."""
    if len(data) < _HEADER.size:
        return
    fields, theirs = list(_HEADER.unpack_from(data)), _HEADER.unpack_from(other)
    which = rng.randrange(5)
    numel = fields[3]
    invented = (rng.randbytes(4), rng.randrange(1 << 16), rng.randbytes(22), rng.choice(LIES), rng.randrange(1 << 32))
    fields[which] = rng.choice((theirs[which], invented[which]))
    if which == 3 and rng.random() < 0.3:
        fields[which] = (numel + rng.choice((-1, 1))) % 2**64
    _HEADER.pack_into(data, 0, *fields)


def _garbage(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Random bytes in place of the payload, or of everything."""
    start = rng.choice((0, _HEADER.size, _HEADER.size))
    if start < len(data):
        data[start:] = rng.randbytes(len(data) - start)


#: Ways to break any bytes, given others of the same kind.
BREAKS_OF_BYTES: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    _flip_bits,
    _flip_bits,
    _set_bytes,
    _splice,
    _move,
    _truncate,
    _extend,
)
_BREAKS = (*BREAKS_OF_BYTES, _edit_header, _garbage)
