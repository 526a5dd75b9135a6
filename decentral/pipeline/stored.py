"""The step from which a pipeline goes on when nobody holds any stage: what is on whose disk, and what follows. Pure.

Every member comes to the same answer from the same inventories, so nobody has to decide for the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.swarm.message import Message, Text
from decentral.types import Count, PeerId

#: Checkpoints in an inventory: those that a spare keeps of all stages of the longest pipeline are fewer.
_MAX_STORED = 4096


class Stored(Message, frozen=True, order=True):
    """One checkpoint of one stage."""

    stage: Count
    step: Count
    """Inner steps behind it."""
    digest: Text
    """Of weights and outer state."""
    full: bool
    """Whether it has more than weights: the inner optimizer, and where in its data a head is."""


class Inventory(Message, frozen=True):
    """What a member says of its disk."""

    what: ClassVar[str] = "inventory"
    max_bytes: ClassVar[int] = 1 << 19
    holds: bool
    """Whether it holds stages of a run that goes on, or is about to."""
    origin: Count
    """The step from which the run goes on, if it was brought back and this member takes part; else 0."""
    stored: Annotated[tuple[Stored, ...], Meta(max_length=_MAX_STORED)]


@dataclass(frozen=True, slots=True)
class Start:
    """Where the run goes on."""

    step: int
    full: Mapping[PeerId, frozenset[int]]
    """Stages that members have in full at this step, the same state where several have one."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """Why it cannot go on."""

    step: int
    """The newest step at which the fewest stages are missing."""
    stages: frozenset[int]
    """Those that nobody has a checkpoint of at that step."""

    def __str__(self) -> str:
        named = ", ".join("the head" if stage == 0 else f"stage {stage}" for stage in sorted(self.stages))
        return f"nobody here has a checkpoint of {named}" + (f" at step {self.step}" if self.step else "")


def start_of(inventories: Mapping[PeerId, Sequence[Stored]], num_stages: int, origin: int = 0) -> Start | Lacking:
    """The newest step at which somebody has every stage, be it the weights alone.

    Of different states of one stage at that step, that counts which most members have in full.

    Args:
        inventories: of all who are there.
        num_stages: without the head.
        origin: the step from which somebody goes on already, who knew of all that this takes; 0 for nobody.
    """
    stages = frozenset(range(num_stages + 1))
    covered: dict[int, set[int]] = {}
    for stored in inventories.values():
        for one in stored:
            covered.setdefault(one.step, set()).add(one.stage)
    step = origin or max(covered, key=lambda step: (len(covered[step] & stages), step), default=0)
    missing = stages - covered.get(step, set())
    if missing and not origin:
        return Lacking(step, missing)
    votes = {stage: Counter[str]() for stage in stages}
    for stored in inventories.values():
        for one in {one for one in stored if one.step == step and one.full and one.stage in stages}:
            votes[one.stage][one.digest] += 1
    chosen = {stage: max(found, key=lambda digest: (found[digest], digest)) for stage, found in votes.items() if found}
    full = {
        peer: frozenset(
            one.stage for one in stored if one.step == step and one.full and one.digest == chosen.get(one.stage)
        )
        for peer, stored in inventories.items()
    }
    return Start(step, full)
