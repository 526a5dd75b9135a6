"""A training loop of its own in a swarm, and the same model as a task: ``tests.process.loop:build``.

    python -m tests.process.loop FOLDER [ADDRESS]

Slow until the file ``hurry`` is in the folder above; leaves when the file ``leave`` is in its own.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import decentral
from decentral.ports.trainer import Seat, StepReport

_LIVELY = {
    "method.inner_steps": 4,
    "timing.beat_s": 0.5,
    "timing.ttl_s": 3.0,
    "timing.min_patience_s": 3.0,
    "run.rounds": 80,
}
_STEP_S = 0.3


def make_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))


def take_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, stream: torch.Generator) -> Tensor:
    x = torch.randn(64, 8, generator=stream)
    loss: Tensor = (model(x) - x.sum(dim=1, keepdim=True).sin()).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def pause(folder: Path) -> None:
    if not (folder.parent / "hurry").exists():
        time.sleep(_STEP_S)


class LoopTrainer:
    """The model of the loop for a worker of the command line."""

    def __init__(self, seat: Seat) -> None:
        self._model = make_model()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=0.01)
        self._stream = torch.Generator().manual_seed(seat.stream_seed)
        self._folder = Path(seat.data[0])

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: value.detach() for name, value in self._model.named_parameters()}

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        mine = dict(self._model.named_parameters())
        for name, value in parameters.items():
            mine[name].copy_(value)

    def train_steps(self, first_step: int, count: int) -> StepReport:
        pause(self._folder)
        loss = take_step(self._model, self._optimizer, self._stream)
        return StepReport(tokens=64, loss=loss.item(), grad_norm=0.0)

    def validate(self) -> float:
        return float("nan")


def build(settings: Mapping[str, Any], seat: Seat) -> LoopTrainer:
    return LoopTrainer(seat)


def main(folder: Path, address: str | None) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    here = {"worker.host": "127.0.0.1"}
    with (
        decentral.join(address, model, optimizer=optimizer, settings=here, out=folder)
        if address
        else decentral.found(model, optimizer=optimizer, settings=here | _LIVELY, out=folder)
    ) as swarm:
        print(f"others join with {swarm.address}", flush=True)
        stream = torch.Generator().manual_seed(swarm.seed)
        while not swarm.done and not (folder / "leave").exists():
            loss = take_step(model, optimizer, stream)
            pause(folder)
            swarm.step(loss=loss, tokens=64)
        average = swarm.average()
        if swarm.done:
            assert all(torch.equal(average[name], value) for name, value in model.named_parameters())
    print(swarm.state, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:] or [None]))
