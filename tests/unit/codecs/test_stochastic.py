"""Rounding by chance: right on average, and a function of the seed."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.codecs.blockwise import E3m0, Int4, Int8
from decentral.codecs.codec import make_codec
from decentral.codecs.flat import CHUNK
from decentral.codecs.noise import Noise
from tests.unit.codecs.vectors import normal, vectors

KINDS = (Int8, Int4, E3m0)
DRAWS = 4096


def gaps(x: torch.Tensor, kind: type) -> tuple[torch.Tensor, torch.Tensor]:
    """For one block: the level below every magnitude, and the gap to the level above."""
    (scale,) = struct.unpack("<f", bytes(2) + kind(len(x)).encode(x)[:2])
    ratio = x.double().abs() / scale
    if kind is not E3m0:
        return ratio.floor() * scale, torch.full((len(x),), scale, dtype=torch.float64)
    below = torch.where(ratio < 1, 0.0, torch.exp2(torch.floor(torch.log2(ratio))))
    return below * scale, below.clamp(min=1) * scale


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_many_draws_is_the_value_within_five_sigma(kind, seed):
    x = normal(64, seed=5)
    x[3], x[4] = 0.0, 1e-9
    codec = kind(64, stochastic=True)
    decoded = codec.decode(codec.encode(x.repeat(DRAWS), seed), 64 * DRAWS).view(DRAWS, 64).double()
    below, gap = gaps(x, kind)
    part = (x.double().abs() - below) / gap
    sigma = gap * (part * (1 - part) / DRAWS).sqrt()
    resolution = gap * 2.0**-15
    off = decoded.mean(dim=0) - x.double()
    assert (off.abs() <= 5 * sigma + resolution).all()
    assert abs(float(off.sum())) <= 5 * float((sigma**2).sum().sqrt()) + float(resolution.sum())
    # Nearest rounding fails the same test: the interval is narrow enough to tell.
    nearest = kind(64).decode(kind(64).encode(x), 64).double() - x.double()
    assert (nearest.abs() > 5 * sigma + resolution).sum() > 32


@pytest.mark.parametrize("kind", KINDS)
@given(x=vectors(), seed=st.integers(0, 2**64 - 1))
def test_every_value_goes_to_one_of_the_two_levels_around_it(kind, x, seed):
    x = x[:128] if x.numel() else torch.zeros(1)
    codec = kind(128, stochastic=True)
    decoded = codec.decode(codec.encode(x, seed), x.numel()).double()
    _, gap = gaps(x, kind)
    assert ((decoded - x.double()).abs() < gap * (1 + 2.0**-14)).all()


@pytest.mark.parametrize("name", ["int8-b128-sr", "int4-b128-sr", "e3m0-b128-sr"])
class TestSeed:
    def test_the_same_seed_gives_the_same_payload_and_another_another(self, name):
        codec, x = make_codec(name), normal(CHUNK + 77)
        payloads = [codec.encode(x, seed) for seed in (0, 1, 2**64 - 1)]
        assert payloads == [codec.encode(x, seed) for seed in (0, 1, 2**64 - 1)]
        assert len(set(payloads)) == 3
        assert codec.encode(x) == payloads[0]

    def test_chunks_and_blocks_do_not_share_their_noise(self, name):
        codec, x = make_codec(name), normal(128).repeat(2 * CHUNK // 128)
        rows = codec.decode(codec.encode(x, 9), x.numel()).view(-1, 128)
        assert len(torch.unique(rows, dim=0)) > 0.99 * len(rows)


@pytest.mark.parametrize(
    "name", ["int8-b128", "int4-b128", "e3m0-b128", "int2-b128", "sign-b128", "fp32", "bf16", "fp16"]
)
def test_what_is_rounded_to_nearest_reads_no_seed(name):
    x = normal(1000)
    assert make_codec(name).encode(x, 1) == make_codec(name).encode(x, 2)


def test_noise_is_odd_multiples_of_two_to_the_minus_16_and_goes_on_where_it_stopped():
    noise = Noise(1 << 16, seed=3)
    first = noise.uniform(1 << 16).clone()
    steps = first.double() * 2**16
    assert (steps % 2 == 1).all()
    assert 0 < float(first.min()) < 2**-10
    assert 1 - 2**-10 < float(first.max()) < 1
    assert abs(float(first.double().mean()) - 0.5) < 5 * (1 / 12 / (1 << 16)) ** 0.5
    assert not torch.equal(noise.uniform(1 << 16), first)
    assert torch.equal(Noise(99, seed=3).uniform(7), first[:7])
