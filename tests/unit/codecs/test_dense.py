import struct

import pytest
import torch
from hypothesis import given

from decentral.codecs.dense import Bf16, Fp16, Fp32
from decentral.errors import FrameError
from tests.unit.codecs.vectors import FLOAT_MAX, bits, normal, vectors


@given(x=vectors())
def test_fp32_loses_nothing(x):
    codec = Fp32()
    assert bits(codec.decode(codec.encode(x), x.numel())) == bits(x)


@given(x=vectors())
def test_bf16_is_within_its_bound(x):
    codec = Bf16()
    error = (codec.decode(codec.encode(x), x.numel()).double() - x.double()).abs()
    assert (error <= (2.0**-8 * x.double().abs()).clamp(min=2.0**-134)).all()


def test_bf16_rounds_ties_to_even_and_saturates():
    ulp = 2.0**-7
    x = torch.tensor([1 + ulp / 2, 1 + 1.5 * ulp, 1 + ulp / 2 + 2**-20, FLOAT_MAX, -FLOAT_MAX])
    top = torch.finfo(torch.bfloat16).max
    assert Bf16().decode(Bf16().encode(x), 5).tolist() == [1.0, 1 + 2 * ulp, 1 + ulp, top, -top]


@given(x=vectors())
def test_fp16_is_within_its_bound(x):
    codec = Fp16()
    payload = codec.encode(x)
    (k,) = struct.unpack_from("<h", payload)
    error = (codec.decode(payload, x.numel()).double() - x.double()).abs()
    assert (error <= (2.0**-11 * x.double().abs()).clamp(min=2.0 ** (-25 - k))).all()


def test_fp16_keeps_values_that_plain_halves_would_lose():
    x = torch.tensor([1e-9, -3e-10, 70000.0 * 2**-60])
    assert torch.allclose(Fp16().decode(Fp16().encode(x), 3), x, rtol=2**-11, atol=0)
    x = torch.tensor([1e9, -70000.0, 1e30])
    assert torch.allclose(Fp16().decode(Fp16().encode(x), 3), x, rtol=2**-11, atol=1e22)


@pytest.mark.parametrize("exponent", [-114, 103, 32767, -32768])
def test_fp16_refuses_a_scale_out_of_range(exponent):
    payload = bytearray(Fp16().encode(normal(3)))
    struct.pack_into("<h", payload, 0, exponent)
    with pytest.raises(FrameError, match=f"exponent {exponent}"):
        Fp16().decode(payload, 3)


@pytest.mark.parametrize(
    ("codec", "code"),
    [
        (Fp32(), struct.pack("<f", float("nan"))),
        (Fp32(), struct.pack("<f", float("-inf"))),
        (Bf16(), struct.pack("<H", 0xFF80)),
        (Bf16(), struct.pack("<H", 0x7F81)),
        (Fp16(), struct.pack("<H", 0x7C00)),
        (Fp16(), struct.pack("<H", 0xFE00)),
        (Fp16(), struct.pack("<H", 0x7800)),
    ],
)
def test_refuses_codes_that_are_not_finite(codec, code):
    payload = codec.encode(normal(200_001))[: -len(code)] + code
    with pytest.raises(FrameError, match=codec.name):
        codec.decode(payload, 200_001)
