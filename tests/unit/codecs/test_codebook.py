import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.codebook import CodeBook, Linear
from decentral.errors import FrameError
from tests.unit.codecs.vectors import FLOAT_MAX, TINY, vectors

QUANTISERS = (CodeBook(2), CodeBook(4), Linear())


def levels(table: np.ndarray) -> np.ndarray:
    return torch.from_numpy(table.astype(np.uint16)).view(torch.bfloat16).double().numpy()


def best_squared_error(magnitudes: np.ndarray, num_levels: int) -> float:
    """Least sum of squares that any ``num_levels`` levels leave, by dynamic programming over all cuts."""
    values = np.sort(magnitudes.astype(np.float64))
    least = [0.0, *[float("inf")] * len(values)]
    for _ in range(num_levels):
        before, least = least, [0.0]
        for stop in range(1, len(values) + 1):
            spread = [values[start:stop].var() * (stop - start) for start in range(stop)]
            least.append(min(old + new for old, new in zip(before, spread, strict=False)))
    return least[-1]


DRAWS = {
    "normal tail": lambda rng, n: 2.5 + rng.exponential(0.3, n),
    "Student's t with two degrees": lambda rng, n: np.abs(rng.standard_t(2, n)) + 0.1,
    "scales over three decades": lambda rng, n: np.exp(rng.normal(size=n) * 2),
    "two regions": lambda rng, n: np.where(rng.random(n) < 0.5, 1e-5, 1.0) * (3 + rng.random(n)),
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize(("bits", "factor"), [(2, 1.001), (4, 1.3)])
def test_levels_are_close_to_the_best_there_are(kind, bits, factor):
    magnitudes = DRAWS[kind](np.random.default_rng(1), 60).astype(np.float32)
    book = CodeBook(bits)
    off = book.decode("x", *book.encode(magnitudes)).astype(np.float64) - magnitudes
    rounding = np.sum((magnitudes.astype(np.float64) * 2**-9) ** 2)
    assert np.sum(off**2) <= factor * best_squared_error(magnitudes, 2 ** (bits - 1)) + 2 * rounding


@given(x=vectors(), bits=st.sampled_from((2, 3, 4)))
def test_no_level_of_the_book_is_nearer_and_the_sign_is_kept(x, bits):
    values = np.append(x.numpy(), np.float32(0.7))
    table, codes = CodeBook(bits).encode(values)
    decoded = CodeBook(bits).decode("x", table, codes)
    distances = np.abs(np.abs(values.astype(np.float64))[:, None] - levels(table))
    assert (np.abs(values.astype(np.float64) - decoded) <= distances.min(axis=1) * (1 + 1e-12)).all()
    assert (decoded * np.sign(values) >= 0).all()
    assert (decoded[values == 0] == 0).all()


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda quantiser: f"{quantiser.bits}bit")
@given(x=vectors())
def test_the_error_never_exceeds_the_norm(quantiser, x):
    values = np.append(x.numpy(), np.float32(0.0))
    decoded = quantiser.decode("x", *quantiser.encode(values)).astype(np.float64)
    assert np.linalg.norm(decoded - values) <= np.linalg.norm(values.astype(np.float64)) * (1 + 1e-12)


@given(x=vectors())
def test_eight_bits_are_off_by_half_a_scale_at_most_and_never_by_more_than_the_value(x):
    values = np.append(x.numpy(), np.float32(1.0))
    table, codes = Linear().encode(values)
    off = np.abs(Linear().decode("x", table, codes).astype(np.float64) - values)
    largest = float(np.abs(values).max())
    assert levels(table)[0] <= max(largest / 127 * (1 + 2**-7), TINY)
    # Only the very largest floats lie above 127 scales, by less than half of one.
    assert (off <= levels(table)[0] / 2 * (1 + 1e-12)).all()
    assert (off <= np.abs(values.astype(np.float64))).all()


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda quantiser: f"{quantiser.bits}bit")
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0, TINY, -TINY, 2.0**-127, 2.0**-149, FLOAT_MAX, -FLOAT_MAX])
def test_a_constant_is_one_value(quantiser, value):
    decoded = quantiser.decode("x", *quantiser.encode(np.full(37, value, np.float32)))
    assert len(set(decoded.view(np.uint32).tolist())) == 1
    assert float(decoded[0]) == pytest.approx(value, rel=2**-7, abs=2.0**-127)


def test_zeros_take_one_level_and_the_rest_serve_the_others():
    values = np.array([0, 4, 0, -4, 2.0**-140, 4], np.float32)
    table, codes = CodeBook(2).encode(values)
    assert levels(table).tolist() == [0, 4]
    assert CodeBook(2).decode("x", table, codes).tolist() == [0, 4, 0, -4, 0, 4]
    many = np.array([0, *range(1, 8)], np.float32)
    assert CodeBook(4).decode("x", *CodeBook(4).encode(many)).tolist() == many.tolist()


@pytest.mark.parametrize(
    ("quantiser", "table", "code", "message"),
    [
        (CodeBook(2), [0x3F80, 0x3F00], 0, "x levels: they do not ascend"),
        (CodeBook(2), [0x3F80, 0x0000], 0, "x levels: they do not ascend"),
        (CodeBook(2), [0x0001, 0x3F80], 0, "x scale: bfloat16 bits 0x0001"),
        (CodeBook(2), [0x3F80, 0x7F80], 0, "x scale: bfloat16 bits 0x7f80"),
        (CodeBook(2), [0x3F80, 0xBF80], 0, "x scale: bfloat16 bits 0xbf80"),
        (CodeBook(4), [0] * 7 + [0xFFFF], 0, "x scale: bfloat16 bits 0xffff"),
        (Linear(), [0x0000], 0, "x scale: bfloat16 bits 0x0000"),
        (Linear(), [0x007F], 0, "x scale: bfloat16 bits 0x007f"),
        (Linear(), [0x7C02], 0, "x scale: bfloat16 bits 0x7c02"),
        (Linear(), [0x3F80], 0x80, "x code: -128"),
    ],
)
def test_refuses_tables_and_codes_that_encode_cannot_make(quantiser, table, code, message):
    codes = np.array([0, code, 0], np.uint8)
    with pytest.raises(FrameError, match=message):
        quantiser.decode("x", np.array(table, "<u2"), codes)


def test_accepts_the_ends_of_the_ranges():
    book = CodeBook(2).decode("x", np.array([0x0080, 0x7F7F], "<u2"), np.array([0, 3], np.uint8))
    assert book.tolist() == [TINY, -torch.finfo(torch.bfloat16).max]
    scaled = Linear().decode("x", np.array([0x7C01], "<u2"), np.array([127, 129], np.uint8))
    assert np.isfinite(scaled).all()
    assert scaled[0] == -scaled[1] > 0.99 * FLOAT_MAX
