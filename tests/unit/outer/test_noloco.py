import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.outer.diloco import DiLoCo
from decentral.outer.gamma import gamma_range
from decentral.outer.noloco import NoLoCo
from decentral.outer.rule import Mixed, OuterRule, OuterState
from decentral.types import PeerId, SyncKey
from tests.support.groups import groups


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixed(delta_N: Tensor, anchor_N: Tensor | None = None) -> Mixed:
    return Mixed(delta_N, (PeerId("a"), PeerId("b")), anchor_N=anchor_N)


def bits(*tensors: Tensor) -> list[list[int]]:
    return [tensor.view(torch.int32).tolist() for tensor in tensors]


def test_defaults_are_the_papers() -> None:
    assert NoLoCo() == NoLoCo(lr=0.7, momentum=0.5, gamma=0.7, group_size=2)


@given(
    seed=st.integers(0, 2**31),
    numel=st.integers(1, 70),
    group_size=st.integers(2, 8),
    lr=st.floats(0.01, 2.0),
    momentum=st.floats(0, 0.75),
    place=st.floats(0.01, 0.99),
    num_steps=st.integers(1, 8),
)
def test_agrees_with_the_definition(
    seed: int, numel: int, group_size: int, lr: float, momentum: float, place: float, num_steps: int
) -> None:
    """A whole group over some rounds, against equations 1 to 3 in double precision, with the right sign of beta."""
    low, high = gamma_range(momentum, group_size)
    gamma = low + place * (high - low)
    rule: OuterRule = NoLoCo(lr, momentum, gamma, group_size)
    anchors = list(randn(seed, group_size, numel))
    states = [rule.init(anchor_N) for anchor_N in anchors]
    phi = np.stack([anchor_N.numpy() for anchor_N in anchors]).astype(np.float64)
    buffer = np.zeros_like(phi)
    for step in range(num_steps):
        deltas = randn(seed + 1 + step, group_size, numel)
        found = mixed(deltas.mean(0), torch.stack(anchors).mean(0))
        stepped = [rule.step(anchor_N, found, state) for anchor_N, state in zip(anchors, states, strict=True)]
        anchors, states = [anchor_N for anchor_N, _ in stepped], [state for _, state in stepped]

        theirs = -deltas.numpy().astype(np.float64)  # local parameters minus anchor, as in the paper
        mean_phi = phi.sum(0) / group_size
        buffer = momentum * buffer + lr / group_size * theirs.sum(0) - gamma * (phi - mean_phi)
        phi = phi + buffer
        np.testing.assert_allclose(torch.stack(anchors).numpy(), phi, rtol=1e-4, atol=1e-4)
    if momentum:
        np.testing.assert_allclose(torch.stack([s.buffers_N[0] for s in states]).numpy(), buffer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("numel", [1, 15, 1027, 70_001])
def test_every_operation_rounds_once(numel: int, momentum: float) -> None:
    rule = NoLoCo(momentum=momentum)
    lr, alpha, gamma = np.float32(0.7), np.float32(momentum), np.float32(0.7)
    anchor_N, mean_N = randn(numel, 2, numel)
    state = rule.init(anchor_N)
    a, m = anchor_N.numpy().copy(), np.zeros(numel, dtype=np.float32)
    for step in range(3):
        delta_N = randn(numel + 1 + step, numel)
        anchor_N, state = rule.step(anchor_N, mixed(delta_N, mean_N), state)
        m = alpha * m - lr * delta_N.numpy() - gamma * (a - mean_N.numpy())
        a = a + m
        assert anchor_N.numpy().tobytes() == a.tobytes()
        assert all(buffer_N.numpy().tobytes() == m.tobytes() for buffer_N in state.buffers_N)


@given(seed=st.integers(0, 2**31), group_size=st.integers(2, 8))
def test_pulls_leave_the_mean_of_the_group_where_it_is(seed: int, group_size: int) -> None:
    anchors = list(randn(seed, group_size, 40))
    mean_N = torch.stack(anchors).mean(0)
    rule = NoLoCo(group_size=group_size)
    still = mixed(torch.zeros(40), mean_N)
    stepped = torch.stack([rule.step(anchor_N, still, rule.init(anchor_N))[0] for anchor_N in anchors])
    torch.testing.assert_close(stepped.mean(0), mean_N, rtol=0, atol=1e-6)
    torch.testing.assert_close(stepped - mean_N, 0.3 * (torch.stack(anchors) - mean_N), rtol=0, atol=1e-6)


@given(seed=st.integers(0, 2**31), lr=st.floats(0.01, 2.0), momentum=st.floats(0, 0.6), together=st.booleans())
def test_equal_anchors_or_nobody_else_make_it_diloco_to_the_bit(
    seed: int, lr: float, momentum: float, together: bool
) -> None:
    ours, theirs = NoLoCo(lr, momentum), DiLoCo(lr, momentum, nesterov=False)
    own_N = reference_N = randn(seed, 33)
    own, reference = ours.init(own_N), theirs.init(own_N)
    for step in range(5):
        delta_N = randn(seed + 1 + step, 33)
        own_N, own = ours.step(own_N, mixed(delta_N, own_N.clone() if together else None), own)
        reference_N, reference = theirs.step(reference_N, mixed(delta_N), reference)
        assert bits(own_N, *own.buffers_N) == bits(reference_N, *reference.buffers_N)
    assert own.num_steps == reference.num_steps == 5


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_step_is_pure(momentum: float) -> None:
    rule = NoLoCo(momentum=momentum)
    anchor_N, delta_N, mean_N, buffer_N = arguments = [randn(seed, 33) for seed in range(4)]
    before = bits(*arguments)
    state = OuterState((buffer_N,) if momentum else (), num_steps=4)
    first_N, after = rule.step(anchor_N, mixed(delta_N, mean_N), state)
    second_N, _ = rule.step(anchor_N, mixed(delta_N, mean_N), state)
    assert torch.equal(first_N, second_N)
    for result_N in (first_N, *after.buffers_N):
        result_N.fill_(9)
    assert bits(*arguments) == before
    assert (state.num_steps, after.num_steps) == (4, 5)
    assert rule.num_buffers == len(after.buffers_N) == len(rule.init(anchor_N).buffers_N) == (1 if momentum else 0)


@pytest.mark.parametrize(("delta", "mean", "buffer"), [(1, 3, 3), (3, 1, 3), (3, 3, 1), (1, 1, 1)])
def test_shapes_are_never_broadcast(delta: int, mean: int, buffer: int) -> None:
    state = OuterState((torch.zeros(buffer),))
    with pytest.raises(ValueError, match="do not belong together"):
        NoLoCo().step(torch.zeros(3), mixed(torch.zeros(delta), torch.zeros(mean)), state)


def test_the_momentum_buffer_is_asked_for() -> None:
    with pytest.raises(ValueError, match="1 buffers are needed"):
        NoLoCo().step(torch.zeros(3), mixed(torch.zeros(3)), OuterState())


@pytest.mark.parametrize(
    ("group_size", "low", "high"), [(2, 0.5, 1.5), (4, 0.40825, 1.22474), (8, 0.37796, 1.13389)], ids=str
)
def test_gamma_range(group_size: int, low: float, high: float) -> None:
    borders = gamma_range(0.5, group_size)
    assert borders == pytest.approx((low, high), abs=1e-5)
    NoLoCo(gamma=math.nextafter(borders[0], 1), group_size=group_size)
    NoLoCo(gamma=math.nextafter(borders[1], 0), group_size=group_size)
    for outside in (*borders, 0.0, -0.7, 2.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="gamma must be above"):
            NoLoCo(gamma=outside, group_size=group_size)


def spread_factor(momentum: float, gamma: float, group_size: int) -> float:
    """By what factor the pull alone changes the spread of 64 replicas in a round, from the 10th round to the 40th."""
    rule = NoLoCo(momentum=momentum, gamma=gamma, group_size=group_size)
    peers = tuple(PeerId(f"peer-{number}") for number in range(64))
    anchors = dict(zip(peers, randn(0, len(peers), 50), strict=True))
    states = {peer: rule.init(anchor_N) for peer, anchor_N in anchors.items()}
    still_N = torch.zeros(50)
    spreads = []
    for round_ in range(40):
        for group in groups(peers, SyncKey(round_, 0), group_size):
            found = Mixed(still_N, group, anchor_N=torch.stack([anchors[peer] for peer in group]).mean(0))
            for peer in group:
                anchors[peer], states[peer] = rule.step(anchors[peer], found, states[peer])
        spreads.append(float(torch.stack(list(anchors.values())).std(0).norm()))
    return float((spreads[-1] / spreads[9]) ** (1 / 30))


@pytest.mark.parametrize(
    ("momentum", "gamma", "group_size", "factor"),
    [(0.0, 1.0, 2, 0.707), (0.5, 0.7, 2, 0.837), (0.5, 1.4, 2, 0.976), (0.5, 0.7, 4, 0.771)],
)
def test_replicas_come_together_as_fast_as_computed(
    momentum: float, gamma: float, group_size: int, factor: float
) -> None:
    """Factors from the recursion of the second moments for independent groups; docs/algorithms/noloco.md."""
    assert spread_factor(momentum, gamma, group_size) == pytest.approx(factor, abs=0.025)


@pytest.mark.parametrize(("momentum", "high"), [(0.6, 1.28), (0.7, 1.02)])
def test_a_large_momentum_leaves_less_room_than_equation_74(momentum: float, high: float) -> None:
    assert gamma_range(momentum, 2)[1] == pytest.approx(high)
    assert spread_factor(momentum, high - 0.15, 2) < 1


def test_with_a_momentum_beyond_there_is_no_gamma() -> None:
    with pytest.raises(ValueError, match=r"alpha = 0\.9 no gamma keeps replicas together in groups of n = 2: .* 0\.38"):
        NoLoCo(momentum=0.9, gamma=1.0)


def test_gamma_out_of_range_says_which_range_and_of_what() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        NoLoCo(momentum=0.3, gamma=1.3, group_size=4)
    assert str(caught.value) == (
        "gamma must be above 0.2449 and below 1.18 for groups of n = 4 and momentum alpha = 0.3, got 1.3"
    )


def test_other_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="outer learning rate"):
        NoLoCo(lr=math.nan)
    with pytest.raises(ValueError, match="outer momentum"):
        NoLoCo(momentum=1.0)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        NoLoCo(group_size=1)
