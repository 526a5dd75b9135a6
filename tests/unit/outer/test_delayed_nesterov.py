"""Delayed Nesterov against the paper's recursion, and what a worker does with its result."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.outer.delayed_nesterov import Delayed, DelayedNesterov
from decentral.outer.diloco import DiLoCo
from decentral.outer.follow import Follow
from decentral.outer.rule import Mixed, OuterRule, OuterState
from decentral.types import PeerId


def run(rule: DelayedNesterov, start: float, deltas: list[float], every: int) -> list[float]:
    anchor_N, state = torch.tensor([start]), rule.init(torch.tensor([start]))
    anchors = []
    for delta in deltas:
        anchor_N, state = rule.step(anchor_N, torch.tensor([delta]), state, every)
        anchors.append(float(anchor_N))
    return anchors


def test_vector() -> None:
    anchors = run(DelayedNesterov(lr=0.7, momentum=0.9), 1.0, [0.5, -0.2, 0.1, 0.3], every=2)
    assert anchors == pytest.approx([0.825, 0.8005, 0.7655, 0.44945], abs=1e-6)


@given(
    start=st.floats(-3, 3),
    deltas=st.lists(st.floats(-2, 2), min_size=1, max_size=30),
    every=st.integers(1, 8),
    lr=st.floats(0.01, 1.5),
    momentum=st.floats(0, 0.95),
    part=st.floats(0, 1),
)
def test_agrees_with_the_papers_recursion(
    start: float, deltas: list[float], every: int, lr: float, momentum: float, part: float
) -> None:
    share = part / every
    ours = run(DelayedNesterov(lr, momentum, share), start, deltas, every)
    phi, m, gathered = start, 0.0, 0.0
    for t, g in enumerate(deltas):
        gathered += g
        if (t + 1) % every == 0:
            m = momentum * m + gathered / every
            phi -= lr * ((1 - share * every + share) * momentum * m + g / every)
            gathered = 0.0
        else:
            phi -= lr * (share * momentum * m + g / every)
        assert ours[t] == pytest.approx(phi, abs=2e-4)


def test_one_arrival_at_a_time_is_plain_nesterov() -> None:
    deltas = [0.5, -0.2, 0.1]
    assert run(DelayedNesterov(0.7, 0.9), 1.0, deltas, every=1) == pytest.approx([0.335, 0.3175, 0.04275], abs=1e-6)
    anchor_N, state = torch.ones(1), DiLoCo(0.7, 0.9).init(torch.ones(1))
    for delta, ours in zip(deltas, run(DelayedNesterov(0.7, 0.9), 1.0, deltas, every=1), strict=True):
        anchor_N, state = DiLoCo(0.7, 0.9).step(anchor_N, Mixed(torch.tensor([delta]), (PeerId("a"),)), state)
        assert float(anchor_N) == pytest.approx(ours, abs=1e-6)


def test_n_may_change_while_pseudo_gradients_are_gathered() -> None:
    """Of five workers three die after the second arrival: the next one is the last, and nothing is left over."""
    rule = DelayedNesterov(lr=1.0, momentum=0.5, share=0.25)
    anchor_N, state = torch.zeros(1), Delayed(torch.ones(1), torch.zeros(1))
    for delta, every in ((1.0, 5), (2.0, 5), (3.0, 2)):
        anchor_N, state = rule.step(anchor_N, torch.tensor([delta]), state, every)
    # The share counts as 1/5 for five workers; the mean gathered is 2, momentum 0.5 * 1 + 2.
    assert float(state.momentum_N) == pytest.approx(2.5)
    taken = 0.2 * 0.5 * 1 + 0.2 * 0.5 * 1 + 0.6 * 0.5 * 2.5
    assert float(anchor_N) == pytest.approx(-(1 / 5 + 2 / 5 + 3 / 2 + taken))
    assert (state.num_gathered, state.spent, float(state.gathered_N)) == (0, 0.0, 0.0)


def test_leaves_its_arguments_alone() -> None:
    rule, anchor_N, delta_N = DelayedNesterov(share=0.5), torch.ones(3), torch.full((3,), 0.5)
    state = rule.init(anchor_N)
    for every in (2, 1):
        new_N, new = rule.step(anchor_N, delta_N, state, every)
        assert not {new_N.data_ptr()} & {anchor_N.data_ptr(), delta_N.data_ptr()}
        assert new.gathered_N.data_ptr() != state.gathered_N.data_ptr()
    assert torch.equal(anchor_N, torch.ones(3))
    assert torch.equal(delta_N, torch.full((3,), 0.5))
    assert torch.equal(state.momentum_N, torch.zeros(3))
    assert torch.equal(state.gathered_N, torch.zeros(3))


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"momentum": 1.0}, {"share": -0.1}, {"share": 1.1}])
def test_refuses_settings_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DelayedNesterov(**bad)


def test_refuses_what_does_not_belong_together() -> None:
    rule, anchor_N = DelayedNesterov(), torch.ones(3)
    with pytest.raises(ValueError, match="do not belong together"):
        rule.step(anchor_N, torch.ones(2), rule.init(anchor_N), 2)
    with pytest.raises(ValueError, match="at least one arrival"):
        rule.step(anchor_N, torch.ones(3), rule.init(anchor_N), 0)


# -- the worker's side ------------------------------------------------------------------------------------------------


def told(anchor_N: Tensor | None, numel: int = 3) -> Mixed:
    return Mixed(torch.zeros(numel), (PeerId("a"),), anchor_N=anchor_N)


def test_a_follower_takes_what_it_is_told() -> None:
    rule: OuterRule = Follow()
    told_N = torch.full((3,), 2.0)
    anchor_N, state = rule.step(torch.ones(3), told(told_N), rule.init(torch.ones(3)))
    assert anchor_N is told_N
    assert (rule.num_buffers, state) == (0, OuterState(num_steps=1))


@pytest.mark.parametrize("anchor_N", [None, torch.ones(2)])
def test_a_follower_needs_somebody_to_follow(anchor_N: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"no anchor to follow|do not belong together"):
        Follow().step(torch.ones(3), told(anchor_N), OuterState())
