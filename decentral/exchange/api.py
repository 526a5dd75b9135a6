"""What goes into an exchange and what comes out. Expected failure is a value: ``Aborted``, never an exception."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from torch import Tensor

from decentral.exchange.bounds import Kind
from decentral.exchange.offences import Avoidance
from decentral.exchange.progress import Progress
from decentral.outer.rule import Mixed
from decentral.types import PeerId, SyncKey


class Excuse(StrEnum):
    """Why a worker listens only; the text is for people."""

    NOT_FINITE = "the parameters were not finite; went back to the anchor"
    FORGOTTEN = "listens once: what the others count of this worker was lost"
    UNSOUND = "what it brought was many times too long to be a contribution; its machine may be broken: reloads"


@dataclass(frozen=True, slots=True)
class Base:
    """The anchor and outer state that a worker's pseudo-gradient was taken against. Legend: N = values in the fragment.

    An all-reduce compares it by its digest; in gossip, and with a server, the anchor itself is mixed or answered to.
    """

    digest: str
    """Of both."""
    anchor_N: Tensor
    """Float32 on CPU."""
    num_steps: int = 0
    """Outer steps behind it."""
    counted: tuple[PeerId, ...] = ()
    """The members that the outer state counts (see ``outer.ef21``)."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a worker brings to a round. Legend: N = values in the fragment."""

    delta_N: Tensor
    """Pseudo-gradient (anchor minus local parameters) with what feedback adds to it; float32 on CPU, finite."""
    weight: float
    """Tokens behind it; 0 to listen only: nothing is brought, the mean is received."""
    base: Base
    """What ``delta_N`` was taken against."""
    relative_N: Tensor | None = None
    """In place of ``delta_N`` if the members of the round are just those that the base counts; see ``outer.ef21``."""
    num_inner_steps: int = 0
    """Inner steps behind it."""
    slack_s: float = math.inf
    """For so long the worker can train on before it needs to know who is in the round (see ``gathering.Quorum``)."""
    excuse: Excuse | None = None
    """Why there is nothing to bring."""


class Reason(StrEnum):
    """Why an exchange was aborted; shown in status and journal."""

    BEHIND = "behind"
    """The swarm has finished this round without us: repair, then go on with the current one."""
    OUT_OF_SYNC = "out-of-sync"
    """Our anchor differs from the one most members hold: repair."""
    ALONE = "alone"
    """Nobody else could be reached though the roster names others."""
    DEADLINE = "deadline"
    """The round did not finish in time; the anchor is unchanged."""
    REFUSED = "refused"
    """Our contribution was refused (not finite, wrong size)."""
    UNSOUND = "unsound"
    """What we brought ourselves was none: repair (see ``engine.judge``)."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """No result. Anchor and residual stay; the work stays in the local parameters and enters the next round."""

    reason: Reason
    detail: str = ""
    """For people: who, what, how long."""
    source: PeerId | None = None
    """Where to repair from, if the reason calls for a repair."""
    uncertain: bool = False
    """Whether others may have counted our part all the same: it was sent, and we lost whoever could tell."""


@dataclass(frozen=True, slots=True)
class Met:
    """Whom a worker met in a round of gossip."""

    partners: tuple[PeerId, ...] = ()
    """The others of its group; empty if it took the step alone."""
    spread: float = math.nan
    """RMS of the difference of two replicas' anchors over the RMS of the anchor, as this swap shows it."""
    deadline_s: float = math.nan
    """The longest that it would have waited, as it had set itself; NaN if it waits for nobody or knows nobody."""
    unconfirmed: tuple[PeerId, ...] = ()
    """Peers that may have counted a swap with this worker which this one did not, or the other way round."""
    avoided: tuple[Avoidance, ...] = ()
    """Peers that broke the rules too often and are kept away from as of now."""


@dataclass(frozen=True, slots=True)
class Restrained:
    """A member whose contribution did not count as it was brought."""

    peer: PeerId
    kind: Kind
    ratio: float
    """The most in any shard; see ``bounds.Finding``."""
    share: float
    """Of the fragment's values, that were in shards in which this was so."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a round ended for one worker: who was in, who was not, why, and what it cost."""

    outcome: Mixed | Aborted
    sent_N: Tensor | None = None
    """Our contribution as the others decoded it; ``None`` if we sent none."""
    absent: tuple[tuple[PeerId, str], ...] = ()
    """Peers that were known but not in, each with the reason."""
    waiting_s: float = 0.0
    """Time spent waiting for other members."""
    transfer_s: float = 0.0
    """Time spent moving and reducing values."""
    missed: bool = False
    """Whether the participants were named without us and we have got what came of it afterwards."""
    met: Met | None = None
    """In gossip."""
    restrained: tuple[Restrained, ...] = ()
    """Who was bounded, as the reducers say."""


@dataclass(frozen=True, slots=True)
class Onward:
    """Where a worker goes on once nothing of its own is on its way."""

    round: int | None = None
    """The round that others are in by now; ``None`` to go on with the next one."""
    due_in_s: float = math.nan
    """In how many seconds of inner steps the next sync should be, as somebody else is ready for it then; NaN for when
    the plan says."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What an exchange goes on from when a worker comes back and nobody else lives; what it has of others is not in it.

    Legend: N = values in the fragment.
    """

    tensors: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    """By role and fragment: float32 [N] on the CPU, never changed in place."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON."""


class Exchange(ABC):
    """One way of mixing.

    Args:
        progress: how far this worker is.
    """

    has_common_anchor: ClassVar[bool] = True
    """Whether members hold the same anchor after a round: then they wait for each other and compare digests, whoever is
    late catches up, and whoever holds another one repairs. Else every worker has an anchor and rounds of its own."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    @abstractmethod
    async def start(self) -> None:
        """Begin to serve other members."""

    @abstractmethod
    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        """Mix ``mine`` with the other members' contributions; ends within the exchange's own deadline."""

    def adopted(self, fragment: int, base: str, anchor_N: Tensor) -> None:  # noqa: B027
        """The fragment has a new anchor: what of it can travel before the next round may set out now."""

    def onward(self) -> Onward:
        """Where to go on, asked after a sync when no other one is on its way."""
        return Onward()

    def steps_to_skip(self, left: int, lead: int, own_pace_s: float, paces_s: Callable[[], Sequence[float]]) -> int:
        """How many of the inner steps to leave out that are left before the next launch.

        Args:
            left: so many there are.
            lead: so many its donor was ahead of a newcomer. It goes on at the donor's step: else it would be late with
                every launch from now on.
            own_pace_s: seconds this worker takes for a round's steps, 0 if it does not know yet.
            paces_s: tells the same of the others.
        """
        return lead

    def memory(self) -> Memory:
        """What to go on from; without an await, so that it is of one moment with everything else of a worker."""
        return Memory()

    def remember(self, memory: Memory, anchors_N: Sequence[Tensor]) -> None:  # noqa: B027
        """Go on from the memory of an earlier life before anything else; or from none, when nothing is on its way.

        Args:
            memory: of the same options; empty to begin anew.
            anchors_N: of this worker, by fragment.
        """

    async def run(self) -> None:  # noqa: B027
        """What goes on beside the rounds, if anything does, until cancelled."""
