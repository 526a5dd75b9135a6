"""Merges that liars cannot spoil, against plain formulas in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.exchange.robust import RobustMerge, centred_clipping, median, nearest, trimmed_mean


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1 << 31), num=st.integers(1, 9), numel=st.sampled_from([1, 7, 40_000]))
def test_trimmed_mean_and_median_are_exact(seed: int, num: int, numel: int) -> None:
    values = randn(seed, num, numel)
    ranked = np.sort(values.double().numpy(), axis=0)
    for num_liars in range((num + 1) // 2):
        expected = ranked[num_liars : num - num_liars].mean(0)
        np.testing.assert_allclose(trimmed_mean(list(values), num_liars).numpy(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(median(list(values)).numpy(), np.median(ranked, axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "merge", [median, centred_clipping, lambda values: trimmed_mean(values, 2), lambda values: nearest(values, 2)]
)
@pytest.mark.parametrize("lie", [-1.0, 1e6, -3e37])
def test_two_of_seven_move_nothing_far(merge: RobustMerge, lie: float) -> None:
    honest = list(randn(0, 5, 1000) * 0.1 + 1.0)
    merged_S = merge([*honest, honest[0] * lie, honest[1] * lie])
    assert float((merged_S - torch.stack(honest).mean(0)).norm()) < 0.2 * float(merged_S.norm())


def test_centred_clipping_of_those_who_agree_is_their_mean() -> None:
    values = list(randn(1, 8, 500))
    merged_S = centred_clipping(values)
    mean_S = torch.stack(values).mean(0)
    assert float((merged_S - mean_S).norm()) < 0.05 * float(values[0].norm())
    assert centred_clipping([values[0]] * 4).tolist() == values[0].tolist()


@given(seed=st.integers(0, 1 << 31), num=st.integers(1, 9), numel=st.sampled_from([1, 7, 40_000]))
def test_nearest_neighbours_are_mixed_and_their_means_trimmed(seed: int, num: int, numel: int) -> None:
    values = randn(seed, num, numel)
    exact = values.double()
    for num_liars in range((num + 1) // 2):
        near = (exact[:, None] - exact[None]).norm(dim=-1).argsort(dim=1, stable=True)[:, : num - num_liars]
        ranked = np.sort(exact[near].mean(dim=1).numpy(), axis=0)
        expected = ranked[num_liars : num - num_liars].mean(0)
        np.testing.assert_allclose(nearest(list(values), num_liars).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_little_is_less_among_neighbours_than_coordinate_by_coordinate() -> None:
    """Two of eight bring the mean of the honest less 1.5 standard deviations in every coordinate (ALIE)."""
    honest = randn(2, 6, 2000) + 0.5 * randn(3, 2000)
    lie = honest.mean(0) - 1.5 * honest.std(0)
    off = [float((merge([*honest, lie, lie], 2) - honest.mean(0)).norm()) for merge in (nearest, trimmed_mean)]
    assert off[0] < off[1]
