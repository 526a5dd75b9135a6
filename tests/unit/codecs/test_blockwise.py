import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.blockwise import Int8
from decentral.errors import FrameError
from tests.unit.codecs.vectors import FLOAT_MAX, normal, vectors


def reference(x: np.ndarray, block: int) -> np.ndarray:
    """The documented formula in double precision, one block at a time: scales and codes as plain loops."""
    parts = [np.zeros(0)]
    for start in range(0, len(x), block):
        part = x[start : start + block].astype(np.float64)
        least = max(np.abs(part).max() / 127, 2.0**-126)
        step = 2.0 ** (np.floor(np.log2(least)) - 7)
        scale = min(np.ceil(np.float32(least) / step) * step, 2.0**121 * 129 / 128)
        parts.append(np.rint(part / scale) * scale)
    return np.concatenate(parts)


@given(x=vectors(), block=st.sampled_from((8, 13, 128)))
def test_error_is_within_the_bound_of_each_block(x, block):
    codec = Int8(block)
    error = (codec.decode(codec.encode(x), x.numel()).double() - x.double()).abs()
    for part, off in zip(x.double().split(block), error.split(block), strict=True):
        if part.numel():
            assert float(off.max()) <= max(float(part.abs().max()) / 252, 2.0**-127)


@given(seed=st.integers(0, 2**32 - 1), numel=st.integers(1, 400), exponent=st.integers(-120, 120))
def test_agrees_with_the_formula_in_double_precision(seed, numel, exponent):
    x = np.ldexp(np.random.default_rng(seed).normal(size=numel), exponent).astype(np.float32)
    decoded = Int8(64).decode(Int8(64).encode(torch.from_numpy(x)), numel).double().numpy()
    off = np.abs(decoded - reference(x, 64))
    # A value within 2^-16 of a tie may go to either side.
    assert np.count_nonzero(off) <= 1 + numel // 100


@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 9), cut=st.integers(0, 4))
def test_codes_times_their_scale_survive_to_the_bit(seed, blocks, cut):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (blocks, 8)).astype(np.float32)
    codes[:, 3] = 127
    scales = np.ldexp(rng.integers(128, 256, blocks), rng.integers(-133, 113, blocks)).astype(np.float32)
    x = torch.from_numpy(codes * scales[:, None]).flatten()[: 8 * blocks - cut]
    assert Int8(8).decode(Int8(8).encode(x), x.numel()).tolist() == x.tolist()


def test_one_block_does_not_disturb_another():
    x = torch.cat([normal(128, scale=1e-30), torch.zeros(128), normal(128, scale=1e30), normal(5)])
    decoded = Int8(128).decode(Int8(128).encode(x), x.numel())
    for part, out in zip(x.split(128), decoded.split(128), strict=True):
        assert float((out - part).abs().max()) <= float(part.abs().max()) / 252


def test_largest_value_of_a_block_has_the_largest_code():
    payload = Int8(128).encode(normal(128 * 50))
    codes = np.frombuffer(payload, np.int8, offset=2 * 50).reshape(50, 128)
    assert (np.abs(codes.astype(int)).max(axis=1) >= 126).all()


def test_wire_layout_is_scales_then_codes():
    x = torch.zeros(10)
    x[0], x[1], x[8] = 127.0, -63.6, 254.0
    assert Int8(8).encode(x) == bytes.fromhex("803f0040 7fc0000000000000 7f00".replace(" ", ""))


def test_the_largest_floats_saturate_to_finite_values():
    x = torch.tensor([FLOAT_MAX, -FLOAT_MAX, 0.0, FLOAT_MAX / 2])
    decoded = Int8(8).decode(Int8(8).encode(x), 4)
    assert torch.isfinite(decoded).all()
    assert torch.allclose(decoded, x, rtol=0, atol=FLOAT_MAX / 252)


@pytest.mark.parametrize("scale", ["0000", "7f00", "027c", "807f", "c07f", "803f|80", "80bf"])
def test_refuses_scales_and_codes_that_encode_cannot_produce(scale):
    broken, _, code = scale.partition("|")
    good = bytes.fromhex("803f")
    payload = good * 3 + bytes.fromhex(broken) + bytes(24) + bytes.fromhex(code or "00") + bytes(7)
    with pytest.raises(FrameError, match="code: -128" if code else r"scale: bfloat16 bits 0x[0-9a-f]{4}"):
        Int8(8).decode(payload, 32)


def test_bits_per_value():
    assert Int8(128).nbytes(128 * 1000) * 8 / (128 * 1000) == 8.125
    assert [Int8(8).nbytes(n) for n in (0, 1, 8, 9)] == [0, 3, 10, 13]
