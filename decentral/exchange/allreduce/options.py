"""What all members agree on about the all-reduce: what is made of their contributions, and for whom to wait."""

from dataclasses import dataclass
from enum import StrEnum

from decentral.exchange.allreduce.participants import Quorum


class Mean(StrEnum):
    """What becomes of the members' contributions."""

    MEMBERS = "members"
    """Their weighted mean."""
    SENDERS = "senders"
    """Value by value the mean of those who sent it (see ``Contributions.mean``)."""
    RADIAL = "rda"
    """Tensor by tensor the members' mean norm along their mean direction (see ``merge.radial_directional``)."""


@dataclass(frozen=True, slots=True)
class AllReduceOptions:
    """One mean that all members get."""

    mean: Mean = Mean.MEMBERS
    keep_rest: bool = True
    """Whether a reducer adds what the codec left out of a mean to its next one."""
    quorum: Quorum | None = None
    """How many members make a round; ``None`` for everybody worth waiting for."""
