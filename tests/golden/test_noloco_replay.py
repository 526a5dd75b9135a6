"""Production gossip against the paper's update, written as a plain loop in double precision, with its bounds on.

Everybody begins alike, so replicas part before they are pulled together again: whoever takes the first distances for
the usual ones clips honest partners.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from decentral.codecs.codec import make_codec
from decentral.exchange.gossip.options import GossipOptions
from decentral.outer.noloco import NoLoCo
from decentral.schedule.plan import SyncPlan
from decentral.sim.world import peer_id
from decentral.types import SyncKey
from tests.golden.engines import Engines
from tests.support.groups import groups

Values = NDArray[np.float64]

WORKERS, ROUNDS, H, N = 4, 16, 3, 6
ALPHA, BETA, GAMMA = 0.5, 0.7, 0.7
PEERS = tuple(peer_id(number) for number in range(WORKERS))
FP32 = make_codec("fp32")


@dataclass(frozen=True)
class Problem:
    """Quadratics of very different scales, and gradients with noise: distances between replicas vary a lot."""

    seed: int

    def first(self) -> Values:
        return self._random(0, 0).standard_normal((2, N))

    def step(self, step: int, worker: int, layers: Values) -> Values:
        curvature = np.exp(self._random(1, 0).normal(-2.5, 0.8, (2, N)))
        optimum = self._random(2, worker).standard_normal((2, N))
        noise = self._random(3, worker * 1000 + step).standard_normal((2, N))
        return layers - curvature * (layers - optimum) - 0.05 * noise

    def _random(self, what: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, what, number])


def paper(problem: Problem) -> list[Values]:
    """The anchors of all workers after the last round, by equations 1 to 3 (see ``outer.noloco`` for signs)."""
    anchors, momenta = [problem.first()] * WORKERS, [np.zeros((2, N))] * WORKERS
    for round_ in range(ROUNDS):
        deltas = []
        for worker in range(WORKERS):
            local = anchors[worker]
            for step in range(round_ * H + 1, round_ * H + H + 1):
                local = problem.step(step, worker, local)
            deltas.append(anchors[worker] - local)
        before = list(anchors)
        for group in groups(PEERS, SyncKey(round_, 0), 2):
            members = [PEERS.index(peer) for peer in group]
            mean = sum(deltas[i] for i in members) / len(members)
            middle = sum(before[i] for i in members) / len(members)
            for i in members:
                momenta[i] = ALPHA * momenta[i] - BETA * mean - GAMMA * (before[i] - middle)
                anchors[i] = before[i] + momenta[i]
    return anchors


@pytest.mark.parametrize(
    ("seed", "bound"),
    [(0, 0.0), (0, 5.0), (1, 5.0), *(pytest.param(seed, 5.0, marks=pytest.mark.slow) for seed in range(2, 10))],
)
def test_production_gossip_is_the_papers_update(seed: int, bound: float) -> None:
    problem = Problem(seed)
    rule = NoLoCo(BETA, ALPHA, GAMMA)
    mixing = GossipOptions(FP32, FP32, bound=bound)
    played = Engines(WORKERS, ROUNDS, SyncPlan(H), rule, problem.first(), problem.step, {"mixing": mixing}).play()
    for watched, expected in zip(played, paper(problem), strict=True):
        last = watched.anchors[max(watched.anchors)]
        np.testing.assert_allclose(last, expected, rtol=0, atol=2e-5)
