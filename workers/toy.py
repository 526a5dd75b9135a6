"""A task that trains in milliseconds, for tests and demonstrations of the swarm: ``decentral.workers.toy:build``.

The model is a vector that estimates a hidden one from noisy observations, by plain SGD on the squared error. Its best
possible loss is 0, known without running it, and a step costs next to nothing at any size.

Legend: M = values in the model, B = observations of a step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decentral.errors import ConfigError, IncapableError
from decentral.ports.trainer import Seat, Size, StepReport
from decentral.workers.settings import read, require, write


@dataclass(frozen=True, slots=True)
class ToySettings:
    """Size and speed of the toy."""

    numel: int = 1000
    num_layers: int = 4
    """Parameters that the values are spread over, named ``layers.0.weight`` and so on."""
    observations: int = 8
    learning_rate: float = 0.05
    noise: float = 0.5
    """Standard deviation of one observed value; that of the hidden ones is 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range with a ``ConfigError``."""
        for key in ("numel", "num_layers", "observations"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        if self.numel < self.num_layers:
            raise ConfigError(f"numel is {self.numel}", hint=f"Each of the {self.num_layers} layers needs a value.")
        require(0 < self.learning_rate <= 1, "learning_rate", self.learning_rate, "above 0 and at most 1")
        require(0 <= self.noise < math.inf, "noise", self.noise, "at least 0")


class ToyTrainer:
    """``w <- w - learning_rate * (w - mean of B observations of the hidden vector)``, starting from zero."""

    def __init__(self, settings: ToySettings, seat: Seat) -> None:
        self._settings = settings
        self._hidden_M = torch.randn(settings.numel, generator=torch.Generator().manual_seed(seat.run_seed))
        self._weight_M = torch.zeros(settings.numel)
        self._stream_seed = seat.stream_seed

    def parameters(self) -> Mapping[str, Tensor]:
        """The vector in ``num_layers`` consecutive pieces that share memory with it."""
        pieces = self._weight_M.tensor_split(self._settings.num_layers)
        return {f"layers.{index}.weight": piece for index, piece in enumerate(pieces)}

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named pieces."""
        mine = self.parameters()
        for name, value in parameters.items():
            mine[name].copy_(value)

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing: plain SGD has no state, and the noise goes by the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``state_dict``."""

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take ``count`` steps; the noise of a step is a function of the worker's seed and the step."""
        settings = self._settings
        loss_sum = grad_norm_sum = 0.0
        for step in range(first_step, first_step + count):
            random = np.random.default_rng((self._stream_seed, step))
            # The mean of B observations, drawn at once.
            std = settings.noise / math.sqrt(settings.observations)
            noise_M = torch.from_numpy(random.standard_normal(settings.numel, dtype=np.float32)).mul_(std)
            gradient_M = self._weight_M - (self._hidden_M + noise_M)
            loss_sum += gradient_M.square().mean().item() / 2
            grad_norm_sum += gradient_M.norm().item()
            self._weight_M.sub_(gradient_M, alpha=settings.learning_rate)
        tokens = count * settings.observations
        return StepReport(tokens=tokens, loss=loss_sum / count, grad_norm=grad_norm_sum / count)

    def validate(self) -> float:
        """Half the mean squared distance to the hidden vector."""
        return (self._weight_M - self._hidden_M).square().mean().item() / 2


def build(settings: Mapping[str, Any], seat: Seat) -> ToyTrainer:
    """Make the trainer of one worker. Raises ``ConfigError`` for an unknown setting or one out of range."""
    return ToyTrainer(read(ToySettings, settings), seat)


def defaults() -> dict[str, Any]:
    """All settings with their defaults."""
    return resolve({})


def resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with every default filled in."""
    return write(read(ToySettings, settings))


def check(settings: Mapping[str, Any], device: str) -> None:
    """Raise ``IncapableError`` for any device but the CPU, the only one the toy runs on."""
    read(ToySettings, settings)
    if device != "cpu":
        raise IncapableError(f"the toy task runs on the CPU, not on {device!r}", hint="Use --device cpu.")


def size(settings: Mapping[str, Any]) -> Size:
    """How large the vector is; its tokens are observations."""
    toy = read(ToySettings, settings)
    return Size(toy.numel, toy.num_layers, toy.observations)
