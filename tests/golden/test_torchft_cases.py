"""The regression cases of torchft's streaming DiLoCo, recreated from their set-up.

Two layers of one weight (two fragments), all weights 1, every inner step subtracts 2, the outer optimizer is SGD with
learning rate 2, H = 6. The cases are (tau, alpha) in {0, 1} x {0, 0.5, 1}, and the recovery of a replica. All values
are small multiples of powers of two, so every comparison is exact.
"""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from decentral.outer.blend import blend
from decentral.outer.rule import Mixed, OuterRule, OuterState
from decentral.schedule.plan import SyncPlan
from decentral.types import PeerId, SyncKey
from tests.golden.engines import Engines

#: What torchft has recorded: (tau, alpha), layer, weights after steps.
RECORDED = [
    ((0, 0.0), 0, {3: -11.0, 9: -35.0, 15: -59.0}),
    ((0, 0.0), 1, {6: -23.0, 12: -47.0}),
    ((1, 0.5), 0, {3: -6.0, 9: -21.5, 15: -35.75}),
]
CASES = [(delay_steps, alpha) for delay_steps in (0, 1) for alpha in (0.0, 0.5, 1.0)]


class Sgd:
    """The cases' outer optimizer: anchor - 2 delta."""

    buffers, num_buffers = (), 0

    def init(self, anchor_N: Tensor) -> OuterState:
        return OuterState()

    def step(self, anchor_N: Tensor, mixed: Mixed, state: OuterState) -> tuple[Tensor, OuterState]:
        return anchor_N - 2 * mixed.delta_N, state


class Replica:
    """One replica that is driven by the plan as an engine would be. All replicas are equal: the mean is its own."""

    def __init__(self, delay_steps: int, alpha: float) -> None:
        self.plan = SyncPlan(inner_steps=6, num_fragments=2, delay_steps=delay_steps)
        self.alpha = alpha
        self.rule: OuterRule = Sgd()
        self.step = 0
        self.local = [torch.ones(1), torch.ones(1)]
        self.anchor = [torch.ones(1), torch.ones(1)]
        self.state = [self.rule.init(anchor_N) for anchor_N in self.anchor]
        self.sent: dict[int, Tensor] = {}

    def train_one_step(self) -> tuple[float, float]:
        self.step += 1
        self.local = [local_N - 2 for local_N in self.local]
        for f in range(2):
            launches = [self.plan.launch_step(SyncKey(round, f)) for round in range(4)]
            if self.step in launches:
                self.sent[f] = self.anchor[f] - self.local[f]
            if self.step - self.plan.delay_steps in launches:
                mixed = Mixed(delta_N=self.sent.pop(f), members=(PeerId("0"), PeerId("1")))
                self.anchor[f], self.state[f] = self.rule.step(self.anchor[f], mixed, self.state[f])
                self.local[f] = blend(self.local[f], self.anchor[f], self.alpha)
        return self.local[0].item(), self.local[1].item()


@dataclass
class Expected:
    local: list[tuple[float, float]]
    anchor: dict[int, tuple[float, float]]


def by_hand(num_steps: int, delay_steps: int, alpha: float) -> Expected:
    """The same run by plain arithmetic: one fragment in turn every three steps, no plan, no tensors."""
    theta, phi, delta = [1.0, 1.0], [1.0, 1.0], 0.0
    expected = Expected(local=[], anchor={})
    for step in range(1, num_steps + 1):
        theta = [value - 2 for value in theta]
        turn, position = (step - 1) // 3 % 2, (step - 1) % 3 + 1
        if position == 3 - delay_steps:
            delta = phi[turn] - theta[turn]
        if position == 3:
            phi[turn] -= 2 * delta
            theta[turn] = alpha * theta[turn] + (1 - alpha) * phi[turn]
            expected.anchor[step] = (phi[0], phi[1])
        expected.local.append((theta[0], theta[1]))
    return expected


@pytest.mark.parametrize(("delay_steps", "alpha"), CASES)
def test_updates(delay_steps: int, alpha: float) -> None:
    expected = by_hand(15, delay_steps, alpha)
    replica = Replica(delay_steps, alpha)
    for step in range(1, 16):
        assert replica.train_one_step() == expected.local[step - 1], f"local weights after step {step}"
        if step in expected.anchor:
            assert (replica.anchor[0].item(), replica.anchor[1].item()) == expected.anchor[step]
    assert sorted(expected.anchor) == [3, 6, 9, 12, 15]


@pytest.mark.parametrize(("delay_steps", "alpha"), CASES)
def test_updates_by_the_engine(delay_steps: int, alpha: float) -> None:
    """Two production workers whose inner steps are the cases', over the fifteen recorded steps and three more."""
    plan, first = SyncPlan(6, 2, delay_steps), np.ones((2, 1))
    engines = Engines(2, 3, plan, Sgd(), first, lambda step, worker, local: local - 2, {"mix_alpha": alpha})
    expected = by_hand(18, delay_steps, alpha)
    for worker in engines.play():
        local = {step: (values[0, 0], values[1, 0]) for step, values in worker.local.items()}
        assert local == {step: expected.local[step - 1] for step in range(1, 19)}
        anchors = {step: (values[0, 0], values[1, 0]) for step, values in worker.anchors.items()}
        assert anchors == expected.anchor
        for case, layer, spots in RECORDED:
            if case == (delay_steps, alpha):
                assert {step: local[step][layer] for step in spots} == spots


@pytest.mark.parametrize(("case", "layer", "spots"), RECORDED)
def test_recorded_values(case: tuple[int, float], layer: int, spots: dict[int, float]) -> None:
    replica = Replica(*case)
    history = {step: replica.train_one_step()[layer] for step in range(1, 16)}
    assert {step: history[step] for step in spots} == spots


def test_alpha_one_never_touches_the_local_weights() -> None:
    for delay_steps in (0, 1):
        replica = Replica(delay_steps, alpha=1.0)
        assert [replica.train_one_step() for _ in range(15)] == [(1.0 - 2 * s, 1.0 - 2 * s) for s in range(1, 16)]


def test_recovery() -> None:
    """Replica 1 is lost after six steps, restarts cold, and copies replica 0's live state at its own step 3."""
    healthy = Replica(delay_steps=0, alpha=0.0)
    history = [healthy.train_one_step() for _ in range(9)]
    cold = Replica(delay_steps=0, alpha=0.0)
    restarted = [(1.0, 1.0), *(cold.train_one_step() for _ in range(2))]
    assert restarted == [(1.0, 1.0), (-1.0, -1.0), (-3.0, -3.0)]

    healed = copy.deepcopy(healthy)
    assert (healed.local[0].item(), healed.local[1].item()) == (-35.0, -29.0)
    history += [healthy.train_one_step() for _ in range(12)]
    assert history == by_hand(21, delay_steps=0, alpha=0.0).local
    assert [healed.train_one_step() for _ in range(12)] == history[9:]
    assert torch.equal(healed.anchor[0], healthy.anchor[0])
    assert torch.equal(healed.anchor[1], healthy.anchor[1])
