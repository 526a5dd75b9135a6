"""How a worker gets on in the run."""

import math
from dataclasses import dataclass

from decentral.ports.trainer import StepReport


@dataclass(slots=True)
class Stretch:
    """Inner steps between two launches."""

    steps: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def add(self, report: StepReport, steps: int, seconds: float) -> None:
        """More of them."""
        self.steps += steps
        self.tokens += report.tokens
        if report.tokens:  # else there is no loss either, and NaN would spoil the others'
            self.loss_sum += report.loss * report.tokens
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean training loss per token."""
        return self.loss_sum / self.tokens if self.tokens else math.nan
