import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.outer.blend import blend, blend_, rebase


def bits(x_N: Tensor) -> list[int]:
    bits_N: list[int] = x_N.view(torch.int32).tolist()
    return bits_N


def triple(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    local_N, old_N, new_N = torch.randn(3, 19, generator=torch.Generator().manual_seed(seed))
    return local_N.clone(), old_N.clone(), new_N.clone()


@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
def test_blend_is_the_weighted_mean(seed: int, alpha: float) -> None:
    local_N, anchor_N, _ = triple(seed)
    torch.testing.assert_close(blend(local_N, anchor_N, alpha), alpha * local_N + (1 - alpha) * anchor_N)


def test_blend_is_exact_at_both_ends() -> None:
    local_N = torch.tensor([-0.0, 0.1, math.inf, 3e38, 1e-40])
    anchor_N = torch.tensor([-1.0, -0.0, 2.0, -3e38, 1e30])
    assert bits(blend(local_N, anchor_N, 1)) == bits(local_N)
    assert bits(blend(local_N, anchor_N, 0)) == bits(anchor_N)


@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
def test_blend_of_equals_is_exact(seed: int, alpha: float) -> None:
    local_N, _, _ = triple(seed)
    assert torch.equal(blend(local_N, local_N.clone(), alpha), local_N)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan])
def test_blend_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        blend(torch.zeros(1), torch.zeros(1), alpha)


@given(seed=st.integers(0, 2**31))
def test_rebase_keeps_the_unsent_work(seed: int) -> None:
    local_N, old_N, new_N = triple(seed)
    torch.testing.assert_close(new_N - rebase(local_N, old_N, new_N), old_N - local_N)


@given(seed=st.integers(0, 2**31))
def test_rebase_identities(seed: int) -> None:
    local_N, old_N, new_N = triple(seed)
    assert torch.equal(rebase(local_N, old_N, old_N), local_N), "the same anchor moves nothing"
    assert torch.equal(rebase(old_N, old_N, torch.zeros(19)), torch.zeros(19)), "without own work: the new anchor"
    there_and_back_N = rebase(rebase(local_N, old_N, new_N), new_N, old_N)
    torch.testing.assert_close(there_and_back_N, local_N)


@pytest.mark.parametrize(
    "move",
    [
        lambda a, b, c: blend(a, b, 0.3),
        lambda a, b, c: blend(a, b, 0.0),
        lambda a, b, c: blend(a, b, 1.0),
        lambda a, b, c: rebase(a, b, c),
    ],
)
def test_arguments_are_left_alone(move: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    arguments = triple(5)
    before = [bits(argument) for argument in arguments]
    result_N = move(*arguments)
    result_N.fill_(9)
    assert [bits(argument) for argument in arguments] == before


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_in_place_it_is_the_same_to_the_bit(alpha: float) -> None:
    generator = torch.Generator().manual_seed(3)
    local, anchor = (torch.randn(7, 5, generator=generator) for _ in range(2))
    expected = blend(local, anchor, alpha)
    turned = local.t().contiguous().t()
    for values in (local, turned):
        blend_(values, anchor, alpha)
        assert torch.equal(values, expected)
