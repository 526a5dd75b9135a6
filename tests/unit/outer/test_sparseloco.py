import pytest
import torch

from decentral.outer.diloco import DiLoCo
from decentral.outer.rule import Mixed, OuterRule, OuterState
from decentral.outer.sparseloco import SparseLoCo
from decentral.types import PeerId


def mixed(*delta: float) -> Mixed:
    return Mixed(torch.tensor(delta), (PeerId("a"),))


def test_is_plain_descent() -> None:
    rule: OuterRule = SparseLoCo(lr=0.5)
    anchor_N = torch.tensor([1.0, 2.0])
    state = rule.init(anchor_N)
    assert (state.buffers_N, rule.num_buffers) == ((), 0)
    anchor_N, state = rule.step(anchor_N, mixed(1.0, 0.0), state)
    anchor_N, state = rule.step(anchor_N, mixed(1.0, -4.0), state)
    assert (anchor_N.tolist(), state.num_steps) == ([0.0, 4.0], 2)


def test_equals_diloco_without_momentum_to_the_bit() -> None:
    anchor_N, delta_N = torch.randn(50, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 50)
    for lr in (0.3, 1.0):
        ours, _ = SparseLoCo(lr).step(anchor_N, Mixed(delta_N, ()), OuterState())
        theirs, state = DiLoCo(lr, 0.0).step(anchor_N, Mixed(delta_N, ()), DiLoCo(lr, 0.0).init(anchor_N))
        assert torch.equal(ours, theirs)
        assert state.buffers_N == ()


def test_arguments_are_left_alone() -> None:
    anchor_N, delta = torch.tensor([1.0]), mixed(2.0)
    SparseLoCo().step(anchor_N, delta, OuterState())
    assert (anchor_N.item(), delta.delta_N.item()) == (1.0, 2.0)


def test_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        SparseLoCo().step(torch.zeros(2), mixed(1.0), OuterState())
    with pytest.raises(ValueError, match="0 buffers are needed"):
        SparseLoCo().step(torch.zeros(1), mixed(1.0), OuterState((torch.zeros(1),)))


@pytest.mark.parametrize("lr", [0.0, -1.0, float("inf"), float("nan")])
def test_refuses_a_learning_rate_out_of_range(lr: float) -> None:
    with pytest.raises(ValueError, match="must be finite and above 0"):
        SparseLoCo(lr)
