"""Where the loop of a stage is in the run's data, as it is kept beside the inner optimizer. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

#: Under which it lies in the state of a stage's trainer.
POSITION = "position"

_Count = Annotated[int, Meta(ge=0)]


class Position(msgspec.Struct, frozen=True):
    """Of a head, slot and batch; of a stage, the rest."""

    slot: _Count = 0
    """Which part of the data the head draws."""
    batch: _Count = 0
    """The next one it draws."""
    committed: dict[int, int] = {}
    """The last batch of each slot that is part of the stage's weights."""
    healed_at: int | None = None
    """The step at which the stage was made of its neighbours; ``None`` if it never was."""
    grad_norm: float = math.nan
    """Of the last mean gradient."""
    loss: float = math.nan
    """Of the last batch, nats per token."""

    def to_plain(self) -> dict[str, Any]:
        """As plain values."""
        return msgspec.structs.asdict(self)

    @staticmethod
    def joined(positions: Sequence["Position"]) -> "Position":
        """That of a stage whose blocks come from several, which have all taken the same steps.

        A learning rate that one of them was to have raised is raised for all. The norm of their common gradient is not
        known before the next step.
        """
        committed: dict[int, int] = {}
        for slot, batch in (item for position in positions for item in position.committed.items()):
            committed[slot] = max(batch, committed.get(slot, batch))
        healed = [position.healed_at for position in positions if position.healed_at is not None]
        return msgspec.structs.replace(
            positions[0], committed=committed, healed_at=max(healed, default=None), grad_norm=math.nan
        )

    @staticmethod
    def of(trainer: Mapping[str, Any]) -> "Position":
        """That in the state of a stage's trainer; the beginning if there is none.

        Raises:
            ValueError: it is not what this release writes.
        """
        return msgspec.convert(trainer.get(POSITION, {}), Position)
