"""Frames from anybody: broken ones are refused by name or are values, and cost no memory beyond the answer's."""

import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch

from decentral.codecs.codec import make_codec
from decentral.codecs.dense import Fp32
from decentral.codecs.frame import pack, unpack
from decentral.errors import FrameError
from tests.support.address_space import at_most_more
from tests.support.mutants import Tally, fuzz
from tests.unit.codecs.vectors import ALL_CODECS, normal

RULES = ("length", "magic", "version", "codec", "numel", "payload length", "checksum")
MANY = (1 << 20) + 17
#: What a decoder may take beside the answer: some memory whatever its length, and the scales of all blocks as float32,
#: an eighth of the answer where blocks have 8 values.
EXTRA_BYTES = (1 << 20) + 4 * MANY // 8


def check(tally: Tally, num_frames: int) -> None:
    """The mutants came everywhere: to every rule of the frame and past all of them, to the rules of every codec."""
    assert tally.frames.total() == num_frames
    assert tally.accepted.total() + tally.refusals.total() == num_frames
    assert num_frames * 0.4 < tally.decoded.total() < num_frames * 0.9
    assert num_frames * 0.1 < tally.accepted.total() < tally.decoded.total()
    for rule in RULES:
        assert tally.refusals[f"frame {rule}"] > num_frames // 1000, rule
    for name in ALL_CODECS:
        fair_share = num_frames // len(ALL_CODECS)
        assert tally.decoded[name] > fair_share // 3
        assert tally.accepted[name] > fair_share // 20
        assert any(rule.startswith(f"{name} ") for rule in tally.refusals), f"nothing of {name} was refused"


def test_some_thousand_mutants() -> None:
    check(fuzz([make_codec(name) for name in ALL_CODECS], 8_000, seed=1), 8_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_mutants() -> None:
    check(fuzz([make_codec(name) for name in ALL_CODECS], 1_000_000, seed=0), 1_000_000)


class Raises(Fp32):
    def decode(self, payload, numel):
        return torch.tensor(payload[4 * numel])


class TakesNan(Fp32):
    def decode(self, payload, numel):
        return torch.from_numpy(np.frombuffer(payload, "<f4").copy())


class TakesTorchMemory(Fp32):
    def decode(self, payload, numel):
        torch.empty(1 << 28)
        return super().decode(payload, numel)


class TakesNumpyMemory(Fp32):
    def decode(self, payload, numel):
        np.empty(1 << 28, np.float32)
        return super().decode(payload, numel)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Raises, "IndexError"),
        (TakesNan, "(nan|inf)"),
        (TakesTorchMemory, "RuntimeError.*memory"),
        (TakesNumpyMemory, "MemoryError"),
    ],
)
def test_a_bad_decoder_is_found(broken, message):
    with pytest.raises(AssertionError, match=rf"(?s)mutant \d+ of seed 3 \(fp32, .*{message}"):
        fuzz([broken()], 3_000, seed=3)


class TakesTwice(Fp32):
    def decode(self, payload, numel):
        spare = torch.empty(numel)
        return super().decode(payload, numel) if spare.numel() else spare


def decode_within(codec, extra_bytes: int) -> None:
    """Decode a good and a broken frame with no more memory than the answer takes and ``extra_bytes``."""
    frame = pack(codec, normal(MANY))
    broken = bytearray(frame)
    broken[-1] ^= 0xFF
    struct.pack_into("<I", broken, 36, zlib.crc32(memoryview(broken)[40:]))
    unpack(pack(codec, normal(1 << 18)), codec, 1 << 18)  # starts the threads that decoding may use
    with at_most_more(4 * MANY + extra_bytes):
        assert unpack(frame, codec, MANY).shape == (MANY,)
        with suppress(FrameError):
            unpack(broken, codec, MANY)


def decode_all() -> None:
    """Run in a process of its own: memory that tests before have freed would count as there for the taking."""
    for name in ALL_CODECS:
        decode_within(make_codec(name), EXTRA_BYTES)
    with pytest.raises(MemoryError):
        decode_within(TakesTwice(), EXTRA_BYTES)
    print("all within")


@pytest.mark.slow
def test_decoding_takes_the_answer_and_little_more():
    code = f"from {__name__} import decode_all; decode_all()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "all within\n", done.stderr
