import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.sign import Sign
from decentral.errors import FrameError
from tests.unit.codecs.vectors import FLOAT_MAX, normal, vectors


def reference(x: np.ndarray, block: int) -> np.ndarray:
    """The documented formula in double precision, one value at a time, but for the rounding of the scale."""
    decoded = np.zeros(len(x))
    for start in range(0, len(x), block):
        part = x[start : start + block].astype(np.float64)
        total = 0.0
        for value in part:
            total += abs(value)
        decoded[start : start + block] = np.where(part < 0, -1, 1) * total / len(part)
    return decoded


@given(x=vectors(), block=st.sampled_from((8, 16, 128)))
def test_agrees_with_the_formula_within_the_rounding_of_the_scale(x, block):
    decoded = Sign(block).decode(Sign(block).encode(x), x.numel()).double().numpy()
    expected = reference(x.numpy(), block)
    assert (np.abs(decoded - expected) <= np.maximum(np.abs(expected) * 2.0**-8, 2.0**-126)).all()


@given(x=vectors())
def test_no_other_scale_has_a_smaller_error(x):
    off = (Sign(8).decode(Sign(8).encode(x), x.numel()).double() - x.double()).split(8)
    for part, error in zip(x.double().split(8), off, strict=True):
        if part.numel():
            least = float((part**2).sum()) - float(part.abs().sum()) ** 2 / part.numel()
            # Rounding the scale by 2^-9 adds the square of that.
            assert float((error**2).sum()) <= least + float((part**2).sum()) * 2.0**-15 + 1e-70


def test_wire_layout_is_scales_then_bits():
    x = torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0, -0.0, 2.0, -2.0, -4.0])
    assert Sign(8).encode(x).hex() == "803f" + "8040" + "86" + "01"
    assert Sign(8).decode(Sign(8).encode(x), 9).tolist() == [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -4.0]


def test_scales_of_zeros_of_the_smallest_and_of_the_largest_values():
    x = torch.cat([torch.zeros(8), torch.full((8,), -1e-44), torch.full((8,), 2.0**-126), torch.full((8,), -FLOAT_MAX)])
    payload = Sign(8).encode(x)
    assert struct.unpack("<4H", payload[:8]) == (0, 0, 0x0080, 0x7F7F)
    assert Sign(8).decode(payload, 32).abs().tolist()[:16] == [0.0] * 16


def test_a_mean_is_rounded_to_the_nearest_scale():
    ulp = 2.0**-7
    x = torch.tensor([[1 + 0.49 * ulp] * 8, [1 + 0.51 * ulp] * 8]).flatten()
    assert Sign(8).decode(Sign(8).encode(x), 16).tolist() == [1.0] * 8 + [1 + ulp] * 8


def test_error_on_normal_noise_is_what_the_signs_leave():
    x = normal(1 << 18)
    off = Sign(1024).decode(Sign(1024).encode(x), x.numel()) - x
    assert float(off.norm() / x.norm()) == pytest.approx((1 - 2 / np.pi) ** 0.5, abs=0.003)


@pytest.mark.parametrize("bits", [0x0001, 0x007F, 0x7F80, 0x7FC0, 0x8000, 0xBF80])
def test_refuses_scales_that_encode_cannot_produce(bits):
    Sign(8).decode(struct.pack("<3H", 0, 0x0080, 0x7F7F) + bytes(3), 24)
    with pytest.raises(FrameError, match=f"scale: bfloat16 bits {bits:#06x}, allowed 0 or 0x0080 to 0x7f7f"):
        Sign(8).decode(struct.pack("<3H", 0, 0x3F80, bits) + bytes(3), 24)


@pytest.mark.parametrize("bit", range(1, 8))
def test_refuses_bits_behind_the_last_value(bit):
    payload = bytearray(Sign(8).encode(torch.ones(9)))
    payload[-1] |= 1 << bit
    with pytest.raises(FrameError, match="padding: last byte"):
        Sign(8).decode(payload, 9)


def test_bits_per_value():
    assert Sign(1024).nbytes(1024 * 1000) * 8 / (1024 * 1000) == 1 + 16 / 1024
    assert [Sign(8).nbytes(n) for n in (0, 1, 8, 9)] == [0, 3, 3, 6]
