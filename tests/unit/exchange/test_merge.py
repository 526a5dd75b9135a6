import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.exchange.merge import (
    MAX_WEIGHT,
    WeightBy,
    radial_directional,
    spread_over_senders,
    weight_of,
    weighted_mean,
)


def rda(shares: list[float], values: list[Tensor]) -> Tensor:
    merged_T = weighted_mean(shares, values)
    radial_directional(merged_T, shares, values)
    return merged_T


def test_orthogonal_members_keep_their_norm() -> None:
    """Section 29, item 5: the weighted mean has the norm sqrt(2) and not 2."""
    values = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])]
    assert float(weighted_mean([0.5, 0.5], values).norm()) == pytest.approx(math.sqrt(2))
    assert rda([0.5, 0.5], values).tolist() == pytest.approx([math.sqrt(2), math.sqrt(2)])


def test_norms_and_directions_are_weighed_apart() -> None:
    merged_T = rda([0.75, 0.25], [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 100.0])])
    assert merged_T.tolist() == pytest.approx([28.0 * 3 / math.sqrt(10), 28.0 / math.sqrt(10)])


def test_a_member_without_a_direction_counts_with_its_norm() -> None:
    assert rda([0.5, 0.5], [torch.tensor([0.0, 6.0]), torch.zeros(2)]).tolist() == pytest.approx([0.0, 3.0])


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_where_directions_cancel_the_mean_stays(noise: float) -> None:
    values = [torch.tensor([3.0, noise]), torch.tensor([-3.0, noise])]
    assert rda([0.5, 0.5], values).tolist() == pytest.approx([0.0, noise])
    assert rda([0.5, 0.5], [torch.tensor([3.0]), torch.tensor([-1.0])]).tolist() == [1.0]
    assert rda([1.0], [torch.zeros(2)]).tolist() == [0.0, 0.0]


@given(seed=st.integers(0, 1 << 31), numel=st.integers(1, 60), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_one_member_alone_is_its_own_merge(seed: int, numel: int, scale: float) -> None:
    values_T = scale * torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rda([1.0], [values_T]), values_T, rtol=1e-5, atol=0.0)


@given(seed=st.integers(0, 1 << 31), num_members=st.integers(1, 64))
def test_the_norm_is_the_mean_norm_however_many_there_are(seed: int, num_members: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = list(torch.randn(num_members, 500, generator=generator))
    before = [values_T.clone() for values_T in values]
    merged_T = rda([1 / num_members] * num_members, values)
    norms = [float(values_T.norm()) for values_T in values]
    assert float(merged_T.norm()) == pytest.approx(sum(norms) / num_members, rel=1e-4)
    assert all(torch.equal(values_T, same_T) for values_T, same_T in zip(values, before, strict=True))


def test_mean_over_senders_by_hand() -> None:
    shares, values = [0.25, 0.75], [torch.tensor([4.0, 4.0, 0.0]), torch.tensor([8.0, 0.0, 0.0])]
    mean_S = weighted_mean(shares, values)
    assert mean_S.tolist() == [7.0, 1.0, 0.0]
    spread_over_senders(mean_S, shares, values)
    assert mean_S.tolist() == [7.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("by", "weights"),
    [
        ("tokens", [4096.0, 8192.0, 4096.0]),
        ("token-rate", [4096 * 64 / 2**20, 8192 * 128 / 2**20, 4096 * 128 / 2**20]),
        ("equal", [1.0, 1.0, 1.0]),
    ],
)
def test_weights(by: WeightBy, weights: list[float]) -> None:
    assert [weight_of(*work, by) for work in ((4096, 64), (8192, 64), (4096, 32))] == weights
    assert weight_of(0, 0, by) == weight_of(0, 5, by) == 0.0
    assert weight_of(1, 1_000_000, by) > 0
    assert weight_of(10**12, 1000, by) <= MAX_WEIGHT
