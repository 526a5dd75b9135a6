import struct
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.codecs.codec import make_codec
from decentral.codecs.dense import Fp32
from decentral.codecs.frame import frame_overhead, framed_nbytes, pack, unpack
from decentral.errors import FrameError
from tests.unit.codecs.vectors import ALL_CODECS, bits, normal, vectors

NUMEL = 19


@pytest.mark.parametrize("name", ALL_CODECS)
@settings(max_examples=20)
@given(x=vectors())
def test_round_trip_and_exact_size(name, x):
    codec = make_codec(name)
    data = pack(codec, x)
    assert len(data) == framed_nbytes(codec, x.numel()) == frame_overhead(name) + codec.nbytes(x.numel())
    expected = bits(codec.decode(codec.encode(x), x.numel()))
    assert bits(unpack(data, codec, x.numel())) == expected
    assert bits(unpack(memoryview(data), codec, x.numel())) == expected


def test_layout_is_the_documented_one():
    x = torch.tensor([1.0, -2.0])
    payload = struct.pack("<ff", 1.0, -2.0)
    header = b"DCVF" + b"\x01\x00" + b"fp32".ljust(22, b"\0") + struct.pack("<QI", 2, zlib.crc32(payload))
    assert pack(Fp32(), x) == header + payload
    assert frame_overhead("fp32") == len(header) == 40


@pytest.mark.parametrize("name", ALL_CODECS)
def test_every_flipped_bit_and_byte_is_detected(name):
    codec = make_codec(name)
    data = pack(codec, normal(NUMEL))
    for position in range(len(data)):
        for mask in (1, 128, 255):
            broken = bytearray(data)
            broken[position] ^= mask
            with pytest.raises(FrameError):
                unpack(broken, codec, NUMEL)


@pytest.mark.parametrize("name", ALL_CODECS)
def test_every_truncation_and_any_extension_is_detected(name):
    codec = make_codec(name)
    data = pack(codec, normal(NUMEL))
    for length in range(len(data)):
        with pytest.raises(FrameError, match="length"):
            unpack(data[:length], codec, NUMEL)
    with pytest.raises(FrameError, match="payload length"):
        unpack(data + b"\0", codec, NUMEL)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"HTTP", "frame magic: b'HTTP'"),
        (4, b"\x02\x00", "frame version: 2"),
        (6, b"int8-b128", "frame codec: b'int8-b128', agreed on 'fp32'"),
        (28, struct.pack("<Q", 2**63), f"frame numel: {2**63}, agreed on {NUMEL}"),
        (36, bytes(4), "frame checksum"),
        (40, bytes(4), "frame checksum"),
    ],
)
def test_the_message_names_the_broken_rule_and_the_value_seen(offset, value, message):
    data = bytearray(pack(Fp32(), normal(NUMEL)))
    data[offset : offset + len(value)] = value
    with pytest.raises(FrameError) as caught:
        unpack(data, Fp32(), NUMEL)
    assert message in str(caught.value)


def test_values_that_are_not_finite_are_refused_behind_a_right_checksum():
    data = bytearray(pack(Fp32(), normal(NUMEL)))
    data[-4:] = struct.pack("<f", float("inf"))
    struct.pack_into("<I", data, 36, zlib.crc32(data[40:]))
    with pytest.raises(FrameError, match="NaN or infinite"):
        unpack(data, Fp32(), NUMEL)


def test_another_number_of_values_is_refused_on_both_sides():
    data = pack(Fp32(), normal(NUMEL))
    with pytest.raises(FrameError, match="frame numel"):
        unpack(data, Fp32(), NUMEL + 1)
    with pytest.raises(FrameError, match="frame codec"):
        unpack(data, make_codec("bf16"), NUMEL)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(FrameError):
        unpack(data, Fp32(), NUMEL)
    with pytest.raises(FrameError):
        unpack(b"DCVF\x01\x00" + data, Fp32(), NUMEL)


@given(data=st.data())
def test_a_mutated_frame_is_refused_or_decodes_to_finite_values(data):
    codec = make_codec(data.draw(st.sampled_from(ALL_CODECS)))
    frame = bytearray(pack(codec, normal(NUMEL)))
    size = len(frame) - 40
    frame[40:] = data.draw(st.binary(min_size=size, max_size=size))
    struct.pack_into("<I", frame, 36, zlib.crc32(frame[40:]))
    try:
        decoded = unpack(frame, codec, NUMEL)
    except FrameError:
        return
    assert torch.isfinite(decoded).all()


@pytest.mark.parametrize("name", ALL_CODECS)
def test_a_lie_about_the_number_of_values_allocates_nothing(name):
    codec, lie = make_codec(name), 2**40
    payload = codec.encode(normal(NUMEL))
    header = struct.pack("<4sH22sQI", b"DCVF", 1, name.encode(), lie, zlib.crc32(payload))
    tracemalloc.start()
    try:
        for numel in (NUMEL, lie):
            with pytest.raises(FrameError, match="numel" if numel == NUMEL else "payload length"):
                unpack(header + payload, codec, numel)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024


def test_nan_is_not_packed():
    with pytest.raises(ValueError, match="NaN"):
        pack(Fp32(), torch.tensor([float("nan")]))


def test_a_codec_name_must_fit_the_header():
    with pytest.raises(ValueError, match="longer than the 22 bytes"):
        frame_overhead("x" * 23)
