"""The task of ``command.founding`` in a process that gives whoever asks for its state anchors of the other sign."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decentral.ports.trainer import Seat
from decentral.state.download.donor import Donor
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.workers import toy
from tests.process.paced import PacedTrainer


def build(settings: Mapping[str, Any], seat: Seat) -> PacedTrainer:
    """As large as in ``command.founding``: another task than the swarm's gets none of its settings."""
    offer = Donor._offer

    async def poisoned(self: Donor, snapshot: Snapshot) -> Any:
        fragments = [FragmentState.of(each.round, -each.anchor_N, each.outer) for each in snapshot.fragments]
        return await offer(self, Snapshot(snapshot.step, tuple(fragments)))

    Donor._offer = poisoned  # type: ignore[method-assign]
    hurry = Path(seat.data[0]) / "hurry"
    return PacedTrainer(toy.ToySettings(numel=20_000), seat, step_s=0.05, hurry=hurry)
