import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.blockwise import E3m0, Int4, Int8
from decentral.codecs.codec import make_codec
from decentral.errors import FrameError
from tests.unit.codecs.vectors import FLOAT_MAX, normal, vectors

KINDS = (Int8, Int4, E3m0)
POWERS = np.array([0, 1, 2, 4, 8, 16, 32, 64])


def scale_of(part: np.ndarray, top: int) -> float:
    """The documented scale of a block in double precision."""
    least = max(np.abs(part).max() / top, 2.0**-126)
    step = 2.0 ** (np.floor(np.log2(least)) - 7)
    highest = {127: 129 / 128 * 2.0**121, 7: 146 / 128 * 2.0**125, 64: 255 / 128 * 2.0**121}[top]
    return float(min(np.ceil(np.float32(least) / step) * step, highest))


def code_of(ratio: float, kind: type) -> float:
    """The nearest code, by looking at all of them."""
    levels = POWERS if kind is E3m0 else np.arange(kind.top + 1)
    return float(np.copysign(levels[np.abs(levels - abs(ratio)).argmin()], ratio))


def reference(x: np.ndarray, block: int, kind: type) -> np.ndarray:
    """The documented formula in double precision, one value at a time."""
    decoded = np.zeros(len(x))
    for start in range(0, len(x), block):
        part = x[start : start + block].astype(np.float64)
        scale = scale_of(part, kind.top)
        for i, value in enumerate(part):
            decoded[start + i] = code_of(value / scale, kind) * scale
    return decoded


def bound(part: torch.Tensor, kind: type) -> torch.Tensor:
    """The documented bound on the error of every value of a block."""
    largest = float(part.abs().max())
    flat = max(largest / {Int8: 252, Int4: 13.8, E3m0: 126.9}[kind], 2.0**-127)
    relative = part.abs() / 2.9999 if kind is E3m0 else torch.zeros(len(part))
    return relative.clamp(min=flat)


@pytest.mark.parametrize("kind", KINDS)
@given(x=vectors(), block=st.sampled_from((8, 14, 128)))
def test_error_is_within_the_bound_of_each_block(kind, x, block):
    codec = kind(block)
    error = (codec.decode(codec.encode(x), x.numel()).double() - x.double()).abs()
    for part, off in zip(x.double().split(block), error.split(block), strict=True):
        if part.numel():
            assert (off <= bound(part, kind)).all()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), numel=st.integers(1, 200), exponent=st.integers(-120, 120))
