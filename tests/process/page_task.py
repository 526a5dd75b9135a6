"""Tasks for ``decentral worker`` beside the programs of the adapters' pages: ``tests.process.page_task:transformers``.

They make the page's own model, and train it towards zero, whatever it is.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decentral.ports.trainer import Seat, StepReport
from tests.process.program import STEP_S
from tests.support.pages import PAGES, before_the_swarm


class Shrinking:
    """Trains a module by weight decay alone."""

    def __init__(self, model: nn.Module, hurry: Path) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # No larger than what others bring, or it is put out as a broken machine.
        self._optimizer = torch.optim.SGD(self._parameters.values(), lr=0.002)
        self._hurry = hurry

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach() for name, p in self._parameters.items()}

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        for name, value in parameters.items():
            self._parameters[name].copy_(value)

    def train_steps(self, first_step: int, count: int) -> StepReport:
        for _ in range(count):
            if not self._hurry.exists():
                time.sleep(STEP_S)
            loss = sum((p.square().sum() for p in self._parameters.values()), torch.zeros(()))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return StepReport(tokens=512 * count, loss=loss.item(), grad_norm=0.0)

    def validate(self) -> float:
        return float("nan")


def _build(page: str, seat: Seat) -> Shrinking:
    names: dict[str, Any] = {"__name__": "page"}
    exec(before_the_swarm(page), names)
    return Shrinking(names[PAGES[page]], Path(seat.data[0]))


def transformers(settings: Mapping[str, Any], seat: Seat) -> Shrinking:
    return _build("transformers", seat)


def lightning(settings: Mapping[str, Any], seat: Seat) -> Shrinking:
    return _build("lightning", seat)


def accelerate(settings: Mapping[str, Any], seat: Seat) -> Shrinking:
    return _build("accelerate", seat)
