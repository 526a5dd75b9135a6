"""One batch of a head, from its first micro-batch to the last replica that has counted it. Data; decides nothing."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from decentral.pipeline.ledger import Ledger
from decentral.pipeline.packets import Hop, Packet
from decentral.types import PeerId


@dataclass(slots=True)
class Came:
    """Something that came back for a micro-batch."""

    packet: Packet
    values: Tensor
    backward: bool


@dataclass(slots=True)
class Failure:
    """A micro-batch that goes no further."""

    index: int
    attempt: int
    culprit: PeerId | None
    reason: str


@dataclass(slots=True)
class Batch:
    """One batch under way."""

    number: int
    step: int
    train: bool
    ledger: Ledger
    data: Sequence[tuple[Tensor, Tensor]]
    """Inputs and targets of every micro-batch."""
    came: "asyncio.Queue[Came | Failure]" = field(default_factory=asyncio.Queue)
    sent_at: dict[int, float] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    counted_output: set[int] = field(default_factory=set)
    """Micro-batches whose gradient the output layer has counted, and below the embedding."""
    counted_embedding: set[int] = field(default_factory=set)
    seen: set[tuple[int, int, bool]] = field(default_factory=set)
    """Index, attempt and direction of all that came: a transport may deliver twice."""
    lost_at: dict[PeerId, int] = field(default_factory=dict)
    """The last record of those that were lost, by its number: who is heard of anew is alive."""
    troubles: Counter[int] = field(default_factory=Counter)
    """Failures by micro-batch that were no loss of a replica."""
    refusals: Counter[PeerId] = field(default_factory=Counter)
    """Packets in a row that a replica which lives has not taken."""
    paused_until: float = 0.0
    """Nothing is sent before: somebody lives and does not take what comes."""
    confirmed: dict[Hop, tuple[int, ...]] = field(default_factory=dict)
    """Shares that are counted: who has one is lost only if it dies, else it would be counted elsewhere as well."""
    counted: bool = False
    """The head's own weights have taken the step."""
    spoilt: bool = False
    """Something in it is not finite or cannot be computed; once it is counted, that comes too late."""

    @property
    def loss(self) -> float:
        """Mean over the micro-batches."""
        return math.nan if self.spoilt else sum(self.losses.values()) / max(1, len(self.losses))
