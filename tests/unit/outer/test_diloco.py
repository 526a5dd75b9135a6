import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.outer.diloco import DiLoCo
from decentral.outer.rule import Mixed, OuterRule, OuterState
from decentral.types import PeerId


def mixed(delta_N: Tensor) -> Mixed:
    return Mixed(delta_N=delta_N, members=(PeerId("a"),))


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_check_vector() -> None:
    """Reference vector: anchor 1, lr 0.7, momentum 0.9, pseudo-gradients 0.5, -0.2, 0.1."""
    rule: OuterRule = DiLoCo(lr=0.7, momentum=0.9)
    anchor_N = torch.tensor([1.0])
    state = rule.init(anchor_N)
    anchors, momenta = [], []
    for delta in (0.5, -0.2, 0.1):
        anchor_N, state = rule.step(anchor_N, mixed(torch.tensor([delta])), state)
        anchors.append(anchor_N.item())
        momenta.append(state.buffers_N[0].item())
    assert anchors == pytest.approx([0.335, 0.3175, 0.04275], abs=1e-7)
    assert momenta == pytest.approx([0.5, 0.25, 0.325], abs=1e-7)
    assert state.num_steps == 3


def test_defaults_are_the_papers() -> None:
    assert DiLoCo() == DiLoCo(lr=0.7, momentum=0.9)


@given(
    seed=st.integers(0, 2**31),
    numel=st.integers(1, 70),
    lr=st.floats(0.01, 2.0),
    momentum=st.floats(0.01, 0.99),
    nesterov=st.booleans(),
    num_steps=st.integers(1, 60),
)
def test_agrees_with_torch(seed: int, numel: int, lr: float, momentum: float, nesterov: bool, num_steps: int) -> None:
    deltas = randn(seed, num_steps, numel)
    anchor_N = randn(seed + 1, numel)
    parameter = torch.nn.Parameter(anchor_N.clone())
    sgd = torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=nesterov)
    rule = DiLoCo(lr=lr, momentum=momentum, nesterov=nesterov)
    state = rule.init(anchor_N)
    for delta_N in deltas:
        parameter.grad = delta_N.clone()
        sgd.step()
        anchor_N, state = rule.step(anchor_N, mixed(delta_N), state)
        torch.testing.assert_close(anchor_N, parameter.detach(), rtol=1e-5, atol=1e-4)
    # The heavy ball's buffer has the learning rate in it, and the direction of the step.
    scale = 1 if nesterov else -lr
    buffer_N = scale * sgd.state[parameter]["momentum_buffer"]
    torch.testing.assert_close(state.buffers_N[0], buffer_N, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("numel", [1, 15, 1027, 70_001])
def test_every_operation_rounds_once(numel: int, nesterov: bool) -> None:
    """Peers on other processors must get the same bits, so nothing may be fused; numpy rounds each operation."""
    rule = DiLoCo(lr=0.7, momentum=0.9, nesterov=nesterov)
    lr, momentum = np.float32(0.7), np.float32(0.9)
    anchor_N = randn(numel, numel)
    state = rule.init(anchor_N)
    a, m = anchor_N.numpy().copy(), np.zeros(numel, dtype=np.float32)
    for step in range(3):
        delta_N = randn(numel + step, numel)
        anchor_N, state = rule.step(anchor_N, mixed(delta_N), state)
        d = delta_N.numpy()
        m = momentum * m + d if nesterov else momentum * m - lr * d
        a = a - lr * (momentum * m + d) if nesterov else a + m
        assert state.buffers_N[0].numpy().tobytes() == m.tobytes()
        assert anchor_N.numpy().tobytes() == a.tobytes()


def test_plain_averaging_is_a_special_case() -> None:
    """With lr 1 and no momentum the anchor becomes the mean of the workers' parameters."""
    rule = DiLoCo(lr=1.0, momentum=0.0)
    anchor_N, local_N = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])
    averaged_N, _ = rule.step(anchor_N, mixed(anchor_N - local_N), rule.init(anchor_N))
    assert torch.equal(averaged_N, local_N)


@pytest.mark.parametrize("nesterov", [True, False])
def test_step_is_pure(nesterov: bool) -> None:
    anchor_N, delta_N, momentum_N = randn(1, 33), randn(2, 33), randn(3, 33)
    arguments = (anchor_N, delta_N, momentum_N)
    before = [argument.clone() for argument in arguments]
    rule = DiLoCo(nesterov=nesterov)
    state = OuterState((momentum_N,), num_steps=4)
    first_N, after = rule.step(anchor_N, mixed(delta_N), state)
    second_N, again = rule.step(anchor_N, mixed(delta_N), state)

    assert all(
        torch.equal(old.view(torch.int32), new.view(torch.int32)) for old, new in zip(before, arguments, strict=True)
    )
    assert torch.equal(first_N, second_N)
    assert torch.equal(after.buffers_N[0], again.buffers_N[0])
    assert after.num_steps == again.num_steps == 5
    assert state.num_steps == 4
    memory = {tensor.data_ptr() for tensor in (*arguments, first_N, after.buffers_N[0])}
    assert len(memory) == 5


def test_forms_of_momentum_differ_in_the_look_ahead() -> None:
    """By hand, anchor 1, pseudo-gradients 0.5, -0.25: the heavy ball has no factor 1 + momentum in its first step."""
    rule = DiLoCo(lr=0.5, momentum=0.5, nesterov=False)
    anchor_N = torch.tensor([1.0])
    state = rule.init(anchor_N)
    anchor_N, state = rule.step(anchor_N, mixed(torch.tensor([0.5])), state)
    assert (anchor_N.item(), state.buffers_N[0].item()) == (0.75, -0.25)
    anchor_N, state = rule.step(anchor_N, mixed(torch.tensor([-0.25])), state)
    assert (anchor_N.item(), state.buffers_N[0].item()) == (0.75, 0.0)
    nesterov_N, _ = DiLoCo(0.5, 0.5).step(torch.tensor([1.0]), mixed(torch.tensor([0.5])), rule.init(anchor_N))
    assert nesterov_N.item() == 0.625


def test_init_shares_no_memory_with_the_anchor() -> None:
    anchor_N = torch.ones(3)
    state = DiLoCo().init(anchor_N)
    state.buffers_N[0].fill_(7)
    assert torch.equal(anchor_N, torch.ones(3))


@pytest.mark.parametrize("lr", [0.0, -0.1, math.inf, math.nan])
def test_lr_out_of_range(lr: float) -> None:
    with pytest.raises(ValueError, match="outer learning rate"):
        DiLoCo(lr=lr)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(ValueError, match="outer momentum"):
        DiLoCo(momentum=momentum)


@pytest.mark.parametrize(("anchor", "delta", "buffer"), [(3, 1, 3), (1, 3, 1), (3, 3, 1)])
def test_shapes_are_never_broadcast(anchor: int, delta: int, buffer: int) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        DiLoCo().step(torch.zeros(anchor), mixed(torch.zeros(delta)), OuterState((torch.zeros(buffer),)))
