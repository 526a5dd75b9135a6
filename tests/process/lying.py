"""The task of ``command.founding`` in a process whose answers as a reducer are means times three, and signed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from decentral.exchange.allreduce.reducer import Reducer
from decentral.ports.trainer import Seat
from decentral.workers import toy
from tests.process.paced import PacedTrainer


def build(settings: Mapping[str, Any], seat: Seat) -> PacedTrainer:
    """As large as in ``command.founding``: another task than the swarm's gets none of its settings."""
    encode = Reducer._encode

    def lying(self: Reducer, mean_S: Tensor, rest_S: Tensor | None, seed: int) -> tuple[bytes, Tensor | None]:
        return encode(self, 3 * mean_S, rest_S, seed)

    Reducer._encode = lying  # type: ignore[method-assign]
    hurry = Path(seat.data[0]) / "hurry"
    return PacedTrainer(toy.ToySettings(numel=20_000), seat, step_s=0.05, hurry=hurry)
