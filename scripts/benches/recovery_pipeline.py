"""A pipeline of the language model in one process, whose stages are lost and brought back as a plan says.

Stages and head are the ones of ``decentral.pipeline``; what is done about a lost stage is decided and computed there
too. Only the peers are missing: activations are handed over as they are. Knows nothing of methods compared or of costs.
"""

import copy
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decentral.pipeline.cut import Healing
from decentral.pipeline.recovery import Norm, Source, blend, decide, lr_scale
from decentral.pipeline.routing import stage_order
from decentral.ports.trainer import Seat
from decentral.tensors.layout import Layout
from decentral.workers import lm
from scripts.benches.lib.stages import Stages

NUM_STAGES = 6
#: Constant learning rate after the warm-up and a clip of 1, as in the paper; width, context and batch are ours.
TASK: dict[str, Any] = {
    "model": {"d_model": 32, "num_layers": NUM_STAGES, "num_heads": 2, "context": 32},
    "optimizer": {"learning_rate": 6e-3, "floor_fraction": 1.0, "clip_norm": 1.0},
    "batch_sequences": 8,
}
VALIDATION_SEQUENCES = 128
#: What the authors' code copies although it has two neighbours.
_TWINS = {2: 1, NUM_STAGES - 1: NUM_STAGES}


@dataclass(frozen=True)
class Plan:
    """One run."""

    healing: Healing
    """With ``"checkfree+"`` half of a batch goes in swapped order; with ``"checkpoint"`` a failure rolls all back."""
    boost: float = 1.1
    boost_steps: int = 100
    norm: Norm = "l2"
    checkpoint_every: int = 0
    """Iterations from one checkpoint to the next; only with ``"checkpoint"``."""
    copies: bool = False
    """Whether the second and the last but one stage are copies of their neighbours too, as in the authors' code."""
    task: dict[str, Any] = field(default_factory=lambda: TASK)


@dataclass(frozen=True)
class Lost:
    """A lost stage and what became of it."""

    iteration: int
    stage: int
    source: str
    before: float
    """Validation loss of the iteration before."""
    after: float
    """With the stage restored."""


def draw_failures(
    seed: int, num_iterations: int, probability: float, stages: Set[int], num_stages: int = NUM_STAGES
) -> list[tuple[int, ...]]:
    """Which stages are lost at the start of each iteration: with ``probability`` each, never two neighbours at once.

    The draws for a seed are the same for all probabilities and lengths, so that what is lost at 5 % is lost at 10 %
    too, and all methods lose the same stages at the same iterations. Nothing is lost before the first step.
    """
    draws: NDArray[np.float64] = np.random.default_rng((seed, 7)).random((num_iterations, num_stages))
    failures: list[tuple[int, ...]] = []
    for iteration, row in enumerate(draws):
        lost: list[int] = []
        for stage in sorted(stages):
            if iteration and row[stage - 1] < probability and stage - 1 not in lost:
                lost.append(stage)
        failures.append(tuple(lost))
    return failures


