"""What every codec promises, whatever its family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.codecs.codec import codec_names, make_codec
from decentral.codecs.flat import CHUNK
from decentral.errors import ConfigError, FrameError
from tests.unit.codecs.vectors import ALL_CODECS, FLOAT_MAX, ROUNDED, TINY, bits, normal, vectors

LENGTHS = (0, 1, 7, 8, 9, 127, 128, 129, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77)
#: Examples for each codec; there are many.
NUM_EXAMPLES = 25
#: Norm of the error over norm of the vector, at most, by the first part of the name.
ROUGHNESS = {"int2": 0.5, "int4": 0.25, "e3m0": 0.6, "sign": 1.0, "topk": 1.0}


@pytest.mark.parametrize("name", ALL_CODECS)
class TestEveryCodec:
    def test_size_is_exact_and_length_survives(self, name):
        codec, noise = make_codec(name), normal(LENGTHS[-1])
        for numel in LENGTHS:
            x = noise[:numel]
            payload = codec.encode(x)
            assert type(payload) is bytes
            assert len(payload) == codec.nbytes(numel)
            decoded = codec.decode(payload, numel)
            assert decoded.shape == (numel,)
            assert decoded.dtype == torch.float32
            assert float((decoded - x).norm()) <= ROUGHNESS.get(name[:4], 0.02) * float(x.norm())

    @settings(max_examples=NUM_EXAMPLES)
    @given(x=vectors())
    def test_leaves_its_input_alone_and_decodes_to_finite_values_of_its_signs(self, name, x):
        codec, before = make_codec(name), x.clone()
        decoded = codec.decode(codec.encode(x), x.numel())
        assert bits(x) == bits(before)
        assert torch.isfinite(decoded).all()
        assert (decoded * x.sign() >= 0).all()
        if not name.startswith(("sign", "int2")):
            assert (decoded[x == 0] == 0).all()
        if name in ROUNDED and not name.startswith(("int8", "int2")):  # whose scale follows values that may move
            assert (codec.decode(codec.encode(decoded), x.numel()) == decoded).all()

    def test_refuses_to_encode_what_is_not_finite(self, name):
        codec, x = make_codec(name), normal(CHUNK + 5)
        for bad, position in (("nan", 0), ("inf", 5), ("-inf", 130), ("nan", CHUNK + 3), ("inf", CHUNK + 4)):
            kept, x[position] = float(x[position]), float(bad)
            with pytest.raises(ValueError, match="NaN or infinite"):
                codec.encode(x)
            x[position] = kept

    def test_refuses_what_is_no_flat_float32_vector(self, name):
        for x in (torch.zeros(2, 2), torch.zeros(3, dtype=torch.float64), torch.tensor(1.0)):
            with pytest.raises(ValueError, match="flat float32"):
                make_codec(name).encode(x)

    def test_takes_a_strided_vector(self, name):
        codec, x = make_codec(name), normal(600)
        assert codec.encode(x[::2]) == codec.encode(x[::2].contiguous())

    def test_refuses_a_payload_of_another_length(self, name):
        codec = make_codec(name)
        payload = codec.encode(normal(50))
        for wrong in (payload[:-1], payload + bytes(1), payload + bytes(1000)):
            with pytest.raises(FrameError, match="payload length"):
                codec.decode(wrong, 50)

    def test_decoding_allocates_nothing_before_the_length_is_checked(self, name):
        with pytest.raises(FrameError, match="payload length"):
            make_codec(name).decode(b"1234", 2**60)

    @settings(max_examples=NUM_EXAMPLES)
    @given(data=st.data())
    def test_any_bytes_decode_to_finite_values_or_are_refused(self, name, data):
        codec, numel = make_codec(name), data.draw(st.integers(1, 40))
        size = codec.nbytes(numel)
        payload = data.draw(st.binary(min_size=size, max_size=size))
        try:
            decoded = codec.decode(payload, numel)
        except FrameError:
            return
        assert torch.isfinite(decoded).all()
        assert (decoded[decoded != 0].abs() >= TINY).all() or name in ("fp32", "bf16")

    def test_answer_is_writable_and_independent_of_the_payload(self, name):
        codec = make_codec(name)
        payload = bytearray(codec.encode(normal(300)))
        decoded = codec.decode(memoryview(payload), 300)
        before = decoded.clone()
        payload[:] = bytes(len(payload))
        assert bits(decoded) == bits(before)
        decoded.add_(1.0)

    def test_same_bits_on_any_number_of_threads(self, name):
        codec, x = make_codec(name), normal(3 * CHUNK + 41)
        threads, results = torch.get_num_threads(), []
        try:
            for num_threads in (1, 2, 3):
                torch.set_num_threads(num_threads)
                payload = codec.encode(x)
                results.append((payload, codec.decode(payload, x.numel()).numpy().tobytes()))
        finally:
            torch.set_num_threads(threads)
        assert results[0] == results[1] == results[2]

    def test_decodes_to_the_same_bits_where_subnormals_are_flushed(self, name):
        codec = make_codec(name)
        payloads = [codec.encode(normal(500, scale=scale)) for scale in (1e-44, 1e-38, 1e-36, 1e-30, 1.0)]
        usual = [bits(codec.decode(payload, 500)) for payload in payloads]
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormals")
        try:
            flushed = [bits(codec.decode(payload, 500)) for payload in payloads]
        finally:
            torch.set_flush_denormal(False)
        assert flushed == usual


@pytest.mark.parametrize("name", ROUNDED)
def test_constant_vectors_stay_constant(name):
    codec = make_codec(name)
    for value in (0.0, 1.0, -3.0, FLOAT_MAX, -FLOAT_MAX, TINY, -(2.0**-149), 1e-20, 1e20):
        decoded = codec.decode(codec.encode(torch.full((300,), value)), 300)
        assert len(set(bits(decoded))) == 1
        assert float(decoded[0]) == pytest.approx(value, rel=2**-7, abs=2.0**-126)


def test_only_fp32_is_lossless():
    assert [name for name in ALL_CODECS if make_codec(name).lossless] == ["fp32"]


def test_names_are_made_and_name_themselves():
    for name in (*codec_names(), *ALL_CODECS):
        assert make_codec(name).name == name


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("fp23", "fp32"),
        ("FP32", "fp32"),
        ("bfloat16", "bf16"),
        ("int8", "int8-b64"),
        ("int8-b127k", "int8-b128"),
        ("int8-b7", "int8-b"),
        ("int8-b0128", "int8-b128"),
        ("int8-b65537", "int8-b"),
        ("int4-b9", "int4-b"),
        ("int4-b129", "int4-b128"),
        ("e3m0", "e3m0-b128"),
        ("int4-b128-rs", "int4-b128-sr"),
        ("int2-b130", "int2-b128"),
        ("sign-b1020", "sign-b1024"),
        ("sign-b1024-sr", "sign-b1024"),
        ("topk1.6-2bit", "topk1.5-2bit"),
        ("topk3", "topk3-"),
        ("", ""),
        ("fp32\n", "fp32"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(wrong, nearest):
    with pytest.raises(ConfigError) as caught:
        make_codec(wrong)
    assert repr(wrong) in caught.value.message
    assert caught.value.hint.startswith(f"did you mean {nearest}")
    assert "8 to 65536 values: even for int4 and e3m0, a multiple of 4 for int2, of 8 for sign" in caught.value.hint
