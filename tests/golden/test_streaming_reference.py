"""Streaming DiLoCo and eager updates against plain loops in double precision, written from the papers' formulas.

The references know nothing of this package: not its schedule, not its rules, not its blending. Replicas differ in every
inner step. Compared are the pure parts, driven as by an engine, and the production engine on the simulator.
"""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral.outer.blend import blend
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.rule import Mixed
from decentral.schedule.plan import SyncPlan
from decentral.types import PeerId, SyncKey
from tests.golden.engines import Engines, Values, Watched

LAYER = 3
"""Values in a layer."""


@dataclass(frozen=True)
class Case:
    """What is compared. Layer l is in fragment l mod P."""

    seed: int
    inner_steps: int
    fragments: int
    delay: int
    alpha: float
    lr: float
    momentum: float
    workers: int
    rounds: int
    more_layers: int

    @property
    def layers(self) -> int:
        return self.fragments + self.more_layers

    @property
    def steps(self) -> int:
        return self.rounds * self.inner_steps

    def draw(self, *shape: int) -> Values:
        return np.random.default_rng([self.seed, *shape]).standard_normal(shape)

    @property
    def first(self) -> Values:
        return self.draw(self.layers, LAYER).astype(np.float32).astype(np.float64)

    def step(self, t: int, worker: int, theta: Values) -> Values:
        """Towards a goal of the worker's own, from noisy gradients: everything before is in what comes after."""
        goal = self.draw(self.workers, self.layers, LAYER)[worker]
        noise = np.random.default_rng([self.seed, t, worker]).standard_normal(theta.shape)
        moved: Values = theta - 0.1 * (theta - goal) + 0.05 * noise
        return moved

    @property
    def plan(self) -> SyncPlan:
        return SyncPlan(self.inner_steps, self.fragments, self.delay)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    inner_steps = draw(st.integers(1, 12))
    fragments = draw(st.integers(1, min(4, inner_steps)))
    return Case(
        seed=draw(st.integers(0, 2**31)),
        inner_steps=inner_steps,
        fragments=fragments,
        delay=draw(st.integers(0, inner_steps // fragments - 1)),
        alpha=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        lr=draw(st.floats(0.1, 1.0)),
        momentum=draw(st.floats(0, 0.9)),
        workers=draw(st.integers(1, 3)),
        rounds=draw(st.integers(1, 4)),
        more_layers=draw(st.integers(0, 2)),
    )


class Reference:
    """Local parameters [worker, layer, N] after every step, and anchors [layer, N]."""

    def __init__(self, case: Case) -> None:
        self.local: dict[int, Values] = {}
        self.anchors: dict[int, Values] = {}
        self._case = case
        self._theta = np.stack([case.first] * case.workers)
        self._phi = case.first.copy()
        self._buffer = np.zeros_like(self._phi)

    def streaming(self) -> "Reference":
        """Algorithm 2 of Streaming DiLoCo: a fragment is sent at its phase t_p and received tau steps later."""
        case, sent = self._case, {}
        for t in range(1, case.steps + 1):
            self._inner(t)
            for p in range(case.fragments):
                of_p = slice(p, None, case.fragments)
                phase = (p + 1) * case.inner_steps // case.fragments - case.delay
                if (t - phase) % case.inner_steps == 0:
                    sent[p] = [self._phi[of_p] - theta[of_p] for theta in self._theta]
                if (t - phase - case.delay) % case.inner_steps == 0 and p in sent:
                    self._outer(of_p, sum(sent.pop(p)) / case.workers)
                    for theta in self._theta:
                        theta[of_p] = case.alpha * theta[of_p] + (1 - case.alpha) * self._phi[of_p]
            self._record(t)
        return self

    def eager(self) -> "Reference":
        """Eager updates: the last round's mean with the own part replaced, on anchors and buffers of each worker."""
        case = self._case
        phi = self._theta.copy()
        buffer, before = np.zeros_like(phi), np.zeros_like(phi)
        for t in range(1, case.steps + 1):
            self._inner(t)
            for p in range(case.fragments):
                of_p = slice(p, None, case.fragments)
                if (t - (p + 1) * case.inner_steps // case.fragments) % case.inner_steps:
                    continue
                fresh, mean = phi[:, of_p] - self._theta[:, of_p], before[:, of_p].mean(axis=0)
                for i in range(case.workers):
                    gradient = mean + (fresh[i] - before[i, of_p]) / case.workers
                    buffer[i, of_p] = case.momentum * buffer[i, of_p] + gradient
                    phi[i, of_p] -= case.lr * (gradient + case.momentum * buffer[i, of_p])
                before[:, of_p] = fresh
                self._theta[:, of_p] = phi[:, of_p]
                # What everybody agrees on once the round is over.
                self._outer(of_p, fresh.mean(axis=0))
            self._record(t)
        return self

    def _inner(self, t: int) -> None:
        for i, theta in enumerate(self._theta):
            theta[:] = self._case.step(t, i, theta)

    def _outer(self, of_p: slice, mean: Values) -> None:
        self._buffer[of_p] = self._case.momentum * self._buffer[of_p] + mean
        self._phi[of_p] -= self._case.lr * (mean + self._case.momentum * self._buffer[of_p])

    def _record(self, t: int) -> None:
        self.local[t], self.anchors[t] = self._theta.copy(), self._phi.copy()


def close(found: Values, expected: Values, what: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=what)


@given(case=cases())
def test_pure_parts(case: Case) -> None:
    """The plan, the rule and the blend, as an engine puts them together, with results that are never late."""
    expected = Reference(case).streaming()
    rule, plan = DiLoCo(case.lr, case.momentum), case.plan
    local = [torch.from_numpy(case.first).float() for _ in range(case.workers)]
    parts = [slice(p, None, case.fragments) for p in range(case.fragments)]
    anchors = [local[0][of_p].clone() for of_p in parts]
    states = [rule.init(anchor_N) for anchor_N in anchors]
    launches = {plan.launch_step(SyncKey(k, p)): p for k in range(case.rounds) for p in range(case.fragments)}
    assert len(launches) == case.rounds * case.fragments
    means = {}
    for t in range(1, case.steps + 1):
        local = [torch.from_numpy(case.step(t, i, theta.double().numpy())).float() for i, theta in enumerate(local)]
        if t in launches:
            p = launches[t]
            means[p] = torch.stack([anchors[p] - theta[parts[p]] for theta in local]).mean(0)
        if t - case.delay in launches:
            p = launches[t - case.delay]
            mixed = Mixed(means.pop(p), (PeerId("a"),))
            anchors[p], states[p] = rule.step(anchors[p], mixed, states[p])
            for theta in local:
                theta[parts[p]] = blend(theta[parts[p]], anchors[p], case.alpha)
        close(torch.stack(local).double().numpy(), expected.local[t], f"local parameters after step {t}")
        for of_p, anchor_N in zip(parts, anchors, strict=True):
            close(anchor_N.double().numpy(), expected.anchors[t][of_p], f"anchors after step {t}")
    assert means == {}


def check_engines(engines: Engines, case: Case, expected: Reference) -> list[Watched]:
    """Local parameters after every step, and the anchors where all fragments have landed."""
    workers = engines.play()
    assert len(workers) == case.workers
    for i, worker in enumerate(workers):
        assert list(worker.local) == list(range(1, case.steps + 1))
        for t, theta in worker.local.items():
            close(theta, expected.local[t][i], f"local parameters of worker {i} after step {t}")
        close(worker.anchors[case.steps], expected.anchors[case.steps], f"anchors of worker {i} in the end")
    return workers


@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_streaming_engine(case: Case) -> None:
    rule = DiLoCo(case.lr, case.momentum)
    engines = Engines(case.workers, case.rounds, case.plan, rule, case.first, case.step, {"mix_alpha": case.alpha})
    expected = Reference(case).streaming()
    for worker in check_engines(engines, case, expected):
        for t in range(case.inner_steps, case.steps + 1, case.inner_steps):
            close(worker.anchors[t], expected.anchors[t], f"anchors after step {t}")


@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_eager_engine(case: Case) -> None:
    rule, plan = DiLoCo(case.lr, case.momentum), SyncPlan(case.inner_steps, case.fragments)
    eager = {"eager": Eager(case.lr, case.momentum)}
    engines = Engines(case.workers, case.rounds, plan, rule, case.first, case.step, eager)
    check_engines(engines, case, Reference(case).eager())