def test_agrees_with_the_formula_in_double_precision(kind, seed, numel, exponent):
    x = np.ldexp(np.random.default_rng(seed).normal(size=numel), exponent).astype(np.float32)
    decoded = kind(64).decode(kind(64).encode(torch.from_numpy(x)), numel).double().numpy()
    off = np.abs(decoded - reference(x, 64, kind))
    # A value within 2^-16 of a tie may go to either side.
    assert np.count_nonzero(off) <= 1 + numel // 100


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 9), cut=st.integers(0, 4))
def test_codes_times_their_scale_survive_to_the_bit(kind, stochastic, seed, blocks, cut):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-kind.top, kind.top + 1, (blocks, 8)).astype(np.float32)
    if kind is E3m0:
        codes = rng.choice([*POWERS, *-POWERS], (blocks, 8)).astype(np.float32)
    codes[:, 3] = kind.top
    scales = np.ldexp(rng.integers(128, 256, blocks), rng.integers(-133, 113, blocks)).astype(np.float32)
    x = torch.from_numpy(codes * scales[:, None]).flatten()[: 8 * blocks - cut]
    codec = kind(8, stochastic)
    assert codec.decode(codec.encode(x, seed), x.numel()).tolist() == x.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_one_block_does_not_disturb_another(kind):
    x = torch.cat([normal(128, scale=1e-30), torch.zeros(128), normal(128, scale=1e30), normal(5)])
    decoded = kind(128).decode(kind(128).encode(x), x.numel())
    for part, out in zip(x.double().split(128), decoded.split(128), strict=True):
        assert ((out - part).abs() <= bound(part, kind)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_largest_value_of_a_block_has_the_largest_code(kind):
    payload, x = kind(128).encode(normal(128 * 50)), normal(128 * 50)
    scales = (np.frombuffer(payload, "<u2", 50).astype(np.uint32) << 16).view(np.float32)
    largest = kind(128).decode(payload, x.numel()).view(50, 128).abs().amax(dim=1).numpy() / scales
    assert (largest >= (126 if kind is Int8 else kind.top)).all()


def test_nearest_e3m0_is_hardly_biased_where_rounding_down_would_lose_a_quarter():
    x = normal(1 << 20)
    decoded = E3m0(128).decode(E3m0(128).encode(x), x.numel())
    lost = 1 - float(decoded.abs().double().sum() / x.abs().double().sum())
    assert 0.03 < lost < 0.04
    scales = x.view(-1, 128).abs().amax(dim=1, keepdim=True) / 64
    ratio = x.view(-1, 128).abs() / scales
    floored = torch.exp2(torch.floor(torch.log2(ratio))) * (ratio >= 1) * scales
    assert 1 - float(floored.double().sum() / x.abs().double().sum()) > 0.25


WIRE = {
    "int8-b8": ([127.0, -63.6, 0, 0, 0, 0, 0, 0, 254.0, 0], "803f 0040  7fc0000000000000 7f00"),
    # 7, -3 | 1, 0 | 0, -7 | 2, 0 || 14, 0 | -2
    "int4-b8": ([7.0, -3.4, 1.0, 0.4, -0.4, -7.0, 1.5, 0.0, 14.0, 0.0, -2.0], "803f 0040  d7019002 070f"),
    # 64, -2 | 1, 0 | 0, -32 | 8, 0 || 128, 0 | -2
    "e3m0-b8": ([64.0, -1.5, 0.5, 0.49, -0.4, -47.9, 6.0, 0.0, 128.0, 0.0, -2.0], "803f 0040  a701e004 0709"),
}


@pytest.mark.parametrize("name", WIRE)
def test_wire_layout_is_scales_then_codes(name):
    values, payload = WIRE[name]
    assert make_codec(name).encode(torch.tensor(values)).hex() == payload.replace(" ", "")


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_floats_saturate_to_finite_values(kind, stochastic):
    x = torch.tensor([FLOAT_MAX, -FLOAT_MAX, 0.0, FLOAT_MAX / 2] * 50)
    codec = kind(8, stochastic)
    decoded = codec.decode(codec.encode(x), 200)
    assert torch.isfinite(decoded).all()
    assert torch.allclose(decoded[:3], x[:3], rtol=2**-7, atol=0)
    assert torch.allclose(decoded, x, rtol=0, atol=FLOAT_MAX / (kind.top - 0.5))


@pytest.mark.parametrize("scale", [0x0000, 0x007F, 0x7F80, 0x7FC0, 0x80BF, 0xBF80, "most"])
@pytest.mark.parametrize(("name", "most"), [("int8-b8", 0x7C01), ("int4-b8", 0x7E12), ("e3m0-b8", 0x7C7F)])
def test_refuses_scales_that_encode_cannot_produce(name, most, scale):
    codec, broken = make_codec(name), most + 1 if scale == "most" else scale
    rest = bytes(codec.nbytes(32) - 8)
    codec.decode(struct.pack("<4H", 0x3F80, 0x0080, most, 0x3F80) + rest, 32)
    with pytest.raises(FrameError, match=rf"scale: bfloat16 bits {broken:#06x}, allowed 0x0080 to {most:#06x}"):
        codec.decode(struct.pack("<4H", 0x3F80, 0x3F80, broken, 0x3F80) + rest, 32)


@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        ("int8-b8", "00 80 00 00 00 00", "code: -128"),
        ("int4-b8", "00 08 00", "code: 8"),
        ("int4-b8-sr", "00 00 80", "code: 8"),
        ("e3m0-b8", "80 00 00", "code: 8"),
        ("e3m0-b8-sr", "00 f8 00", "code: 8"),
    ],
)
def test_refuses_codes_that_encode_cannot_produce(name, codes, message):
    codec, scale = make_codec(name), struct.pack("<H", 0x3F80)
    raw = bytes.fromhex(codes)
    codec.decode(scale + bytes(len(raw)), 6)
    with pytest.raises(FrameError, match=f"{name} {message}"):
        codec.decode(scale + raw, 6)


@pytest.mark.parametrize("name", ["int4-b8", "e3m0-b8"])
def test_refuses_a_code_behind_the_last_value(name):
    payload = bytearray(make_codec(name).encode(normal(9)))
    payload[-1] |= 0x10
    with pytest.raises(FrameError, match=r"padding: last byte 0x1[0-9a-f], only its lowest 4 bits"):
        make_codec(name).decode(payload, 9)


def test_bits_per_value():
    assert Int8(128).nbytes(128 * 1000) * 8 / (128 * 1000) == 8.125
    assert Int4(128).nbytes(128 * 1000) * 8 / (128 * 1000) == E3m0(128).nbytes(128 * 1000) * 8 / (128 * 1000) == 4.125
    assert [Int8(8).nbytes(n) for n in (0, 1, 8, 9)] == [0, 3, 10, 13]
    assert [Int4(8).nbytes(n) for n in (0, 1, 2, 7, 8, 9)] == [0, 3, 3, 6, 6, 9]
