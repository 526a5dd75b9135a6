"""A trainer whose steps can be told from each other in any anchor: what was counted twice, or lost, can be read off."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from decentral.engine.options import Outcome
from decentral.exchange.server.options import ServerOptions
from decentral.outer.follow import Follow
from decentral.ports.trainer import StepReport
from decentral.sim.scenario import Scenario
from decentral.sim.trainer import ToyProblem, ToyTrainer

#: A server that adds up what workers have done: every pseudo-gradient is taken in as it is.
ADD_UP = {"rule": Follow(), "mixing": ServerOptions(lr=1.0, momentum=0.0, every=1, dylu=False)}
_TENSORS = 3


class CountingTrainer(ToyTrainer):
    """Worker i adds 1 to value i of each of three tensors with every inner step, wherever these stand."""

    number: int
    taken: dict[int, int]

    def train_steps(self, first_step: int, count: int) -> StepReport:
        self._charge(self._step_s * count)
        self.taken[self.number] += count
        for value in self.parameters().values():
            value[self.number] += count
        return StepReport(tokens=count, loss=0.0, grad_norm=0.0)


class CountingProblem(ToyProblem):
    """What they are to learn does not matter."""

    taken: dict[int, int]

    def trainer(
        self,
        worker: int,
        charge: Callable[[float], None] = lambda seconds: None,
        *,
        step_s: float = 0.0,
        nan_at_step: int | None = None,
    ) -> ToyTrainer:
        trainer = super().trainer(worker, charge, step_s=step_s)
        trainer.__class__ = CountingTrainer
        assert isinstance(trainer, CountingTrainer)
        trainer.number, trainer.taken = worker, self.taken
        return trainer


@dataclass(frozen=True)
class Counting(Scenario):
    """A swarm of counting trainers."""

    taken: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Inner steps that each worker took, in all its lives."""

    @cached_property
    def problem(self) -> ToyProblem:
        problem = CountingProblem(self.seed, self.num_workers, num_values=_TENSORS * self.num_workers)
        object.__setattr__(problem, "taken", self.taken)
        return problem


def counted(outcome: Outcome) -> Tensor:
    """How often each worker's steps are in an anchor, for each tensor [_TENSORS, workers]."""
    anchors: Mapping[str, Tensor] = outcome.anchors
    return torch.stack([anchors[f"layers.{number}"] for number in range(_TENSORS)])
