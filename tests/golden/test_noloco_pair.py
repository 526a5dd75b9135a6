"""One outer step of a pair, with the values of a public implementation's fixture (devesh1011/dromeus).

Inputs are the fixture's: two replicas with anchors, local parameters and momenta of their own. The results are computed
from the rule, alpha = 0.5 and beta = gamma = 0.7, by hand.
"""

import pytest
import torch

from decentral.outer.noloco import NoLoCo
from decentral.outer.rule import Mixed, OuterState
from decentral.types import PeerId

ANCHORS = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.5]])
LOCALS = torch.tensor([[0.6, -1.0, 0.25], [2.4, -0.5, -0.75]])
MOMENTA = torch.tensor([[0.2, -0.4, 0.1], [-0.3, 0.6, -0.2]])
NEXT_MOMENTA = [[0.45, 0.675, -0.475], [-1.2, -0.225, 0.775]]
NEXT_ANCHORS = [[1.45, -1.325, 0.025], [1.8, -0.225, -0.725]]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_pair_takes_the_step_of_the_fixture(rank: int) -> None:
    mixed = Mixed((ANCHORS - LOCALS).mean(0), (PeerId("0"), PeerId("1")), anchor_N=ANCHORS.mean(0))
    rule = NoLoCo(lr=0.7, momentum=0.5, gamma=0.7)
    anchor_N, state = rule.step(ANCHORS[rank], mixed, OuterState((MOMENTA[rank],), num_steps=2))
    assert anchor_N.tolist() == pytest.approx(NEXT_ANCHORS[rank], abs=1e-6)
    assert state.buffers_N[0].tolist() == pytest.approx(NEXT_MOMENTA[rank], abs=1e-6)
    assert state.num_steps == 3
