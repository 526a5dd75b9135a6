import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.codebook import CodeBook
from decentral.codecs.topk import KEPT, NAMES, TopK, parse
from decentral.errors import FrameError
from tests.unit.codecs.vectors import FLOAT_MAX, TINY, bits, normal, vectors

#: The long ones take most of the time: only for some names.
LENGTHS, LONG = (0, 1, 63, 4095, 4096, 4097), (65536, 70000)
COMMON = ("topk0.4-8bit", "topk1.5-2bit", "topk6-4bit")

#: What to read the wire with, written down again from the documentation: kept of a chunk, bits, levels in a table.
SHAPES = {
    f"topk{percent}-{num_bits}bit": (kept, num_bits, num_words)
    for percent, kept in (("0.4", 16), ("0.8", 32), ("1.5", 64), ("3", 128), ("6", 256))
    for num_bits, num_words in ((2, 2), (4, 8), (8, 1))
}


def make(name: str) -> TopK:
    codec = parse(name)
    assert codec is not None
    return codec


def kept_places(x: np.ndarray, kept: int) -> list[int]:
    """Places of the largest magnitudes of each chunk, of equals the first, by sorting."""
    places = []
    for start in range(0, len(x), 4096):
        chunk = np.abs(x[start : start + 4096])
        order = sorted(range(len(chunk)), key=lambda place: (-chunk[place], place))
        places += sorted(start + place for place in order[: math.ceil(len(chunk) * kept / 4096)])
    return places


def read(payload: bytes, numel: int, name: str) -> np.ndarray:
    """The documented layout, bit by bit, without any of the checks."""
    kept, num_bits, num_words = SHAPES[name]
    x, at = np.zeros(numel), 0
    whole = numel // 4096 * 4096
    pieces = [(start, min(start + 65536, whole)) for start in range(0, whole, 65536)]
    if whole < numel:
        pieces.append((whole, numel))
    for start, stop in pieces:
        width = min(4096, stop - start)
        per_chunk = math.ceil(width * kept / 4096)
        count = (stop - start) // width * per_chunk
        sizes = (2 * num_words, math.ceil(12 * count / 8), math.ceil(num_bits * count / 8))
        parts = [int.from_bytes(payload[at + sum(sizes[:i]) : at + sum(sizes[: i + 1])], "little") for i in range(3)]
        at += sum(sizes)
        words = np.array([parts[0] >> 16 * i & 0xFFFF for i in range(num_words)], np.uint16)
        table = torch.from_numpy(words).view(torch.bfloat16).double().tolist()
        for i in range(count):
            place = start + i // per_chunk * 4096 + (parts[1] >> 12 * i & 0xFFF)
            code = parts[2] >> num_bits * i & (2**num_bits - 1)
            if num_bits == 8:
                x[place] = table[0] * (code - 256 * (code > 127))
            else:
                x[place] = table[code % num_words] * (-1 if code >= num_words else 1)
    assert at == len(payload)
    return x


