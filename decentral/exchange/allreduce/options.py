"""What all members agree on about the all-reduce: what is made of their contributions, and for whom to wait."""

import functools
from dataclasses import dataclass
from enum import StrEnum

from decentral.exchange.allreduce.participants import Quorum
from decentral.exchange.robust import RobustMerge, centred_clipping, median, nearest, trimmed_mean


class Merge(StrEnum):
    """What becomes of the members' contributions."""

    MEMBERS = "members"
    """Their weighted mean."""
    SENDERS = "senders"
    """Value by value the mean of those who sent it (see ``Contributions.mean``)."""
    RADIAL = "rda"
    """Tensor by tensor the members' mean norm along their mean direction (see ``merge.radial_directional``)."""
    MEDIAN = "median"
    """Coordinate by coordinate the median, as of ``robust``, like the next three."""
    TRIMMED = "trimmed"
    CENTRED = "centred"
    NEAREST = "nearest"


@dataclass(frozen=True, slots=True)
class AllReduceOptions:
    """One mean that all members get."""

    merge: Merge = Merge.MEMBERS
    keep_rest: bool = True
    """Whether a reducer adds what the codec left out of a mean to its next one."""
    quorum: Quorum | None = None
    """How many members make a round; ``None`` for everybody worth waiting for."""
    bound: float = 2.5
    """See ``Wire``; 2.5 is the configuration's default as well."""
    audits: float = 0.1
    """So many shards of a round members do over, all together, on average; with 0 nobody signs anything. As in the
    configuration."""
    num_liars: int = 0
    """So many members may bring anything; of ``Merge.TRIMMED`` and ``Merge.NEAREST``."""

    @property
    def robust(self) -> RobustMerge | None:
        """What is made of contributions in place of a mean, if anything is."""
        match self.merge:
            case Merge.MEDIAN:
                return median
            case Merge.TRIMMED:
                return functools.partial(trimmed_mean, num_liars=self.num_liars)
            case Merge.CENTRED:
                return centred_clipping
            case Merge.NEAREST:
                return functools.partial(nearest, num_liars=self.num_liars)
        return None