class Pipeline(Stages):
    """All stages of a run.

    Args:
        plan: what is done about failures.
        seed: of weights and data.
        data: files; empty for the standard library's sources.
    """

    def __init__(self, plan: Plan, seed: int, data: tuple[str, ...] = ()) -> None:
        swap = plan.healing == "checkfree+"
        # Both halves are one batch of the corpus: without swaps they can as well be computed at once.
        orders = [stage_order(NUM_STAGES, index, swap=swap) for index in range(2 if swap else 1)]
        self._plan = plan
        seat = Seat(run_seed=seed, stream_seed=seed, total_steps=10**9, data=data)
        super().__init__(lm.blocks(plan.task, seat, len(orders)), NUM_STAGES, plan.healing, orders)
        large = {**plan.task, "batch_sequences": VALIDATION_SEQUENCES, "val_batches": 1}
        self._held_out = lm.blocks(large, seat, 1).data().held_out(0)
        self.norms = dict.fromkeys(self.stages, 1.0)
        """Of each stage's last gradient, after clipping."""
        self._healed: dict[int, int] = {}
        self.step = 0
        self._stored = self._state()

    def train(self) -> float:
        """One iteration; its loss."""
        losses = self.learn(self.step)
        self.head.apply([0], len(losses), self.step)
        for stage, part in self.stages.items():
            healed = self._healed.get(stage)
            scale = lr_scale(None if healed is None else self.step - healed, self._plan.boost, self._plan.boost_steps)
            norm = part.apply([0], len(losses), self.step, scale)
            self.norms[stage] = min(norm, self.blocks.clip_norm)
        self.step += 1
        if self._plan.checkpoint_every and self.step % self._plan.checkpoint_every == 0:
            self._stored = self._state()
        return math.fsum(losses) / len(losses)

    def validate(self) -> float:
        """Mean loss on held-out windows that are the same in all runs, with the stages in their order."""
        return self.loss(*self._held_out)

    def restore(self, lost: Sequence[int]) -> Source:
        """Bring stages back that were lost at once; where the last came from."""
        alive = set(range(NUM_STAGES + 1)) - set(lost)
        age = self.step % self._plan.checkpoint_every if self._plan.checkpoint_every else None
        source = Source.NOTHING
        for stage in lost:
            recovery = decide(
                stage,
                num_stages=NUM_STAGES,
                alive=alive,
                healing=self._plan.healing,
                started=self.step > 0,
                kept=frozenset(),
                step=self.step,
                age=age,
            )
            if recovery.source == Source.CHECKPOINT:
                self._load(self._stored)
                return recovery.source
            source, donors = recovery.source, recovery.stages
            if self._plan.copies and stage in _TWINS and _TWINS[stage] in alive:
                source, donors = Source.COPY, (_TWINS[stage],)
            self._heal(stage, source, donors)
        return source

    def _heal(self, stage: int, source: Source, donors: Sequence[int]) -> None:
        flats = []
        for donor in donors:
            parameters = self.stages[donor].parameters()
            flats.append(Layout.of(parameters).gather(parameters, 0))
        if source == Source.BLEND:
            [below_N, above_N], (below, above) = flats, donors
            made = blend(below_N, above_N, self.norms[below], self.norms[above], self._plan.norm)
        elif source == Source.COPY:
            [made] = flats
        else:
            raise AssertionError(f"stage {stage} is to come from {source}")
        fresh = self.fresh(stage)
        fresh.load(Layout.of(fresh.parameters()).scatter(made, 0))
        self.stages[stage] = fresh
        self._healed[stage] = self.step

    def _state(self) -> tuple[Any, ...]:
        return copy.deepcopy((self.head, self.stages, self.norms, self._healed, self.step))

    def _load(self, state: tuple[Any, ...]) -> None:
        self.head, self.stages, self.norms, self._healed, self.step = copy.deepcopy(state)


@dataclass(frozen=True)
class Run:
    """What came out of a plan."""

    losses: list[float]
    """Validation loss before the first iteration and after every ``every`` of them."""
    steps: list[int]
    """Steps that the weights had behind them then: fewer than iterations where some were rolled back."""
    lost: list[Lost]
    norms: list[float]
    """Mean norm of each stage's gradient after clipping."""


def play(
    plan: Plan,
    seed: int,
    failures: Sequence[Sequence[int]],
    every: int,
    data: tuple[str, ...] = (),
) -> Run:
    """Train for as many iterations as ``failures`` has entries, on one thread.

    Args:
        plan: the run.
        seed: of weights and data.
        failures: stages that are lost at the start of each iteration.
        every: iterations from one validation to the next.
        data: files; empty for the standard library's sources.
    """
    torch.set_num_threads(1)
    pipeline = Pipeline(plan, seed, data)
    curve, steps = [pipeline.validate()], [0]
    lost: list[Lost] = []
    norms = np.zeros(NUM_STAGES)
    for iteration, stages in enumerate(failures):
        if stages:
            before = pipeline.validate()
            source = pipeline.restore(stages)
            after = pipeline.validate()
            lost.extend(Lost(iteration, stage, source, before, after) for stage in stages)
        pipeline.train()
        norms += list(pipeline.norms.values())
        if (iteration + 1) % every == 0:
            curve.append(pipeline.validate())
            steps.append(pipeline.step)
    return Run(curve, steps, lost, (norms / len(failures)).tolist())
