import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.sign import Int2, Sign
from decentral.errors import FrameError
from tests.unit.codecs.vectors import FLOAT_MAX, normal, vectors

LEVELS = {Sign: (1,), Int2: (1, 3)}


def reference(x: np.ndarray, block: int, kind: type) -> np.ndarray:
    """The documented formula in double precision, one value at a time, but for the rounding of the scale."""
    decoded = np.zeros(len(x))
    for start in range(0, len(x), block):
        part = x[start : start + block].astype(np.float64)
        mean = sum(map(abs, part)) / len(part)
        fitted = [LEVELS[kind][-1] if abs(value) > 1.25 * mean else 1 for value in part]
        scale = sum(abs(value) * level for value, level in zip(part, fitted, strict=True)) / sum(q * q for q in fitted)
        for i, value in enumerate(part):
            level = LEVELS[kind][-1] if abs(value) > 2 * scale else 1
            decoded[start + i] = (-level if value < 0 else level) * scale
    return decoded


def squared_error(x: torch.Tensor, codec: Sign) -> list[tuple[torch.Tensor, float]]:
    """The blocks, each with its squared error."""
    off = (codec.decode(codec.encode(x), x.numel()).double() - x.double()).split(8)
    return [(part, float((error**2).sum())) for part, error in zip(x.double().split(8), off, strict=True)]


@pytest.mark.parametrize("kind", LEVELS)
@given(x=vectors(), block=st.sampled_from((8, 16, 128)))
def test_agrees_with_the_formula_within_the_rounding_of_the_scale(kind, x, block):
    decoded = kind(block).decode(kind(block).encode(x), x.numel()).double().numpy()
    expected = reference(x.numpy(), block, kind)
    agree = np.abs(decoded - expected) <= np.maximum(np.abs(expected) * 2.0**-8, kind.top * 2.0**-126)
    # What is within that rounding of halfway between two levels may go to either, to about the same error.
    error, least = (np.abs(each - x.numpy().astype(np.float64)) for each in (decoded, expected))
    assert (agree | ((kind is Int2) & (error <= least * (1 + 2.0**-6) + 2.0**-125))).all()


@given(x=vectors())
def test_no_other_scale_of_signs_has_a_smaller_error(x):
    for part, error in squared_error(x, Sign(8)):
        if part.numel():
            least = float((part**2).sum()) - float(part.abs().sum()) ** 2 / part.numel()
            # Rounding the scale by 2^-9 adds the square of that.
            assert error <= least + float((part**2).sum()) * 2.0**-15 + 1e-70


@given(x=vectors())
def test_the_size_of_values_leaves_at_most_three_quarters_of_what_the_mean_explains(x):
    for part, error in squared_error(x, Int2(8)):
        if part.numel():
            most = float((part**2).sum()) - 0.75 * float(part.abs().sum()) ** 2 / part.numel()
            assert error <= most + float((part**2).sum()) * 2.0**-14 + 1e-70


def test_wire_layout_is_scales_then_bits():
    x = torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0, -0.0, 2.0, -2.0, -4.0])
    assert Sign(8).encode(x).hex() == "803f" + "8040" + "86" + "01"
    assert Sign(8).decode(Sign(8).encode(x), 9).tolist() == [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -4.0]
    # From the lowest bits: 1, -3 | 1, -1 | 3, 0 | -1, 1 || -1.
    y = torch.tensor([1.0, -3.0, 1.0, -1.0, 3.0, 0.0, -1.0, 1.0, -2.0])
    assert Int2(8).encode(y).hex() == "753f" + "0040" + "4c" + "12" + "01"
    assert Int2(8).decode(Int2(8).encode(y), 9).div(0.95703125).tolist()[:8] == [1, -3, 1, -1, 3, 1, -1, 1]


def test_scales_of_zeros_of_the_smallest_and_of_the_largest_values():
    x = torch.cat([torch.zeros(8), torch.full((8,), -1e-44), torch.full((8,), 2.0**-126), torch.full((8,), -FLOAT_MAX)])
    payload = Sign(8).encode(x)
    assert struct.unpack("<4H", payload[:8]) == (0, 0, 0x0080, 0x7F7F)
    assert Sign(8).decode(payload, 32).abs().tolist()[:16] == [0.0] * 16


def test_a_mean_is_rounded_to_the_nearest_scale():
    ulp = 2.0**-7
    x = torch.tensor([[1 + 0.49 * ulp] * 8, [1 + 0.51 * ulp] * 8]).flatten()
    assert Sign(8).decode(Sign(8).encode(x), 16).tolist() == [1.0] * 8 + [1 + ulp] * 8


def test_error_on_normal_noise_is_what_signs_leave_and_that_of_the_best_four_levels():
    x = normal(1 << 18)
    for codec, left in ((Sign(1024), (1 - 2 / np.pi) ** 0.5), (Int2(1024), 0.1175**0.5)):
        off = codec.decode(codec.encode(x), x.numel()) - x
        assert float(off.norm() / x.norm()) == pytest.approx(left, abs=0.003)


@pytest.mark.parametrize("bits", [0x0001, 0x007F, 0x7F80, 0x7FC0, 0x8000, 0xBF80])
@pytest.mark.parametrize(("codec", "most"), [(Sign(8), 0x7F7F), (Int2(8), 0x7EAA)])
def test_refuses_scales_that_encode_cannot_produce(codec, most, bits):
    rest = bytes(codec.nbytes(24) - 6)
    codec.decode(struct.pack("<3H", 0, 0x0080, most) + rest, 24)
    for broken in (bits, most + 1):
        with pytest.raises(FrameError, match=f"scale: bfloat16 bits {broken:#06x}, allowed 0 or 0x0080 to {most:#06x}"):
            codec.decode(struct.pack("<3H", 0, 0x3F80, broken) + rest, 24)


@pytest.mark.parametrize(
    ("kind", "bit"), [*((Sign, bit) for bit in range(1, 8)), *((Int2, bit) for bit in range(2, 8))]
)
def test_refuses_bits_behind_the_last_value(kind, bit):
    payload = bytearray(kind(8).encode(torch.ones(9)))
    payload[-1] |= 1 << bit
    with pytest.raises(FrameError, match="padding: last byte"):
        kind(8).decode(payload, 9)


def test_bits_per_value():
    assert Sign(1024).nbytes(1024 * 1000) * 8 / (1024 * 1000) == 1 + 16 / 1024
    assert Int2(128).nbytes(128 * 1000) * 8 / (128 * 1000) == 2 + 16 / 128
    assert [[kind(8).nbytes(n) for n in (0, 1, 8, 9)] for kind in (Sign, Int2)] == [[0, 3, 3, 6], [0, 3, 4, 7]]
