import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.rule import Mixed
from decentral.types import PeerId

Values = NDArray[np.float64]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_published(first_N: Values, deltas_trn: Values, lr: float, momentum: float) -> Values:
    """The paper's recursion: every replica r has its own anchor and buffer. Returns the starts of all phases [t, r, N].

    A replica's step is taken with the mean of the last round, in which its own old part gives way to its fresh one.
    """
    num_replicas = deltas_trn.shape[1]
    phi, buffer = np.tile(first_N, (num_replicas, 1)), np.zeros(deltas_trn.shape[1:])
    before, starts = np.zeros_like(buffer), []
    for deltas in deltas_trn:
        for i in range(num_replicas):
            others = sum((before[j] for j in range(num_replicas) if j != i), np.zeros_like(first_N))
            gradient = (deltas[i] + others) / num_replicas
            buffer[i] = momentum * buffer[i] + gradient
            phi[i] = phi[i] - lr * (gradient + momentum * buffer[i])
        before = deltas
        starts.append(phi.copy())
    return np.stack(starts)


class Swarm:
    """Replicas with one anchor, and what a round does to them."""

    def __init__(self, first_N: Tensor, num_replicas: int, lr: float, momentum: float) -> None:
        self.rule, self.eager = DiLoCo(lr, momentum), Eager(lr, momentum)
        self.anchor_N, self.state = first_N, self.rule.init(first_N)
        self.ahead: list[Tensor | None] = [None] * num_replicas

    def round(self, deltas: Tensor) -> list[Tensor]:
        """Every replica starts its next phase; then the mean of ``deltas`` [replica, N] is in the anchor."""
        starts = []
        for i, delta_N in enumerate(deltas):
            start_N, self.ahead[i] = self.eager.start(self.anchor_N, delta_N, 1 / len(deltas), self.ahead[i])
            starts.append(start_N)
        self.anchor_N, self.state = self.rule.step(self.anchor_N, Mixed(deltas.mean(0), (PeerId("a"),)), self.state)
        return starts


@given(
    seed=st.integers(0, 2**31),
    num_replicas=st.integers(1, 6),
    numel=st.integers(1, 20),
    num_rounds=st.integers(1, 8),
    lr=st.floats(0.01, 1.5),
    momentum=st.floats(0, 0.95),
)
def test_agrees_with_the_published_recursion(
    seed: int, num_replicas: int, numel: int, num_rounds: int, lr: float, momentum: float
) -> None:
    first_N = randn(seed, numel).double()
    deltas = randn(seed + 1, num_rounds, num_replicas, numel).double()
    swarm = Swarm(first_N, num_replicas, lr, momentum)
    starts = torch.stack([torch.stack(swarm.round(of_round)) for of_round in deltas])
    expected = as_published(first_N.numpy(), deltas.numpy(), lr, momentum)
    np.testing.assert_allclose(starts.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_first_start_is_the_own_step() -> None:
    """By hand: anchor 1, pseudo-gradient 2 of one in four, lr 0.5, momentum 0.5: 1 - 0.5 (0.5 + 0.5 * 0.5)."""
    start_N, ahead_N = Eager(lr=0.5, momentum=0.5).start(torch.ones(1), torch.full((1,), 2.0), 0.25, None)
    assert (start_N.item(), ahead_N.item()) == (0.625, 0.5)
    rule = DiLoCo(lr=0.5, momentum=0.5)
    alone_N, _ = rule.step(torch.ones(1), Mixed(torch.full((1,), 0.5), (PeerId("a"),)), rule.init(torch.ones(1)))
    assert torch.equal(start_N, alone_N)


def test_own_work_counts_once() -> None:
    """Without momentum, what the mean has brought has left the start: whoever rests starts from the anchor itself."""
    swarm = Swarm(torch.zeros(3), 2, lr=0.5, momentum=0.0)
    swarm.round(torch.tensor([[4.0, 0.0, 8.0], [0.0, 2.0, 8.0]]))
    assert swarm.anchor_N.tolist() == [-1.0, -0.5, -4.0]
    assert [start_N.tolist() for start_N in swarm.round(torch.zeros(2, 3))] == [[-1.0, -0.5, -4.0]] * 2


@given(seed=st.integers(0, 2**31), momentum=st.floats(0, 0.95))
def test_leads_add_up_to_the_next_step(seed: int, momentum: float) -> None:
    swarm = Swarm(randn(seed, 9).double(), 4, lr=0.7, momentum=momentum)
    for deltas in randn(seed + 1, 5, 4, 9).double():
        anchor_N = swarm.anchor_N
        leads = sum((start_N - anchor_N for start_N in swarm.round(deltas)), torch.zeros(9).double())
        torch.testing.assert_close(anchor_N + leads, swarm.anchor_N, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("numel", [1, 15, 1027, 70_001])
def test_every_operation_rounds_once(numel: int) -> None:
    lr, momentum, share = np.float32(0.7), np.float32(0.9), np.float32(0.3)
    eager, anchor_N = Eager(0.7, 0.9), randn(numel, numel)
    ahead_N, m = None, np.zeros(numel, dtype=np.float32)
    for step in range(3):
        delta_N = randn(numel + step + 1, numel)
        start_N, ahead_N = eager.start(anchor_N, delta_N, 0.3, ahead_N)
        own = share * delta_N.numpy()
        m = momentum * m + own
        assert ahead_N.numpy().tobytes() == m.tobytes()
        assert start_N.numpy().tobytes() == (anchor_N.numpy() - lr * (momentum * m + own)).tobytes()


def test_start_is_pure() -> None:
    arguments = anchor_N, delta_N, ahead_N = randn(1, 33), randn(2, 33), randn(3, 33)
    before = [argument.clone() for argument in arguments]
    first = Eager(0.7, 0.9).start(anchor_N, delta_N, 0.5, ahead_N)
    again = Eager(0.7, 0.9).start(anchor_N, delta_N, 0.5, ahead_N)
    assert all(torch.equal(old, new) for old, new in zip(before, arguments, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    fresh = Eager(0.7, 0.9).start(anchor_N, delta_N, 1.0, None)
    assert len({tensor.data_ptr() for tensor in (*arguments, *first, *fresh)}) == 7


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Eager(0.7, 0.9).start(torch.zeros(1), torch.zeros(1), share, None)


@pytest.mark.parametrize(("lr", "momentum"), [(0.0, 0.9), (math.inf, 0.9), (0.7, 1.0), (0.7, -0.1)])
def test_settings_out_of_range(lr: float, momentum: float) -> None:
    with pytest.raises(ValueError, match="outer"):
        Eager(lr, momentum)


@pytest.mark.parametrize(("anchor", "delta", "ahead"), [(3, 1, None), (1, 3, 1), (3, 3, 1)])
def test_shapes_are_never_broadcast(anchor: int, delta: int, ahead: int | None) -> None:
    with pytest.raises(ValueError, match="one shape"):
        Eager(0.7, 0.9).start(
            torch.zeros(anchor), torch.zeros(delta), 0.5, None if ahead is None else torch.zeros(ahead)
        )
