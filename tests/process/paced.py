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
    """Takes ``step_s`` seconds for a step, until the file ``hurry`` exists; is ten times as large after each of
    the eight steps from ``explodes`` on."""

    def __init__(self, settings: toy.ToySettings, seat: Seat, step_s: float, hurry: Path, explodes: int = -8) -> None:
        super().__init__(settings, seat)
        self._explodes = explodes
        self._step_s = step_s
        self._hurry = hurry

    def train_steps(self, first_step: int, count: int) -> StepReport:
        if not self._hurry.exists():
            time.sleep(self._step_s * count)
        report = super().train_steps(first_step, count)
        if self._explodes <= first_step < self._explodes + 8:
            self._weight_M.mul_(10)
        return report


def build(settings: Mapping[str, Any], seat: Seat) -> PacedTrainer:
    rest = dict(settings)
    explodes = int(rest.pop("explodes", -8))
    step_s, hurry = float(rest.pop("step_s")), Path(rest.pop("hurry"))
    return PacedTrainer(toy.ToySettings(**rest), seat, step_s, hurry, explodes)


def check(settings: Mapping[str, Any], device: str) -> None:
    toy.check({}, device)
