"""The toy task at a visible pace: ``tests.process.paced:build``. The end of a run can be brought on by a file.

A test decides by itself when a run goes on to its end, instead of guessing how long a busy machine takes.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decentral.ports.trainer import Seat, StepReport
from decentral.workers import toy


class PacedTrainer(toy.ToyTrainer):
    """Takes ``step_s`` seconds for a step, until the file ``hurry`` exists."""

    def __init__(self, settings: toy.ToySettings, seat: Seat, step_s: float, hurry: Path) -> None:
        super().__init__(settings, seat)
        self._step_s = step_s
        self._hurry = hurry

    def train_steps(self, first_step: int, count: int) -> StepReport:
        if not self._hurry.exists():
            time.sleep(self._step_s * count)
        return super().train_steps(first_step, count)


def build(settings: Mapping[str, Any], seat: Seat) -> PacedTrainer:
    rest = dict(settings)
    step_s, hurry = float(rest.pop("step_s")), Path(rest.pop("hurry"))
    return PacedTrainer(toy.ToySettings(**rest), seat, step_s, hurry)


def check(settings: Mapping[str, Any], device: str) -> None:
    toy.check({}, device)