def spread(numel: int, seed: int = 3) -> torch.Tensor:
    """Heavy tails on another scale every 1,500 values, some of them zero."""
    rng = np.random.default_rng(seed)
    scales = np.repeat(10.0 ** rng.integers(-6, 3, numel // 1500 + 1), 1500)[:numel]
    return torch.from_numpy((rng.standard_t(2, numel) * scales * (rng.random(numel) < 0.8)).astype(np.float32))


class AllOnes(CodeBook):
    """Sends 1 for every value, so that only the choice of places is seen."""

    def encode(self, x_K):
        return np.full(2, 0x3F80, np.uint16), np.zeros(len(x_K), np.uint8)


def places_of(x: torch.Tensor, percent: str) -> list[int]:
    """Places that the codec sends, whatever the values there."""
    codec = TopK(percent, AllOnes(2))
    return codec.decode(codec.encode(x), x.numel()).nonzero().flatten().tolist()


def test_names():
    assert sorted(SHAPES) == sorted(NAMES)
    assert [make(name).name for name in NAMES] == list(NAMES)
    assert all(parse(name) is None for name in ("topk", "topk1.5", "topk1.5-3bit", "topk1-2bit", "topk1.5-2bit\n"))
    assert {percent: kept / 40.96 for percent, kept in KEPT.items()} == {
        percent: pytest.approx(float(percent), abs=0.26) for percent in KEPT
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_is_the_largest_of_each_chunk_and_reads_as_documented(name):
    codec = make(name)
    for numel in (*LENGTHS, *(LONG if name in COMMON else ())):
        x = spread(numel)
        payload = codec.encode(x)
        assert len(payload) == codec.nbytes(numel)
        decoded = codec.decode(payload, numel)
        assert decoded.double().tolist() == read(payload, numel, name).tolist()
        places = kept_places(x.numpy(), SHAPES[name][0])
        dropped = np.setdiff1d(np.arange(numel), places)
        assert (decoded.numpy()[dropped] == 0).all()
        assert places_of(x, codec.percent) == places


@given(
    seed=st.integers(0, 2**32 - 1), numel=st.integers(1, 9000), few=st.integers(1, 6), percent=st.sampled_from([*KEPT])
)
def test_of_equals_the_first_are_kept(seed, numel, few, percent):
    x = np.random.default_rng(seed).integers(-few, few + 1, numel).astype(np.float32)
    assert places_of(torch.from_numpy(x), percent) == kept_places(x, KEPT[percent])


@pytest.mark.parametrize("name", COMMON)
@given(x=vectors(), repeats=st.sampled_from((1, 30)))
def test_error_is_within_the_norm_by_at_least_what_the_mean_of_the_kept_explains(name, x, repeats):
    x = x.repeat(repeats)  # up to three chunks: two whole ones and a short one
    codec, values = make(name), x.double().numpy()
    decoded = codec.decode(codec.encode(x), x.numel()).double().numpy()
    explained, whole = 0.0, len(values) // 4096 * 4096
    for piece in (values[:whole], values[whole:]):
        kept = np.abs(piece[kept_places(piece, SHAPES[name][0])])
        kept = kept[kept >= TINY]
        explained += kept.sum() ** 2 / len(kept) if len(kept) else 0.0
    norm, error = np.sum(values**2), np.sum((decoded - values) ** 2)
    assert error <= norm * (1 + 1e-12)
    if not ((np.abs(values) > 0) & (np.abs(values) < TINY)).any():
        assert error <= norm * (1 - 2**-17)
    if "8bit" not in name:
        assert error <= norm - (1 - 2**-16) * explained + norm * 1e-12


@pytest.mark.parametrize("name", COMMON)
def test_a_constant_keeps_the_first_of_each_chunk(name):
    codec, values = make(name), (0.0, -0.0, 2.0**-149, -(2.0**-127), TINY, -1.0, FLOAT_MAX, -FLOAT_MAX)
    for numel, value in itertools.product((1, 63, 4097, 70000), values):
        decoded = codec.decode(codec.encode(torch.full((numel,), value)), numel)
        for chunk in decoded.split(4096):
            num_kept = math.ceil(chunk.numel() * KEPT[codec.percent] / 4096)
            assert not chunk[num_kept:].any()
            assert len(set(bits(chunk[:num_kept]))) <= 1
            assert chunk[:num_kept].tolist() == pytest.approx([value] * num_kept, rel=2**-7, abs=2.0**-127)


@pytest.mark.parametrize("name", COMMON)
def test_a_chunk_with_few_values_gives_them_back_and_zeros_elsewhere(name):
    x = torch.zeros(3 * 4096 + 500)
    x[[5, 4095, 4096, 9000, 12300]] = 3.0
    decoded = make(name).decode(make(name).encode(x), x.numel())
    assert decoded.tolist() == pytest.approx(x.tolist(), rel=2**-7)
    assert torch.equal(decoded != 0, x != 0)


@pytest.mark.parametrize("name", COMMON)
def test_same_bytes_on_any_number_of_threads_with_ties(name):
    x = (normal(5 * 65536 + 4096 + 99, scale=1.0) * 4).round()
    codec, threads, seen = make(name), torch.get_num_threads(), set()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            payload = codec.encode(x)
            seen.add((payload, codec.decode(payload, x.numel()).numpy().tobytes()))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1


def test_bits_per_value():
    numel = 16 * 4096 * 100
    num_kept = 16 * 64 * 100
    assert make("topk1.5-2bit").nbytes(numel) * 8 / num_kept == 14.03125
    assert 4 * numel / make("topk1.5-2bit").nbytes(numel) > 145
    assert make("topk1.5-4bit").nbytes(numel) * 8 / num_kept == 16.125
    assert make("topk1.5-8bit").nbytes(numel) * 8 / num_kept == 20.015625
    assert [make("topk1.5-2bit").nbytes(n) for n in (0, 1, 64, 65, 4096, 4097)] == [0, 7, 7, 8, 116, 123]


SMALL = torch.zeros(48)
SMALL[1], SMALL[5], SMALL[40] = 2.0, -2.0, 6.0


@pytest.mark.parametrize(
    ("name", "table", "codes"),
    [
        ("topk6-2bit", "0040 c040", "18"),
        ("topk6-4bit", "0000 0000 0000 0000 0000 0000 0040 c040", "e6 07"),
        ("topk6-8bit", "423d", "2a d6 7f"),
    ],
)
def test_wire_bytes(name, table, codes):
    assert make(name).encode(SMALL).hex(" ") == bytes.fromhex(f"{table} 01 50 00 28 00 {codes}").hex(" ")


@pytest.mark.parametrize(
    ("offset", "broken", "message"),
    [
        (0, "c040 0040", "levels: they do not ascend"),
        (0, "0100", "scale: bfloat16 bits 0x0001"),
        (2, "807f", "scale: bfloat16 bits 0x7f80"),
        (2, "c0c0", "scale: bfloat16 bits 0xc0c0"),
        (4, "05 50", "positions: they do not ascend within a chunk"),
        (4, "06 50", "positions: they do not ascend within a chunk"),
        (7, "30 00", "position: 48 in a chunk of 48 values"),
        (7, "ff 0f", "position: 4095 in a chunk of 48 values"),
        (8, "10", "positions: the bits after the last are not zero"),
        (9, "58", "codes: the bits after the last are not zero"),
        (9, "98", "codes: the bits after the last are not zero"),
    ],
)
def test_refuses_what_encode_cannot_make(offset, broken, message):
    codec = make("topk6-2bit")
    payload, part = bytearray(codec.encode(SMALL)), bytes.fromhex(broken)
    payload[offset : offset + len(part)] = part
    with pytest.raises(FrameError, match=f"topk6-2bit {message}"):
        codec.decode(payload, 48)


def test_refuses_a_position_in_any_chunk_of_any_piece():
    codec, numel = make("topk0.4-8bit"), 17 * 4096 + 300
    payload = codec.encode(normal(numel))
    piece, single = 2 + 24 * 16 + 16 * 16, 2 + 24 + 16
    starts = [*(2 + 24 * chunk for chunk in range(16)), piece + 2, piece + single + 2]
    for start in starts:
        broken = bytearray(payload)
        broken[start : start + 3] = bytes.fromhex("07 70 00")  # position 7 twice
        with pytest.raises(FrameError, match="do not ascend"):
            codec.decode(broken, numel)


def test_positions_may_ascend_only_within_their_chunk():
    x = torch.zeros(2 * 4096)
    x[4000:4016] = 1.0
    x[4096:4112] = 1.0
    codec = make("topk0.4-2bit")
    assert torch.equal(codec.decode(codec.encode(x), x.numel()), x)
