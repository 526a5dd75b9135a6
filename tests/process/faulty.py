"""The toy task with a fault: ``tests.process.faulty:build``. The file ``fault`` in the data's folder brings it on."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from decentral.ports.trainer import Seat, StepReport
from decentral.workers import toy
from tests.process.paced import PacedTrainer


class FaultyTrainer(PacedTrainer):
    """Reads what to do wrong from a file, once it is there."""

    def __init__(self, settings: toy.ToySettings, seat: Seat, step_s: float, fault: Path) -> None:
        super().__init__(settings, seat, step_s, hurry=fault.with_name("hurry"))
        self._fault = fault

    def train_steps(self, first_step: int, count: int) -> Any:
        report = super().train_steps(first_step, count)
        fault = self._fault.read_text() if self._fault.exists() else ""
        return getattr(self, f"_{fault}")(report) if fault else report

    def _raises(self, report: StepReport) -> StepReport:
        raise ValueError("the data are upside down")

    def _ends(self, report: StepReport) -> StepReport:
        return next(iter([]))

    def _exits(self, report: StepReport) -> StepReport:
        sys.exit(7)

    def _hangs(self, report: StepReport) -> StepReport:
        time.sleep(3600)
        return report

    def _out_of_memory(self, report: StepReport) -> StepReport:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def _returns_nothing(self, report: StepReport) -> None:
        return None

    def _loss_is_none(self, report: StepReport) -> StepReport:
        return StepReport(report.tokens, None, 0.0)  # type: ignore[arg-type]

    def _loss_is_a_tensor(self, report: StepReport) -> StepReport:
        return StepReport(report.tokens, torch.tensor(report.loss), 0.0)  # type: ignore[arg-type]

    def _tokens_are_nan(self, report: StepReport) -> StepReport:
        return StepReport(float("nan"), report.loss, 0.0)  # type: ignore[arg-type]

    def _tokens_are_negative(self, report: StepReport) -> StepReport:
        return StepReport(-5, report.loss, 0.0)


def build(settings: Mapping[str, Any], seat: Seat) -> FaultyTrainer:
    """As large as in ``command.founding``: another task than the swarm's gets none of its settings."""
    folder = Path(seat.data[0])
    return FaultyTrainer(toy.ToySettings(numel=20_000), seat, step_s=0.05, fault=folder / "fault")
