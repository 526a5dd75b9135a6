"""A trainer that costs next to nothing and whose best parameters are known.

Legend: N = values. Worker ``i`` minimises ``|x_N - optimum_i_N|^2 / 2`` by plain gradient descent, whose ``k`` steps
shrink the distance by ``(1 - inner_lr)^k`` and are taken at once. The optima of a problem's workers average exactly to
its goal, so a swarm that mixes well ends at the goal, and a worker alone does not.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decentral.ports.trainer import StepReport, Trainer

Values = NDArray[np.float32]


@dataclass(frozen=True)
class ToyProblem:
    """What a swarm of toy trainers learns."""

    seed: int
    num_workers: int
    num_values: int = 24
    num_tensors: int = 3
    """Tensors that the values are spread over, as evenly as possible."""
    spread: float = 0.5
    """Standard deviation of the workers' optima about the goal."""
    inner_lr: float = 0.1
    tokens_per_step: int = 32
    momentum: float = 0.0
    """Above 0 steps are taken one by one, with momentum and along noisy gradients: trainers have a state."""

    @cached_property
    def goal(self) -> Values:
        """The common optimum [N]."""
        return self._random("goal", 0).standard_normal(self.num_values, dtype=np.float32)

    @cached_property
    def _offsets(self) -> Values:
        """Each worker's optimum minus the goal [num_workers, N]; the mean over workers is 0."""
        offsets = self._random("offsets", 0).standard_normal((self.num_workers, self.num_values), dtype=np.float32)
        centred: Values = offsets - offsets.mean(axis=0)
        return np.float32(self.spread) * centred

    def trainer(
        self,
        worker: int,
        charge: Callable[[float], None] = lambda seconds: None,
        *,
        step_s: float = 0.0,
        nan_at_step: int | None = None,
    ) -> "ToyTrainer":
        """The trainer of worker number ``worker``; all begin at zero.

        Args:
            worker: counted from 0; those beyond ``num_workers`` share the optimum of an earlier one.
            charge: told the virtual time of every stretch, usually ``SimClock.charge``.
            step_s: virtual seconds of an inner step.
            nan_at_step: global step at which the parameters become NaN.
        """
        return self._made(worker, self.goal + self._offsets[worker % self.num_workers], charge, step_s, nan_at_step)

    def _made(self, worker: int, *given: Any) -> "ToyTrainer":
        """A trainer, of what all of them are given: its optimum, and what ``trainer`` was told."""
        return StatefulTrainer(worker, self, *given) if self.momentum else ToyTrainer(self, *given)

    def noise(self, worker: int, batch: int) -> Values:
        """What the gradient of a worker's batch is off by [N]."""
        return self._random(f"noise {worker}", batch).standard_normal(self.num_values, dtype=np.float32)

    def _random(self, purpose: str, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, *purpose.encode()])


@functools.cache
def _squares(shrink: float, count: int) -> float:
    """Of how far off the optimum so many steps are, each by ``shrink`` less, added up."""
    return sum(shrink ** (2 * step) for step in range(count))


class ToyTrainer:
    """The port ``Trainer`` on a toy problem; made by :meth:`ToyProblem.trainer`."""

    def __init__(
        self,
        problem: ToyProblem,
        optimum_N: Values,
        charge: Callable[[float], None],
        step_s: float,
        nan_at_step: int | None,
    ) -> None:
        self._problem = problem
        self._optimum_N = optimum_N
        self._charge = charge
        self._step_s = step_s
        self._nan_at_step = nan_at_step
        self._x_N = np.zeros(problem.num_values, dtype=np.float32)
        tensors = torch.from_numpy(self._x_N).tensor_split(problem.num_tensors)
        self._parameters = {f"layers.{number}": tensor for number, tensor in enumerate(tensors)}

    def parameters(self) -> Mapping[str, Tensor]:
        """The live values, as views: they change with every step."""
        return self._parameters

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named tensors."""
        for name, tensor in parameters.items():
            self._parameters[name].copy_(tensor)

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` steps and charge their time."""
        problem = self._problem
        gradient_N = self._x_N - self._optimum_N
        if self._nan_at_step is not None and first_step <= self._nan_at_step < first_step + count:
            gradient_N.fill(math.nan)
        shrink = 1.0 - problem.inner_lr
        mean_square = float(gradient_N @ gradient_N) * _squares(shrink, count) / count
        np.add(self._optimum_N, shrink**count * gradient_N, out=self._x_N)
        self._charge(self._step_s * count)
        return StepReport(
            tokens=problem.tokens_per_step * count,
            loss=mean_square / (2 * problem.num_values),
            grad_norm=math.sqrt(mean_square),
        )

    def validate(self) -> float:
        """Loss of the current values against the goal of all workers."""
        return float(np.mean((self._x_N - self._problem.goal) ** 2)) / 2


class StatefulTrainer(ToyTrainer):
    """One whose steps depend on those before: it has momentum, and its data goes on from where it was.

    Implements ``Stateful``: without its state a resumed worker takes other steps.
    """

    def __init__(self, worker: int, *given: Any) -> None:
        super().__init__(*given)
        self._worker = worker
        self._momentum_N = np.zeros_like(self._x_N)
        self._num_batches = 0

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` steps one by one and charge their time."""
        problem, squares = self._problem, []
        for step in range(first_step, first_step + count):
            gradient_N = self._x_N - self._optimum_N + np.float32(0.1) * problem.noise(self._worker, self._num_batches)
            if step == self._nan_at_step:
                gradient_N.fill(math.nan)
            self._num_batches += 1
            self._momentum_N = np.float32(problem.momentum) * self._momentum_N + gradient_N
            self._x_N -= np.float32(problem.inner_lr) * self._momentum_N
            squares.append(float(gradient_N @ gradient_N))
        self._charge(self._step_s * count)
        mean_square = sum(squares) / count
        return StepReport(
            tokens=problem.tokens_per_step * count,
            loss=mean_square / (2 * problem.num_values),
            grad_norm=math.sqrt(mean_square),
        )

    def state_dict(self) -> Mapping[str, Any]:
        """Momentum and the next batch."""
        return {"momentum": torch.from_numpy(self._momentum_N), "batch": self._num_batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._momentum_N, self._num_batches = state["momentum"].numpy().copy(), state["batch"]


class Charged:
    """A real trainer whose steps take virtual time, however long they take in truth.

    Args:
        trainer: takes them.
        charge: told the virtual time of every stretch, usually ``SimClock.charge``.
        step_s: virtual seconds of an inner step.
    """

    def __init__(self, trainer: Trainer, charge: Callable[[float], None], step_s: float) -> None:
        self._trainer = trainer
        self._charge = charge
        self._step_s = step_s

    def parameters(self) -> Mapping[str, Tensor]:
        """See ``Model``."""
        return self._trainer.parameters()

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """See ``Model``."""
        self._trainer.load(parameters)

    def validate(self) -> float:
        """See ``Model``."""
        return self._trainer.validate()

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` steps and charge their time."""
        self._charge(self._step_s * count)
        return self._trainer.train_steps(first_step, count)
