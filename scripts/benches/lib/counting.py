"""A trainer whose inner steps can be told from each other in any anchor: what was counted twice, or lost, is read off.

Every step of every worker has a place of its own in the model, and adds 1 there, wherever the parameters stand. Whoever
adds up pseudo-gradients (a server that takes each in as it is, an all-reduce with ``ADD_UP``) then has in every place
how often that step was counted. Knows trainers and anchors, not who exchanges them.

Legend: T = tensors, so that fragments count for themselves, W = workers, S = steps of a worker in all its lives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from decentral.exchange.allreduce.options import AllReduceOptions, Merge
from decentral.exchange.server.options import ServerOptions
from decentral.outer.diloco import DiLoCo
from decentral.outer.follow import Follow
from decentral.ports.trainer import StepReport
from decentral.sim.scenario import Scenario
from decentral.sim.trainer import ToyProblem, ToyTrainer

#: A place belongs to one worker, so the mean over those who sent it is what that worker did.
ADD_UP: Mapping[str, Any] = {"rule": DiLoCo(lr=1.0, momentum=0.0), "mixing": AllReduceOptions(Merge.SENDERS)}
#: A server that takes in every pseudo-gradient as it is.
ADD_UP_AT_SERVERS: Mapping[str, Any] = {
    "rule": Follow(),
    "mixing": ServerOptions(lr=1.0, momentum=0.0, every=1, dylu=False),
}


class CountingTrainer(ToyTrainer):
    """Adds 1 to the next place of a worker in each tensor with every inner step."""

    def __init__(self, problem: "CountingProblem", worker: int, charge: Callable[[float], None], step_s: float) -> None:
        super().__init__(problem, problem.goal, charge, step_s, None)
        self._counting = problem
        self._worker = worker

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` steps.

        Raises:
            ValueError: there are more than can be told apart.
        """
        self._charge(self._step_s * count)
        first = self._counting.taken[self._worker]
        if first + count > self._counting.most_steps:
            raise ValueError(f"worker {self._worker} takes more than {self._counting.most_steps} steps")
        self._counting.taken[self._worker] += count
        for value in self.parameters().values():
            value.view(-1, self._counting.most_steps)[self._worker, first : first + count] += 1
        return StepReport(tokens=count, loss=0.0, grad_norm=0.0)


@dataclass(frozen=True)
class CountingProblem(ToyProblem):
    """What they are to learn does not matter."""

    most_steps: int = 0
    """S."""
    taken: dict[int, int] = field(default_factory=dict)
    """Steps that each worker took, in all its lives."""

    def __post_init__(self) -> None:
        self.taken.update(dict.fromkeys(range(self.num_workers), 0))

    def _made(self, worker: int, *given: Any) -> ToyTrainer:
        _, charge, step_s, _ = given  # nothing becomes NaN
        return CountingTrainer(self, worker, charge, step_s)


@dataclass(frozen=True)
class Counting(Scenario):
    """A swarm of counting trainers."""

    most_steps: int = 800
    """S."""

    @cached_property
    def problem(self) -> CountingProblem:
        """Who counts."""
        num_values = self.num_tensors * self.num_workers * self.most_steps
        return CountingProblem(
            self.seed, self.num_workers, num_values=num_values, num_tensors=self.num_tensors, most_steps=self.most_steps
        )

    @property
    def taken(self) -> Mapping[int, int]:
        """Steps that each worker took, in all its lives."""
        return self.problem.taken

    def places(self, anchors: Mapping[str, Tensor]) -> Tensor:
        """How often each step is in an anchor [T, W, S]."""
        shape = self.num_workers, self.most_steps
        return torch.stack([anchors[name].view(shape) for name in sorted(anchors)])

    def counted(self, anchors: Mapping[str, Tensor]) -> Tensor:
        """How many steps of each worker are in an anchor [T, W]."""
        return self.places(anchors).sum(2).round()
