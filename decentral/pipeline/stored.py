"""The step from which a pipeline goes on when nobody holds any stage: what is on whose disk, and what follows. Pure.

Checkpoints are told apart by their blocks, whatever the cut was when they were written: a stage of now has one of its
own, or is cut out of those that together have its blocks. Every member comes to the same answer from the same
inventories, so nobody has to decide for the others.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.monitor.stages import name_of
from decentral.swarm.message import Message, Text
from decentral.types import Count, PeerId

#: Blocks [first, stop).
Span = tuple[int, int]

#: A head has no blocks.
HEAD: Span = (0, 0)
#: Joins what names a checkpoint of the whole model, in place of the digest of a stage's.
OF_WHOLE = "/"
#: Checkpoints in an inventory: those that a spare keeps of all stages of the longest pipeline are fewer.
_MAX_STORED = 4096


class Stored(Message, frozen=True, order=True):
    """One checkpoint of one stage."""

    first: Count
    stop: Count
    """It has the blocks [first, stop); that of a head has none."""
    step: Count
    """Inner steps behind it."""
    digest: Text
    """Of weights and outer state; of what is cut out of a whole model's, that one's name (``OF_WHOLE``)."""
    own: bool
    """Whether the stage was this member's; else it keeps it for whoever had it."""

    @property
    def span(self) -> Span:
        """Its blocks."""
        return self.first, self.stop

    @property
    def is_cut_out(self) -> bool:
        """Whether it is a part of a checkpoint of the whole model, so that what is loaded has another digest."""
        return OF_WHOLE in self.digest


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
class Part:
    """A checkpoint that a stage is made of, by itself or with others."""

    stored: Stored
    peers: tuple[PeerId, ...]
    """Who has it."""


@dataclass(frozen=True, slots=True)
class AtHand:
    """The newest that those who are there have of a stage."""

    parts: tuple[Part, ...] = ()
    age: int | None = None
    """By how many steps it is behind the run, or ahead of it; ``None`` if there is nothing. 0 only at the very step
    from which the run goes on: at any other one disks may have what was given up."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where the run goes on."""

    step: int
    takes: Mapping[PeerId, frozenset[int]]
    """Stages that members are to take: those that were theirs at this step, the same state where several have one;
    and each that is to be cut out of others', by whoever has most of it."""
    cuts: frozenset[int] = frozenset()
    """Stages that are cut out of others'."""
    reserve: Mapping[int, PeerId] = field(default_factory=dict)
    """Of these, as there are too few members, those that nobody takes: who takes each as well if nobody else comes."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """Why it cannot go on."""

    step: int
    """The newest step at which the fewest stages are missing."""
    stages: frozenset[int]
    """Those that nobody has a checkpoint of at that step."""
    blocks: tuple[int, ...] = ()
    """What is missing of stages of which there is a part, or which lie in one with others."""

    def __str__(self) -> str:
        named = [name_of(stage) for stage in sorted(self.stages) if not (stage and self.blocks)]
        what = ", ".join([*named, *(f"block {block}" for block in self.blocks)])
        return f"nobody here has a checkpoint of {what}" + (f" at step {self.step}" if self.step else "")


def span_of(names: Iterable[str], path: str = "blocks") -> Span:
    """The blocks that parameters of these names are of, those behind ``{path}.{i}.``; those of a head for none."""
    block = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    numbers = [int(found[1]) for each in names if (found := block.match(each))]
    return (min(numbers), max(numbers) + 1) if numbers else HEAD


def parts_of(inventories: Mapping[PeerId, Sequence[Stored]], span: Span, step: int) -> tuple[Part, ...]:
    """What a stage with these blocks is made of at a step, in order; nothing if not all of it is there.

    A checkpoint of just these blocks is all there is to it.

    Args:
        inventories: of all who are there.
        span: of the stage, or ``HEAD``.
        step: inner steps behind it.
    """
    return _cover(_chosen(inventories, step), span)


def newest_of(inventories: Mapping[PeerId, Sequence[Stored]], span: Span, step: int) -> tuple[Part, ...]:
    """What a stage with these blocks is made of at the newest step up to ``step``, else at the newest."""
    steps = {one.step for stored in inventories.values() for one in stored}
    found = (parts_of(inventories, span, each) for each in sorted(steps, key=lambda each: (each > step, -each)))
    return next((parts for parts in found if parts), ())


def start_of(
    inventories: Mapping[PeerId, Sequence[Stored]], spans: Sequence[Span], origin: int = 0, num_replicas: int = 0
) -> Start | Lacking:
    """The newest step at which all stages can be had.

    Of different states of one stage at that step, that counts which most members have who held the stage.

    Args:
        inventories: of all who are there.
        spans: of the head and all stages, as the run is cut now.
        origin: the step from which somebody goes on already, who knew of all that this takes; 0 for nobody.
        num_replicas: how many members are to take a stage that is cut out of others', if there are so many; 0 for all.
    """
    steps = {origin} if origin else {one.step for stored in inventories.values() for one in stored}
    chosen = {step: _chosen(inventories, step) for step in steps}
    found = {step: [_cover(parts, span) for span in spans] for step, parts in chosen.items()}
    step = max(found, key=lambda step: (sum(map(bool, found[step])), step), default=0)
    covers = found.get(step, [()] * len(spans))
    missing = frozenset(stage for stage, parts in enumerate(covers) if not parts)
    if missing and not origin:
        there = {block for span in chosen.get(step, ()) for block in range(*span)}
        gone = [block for stage in missing for block in range(*spans[stage]) if block not in there]
        as_now = chosen.get(step, {}).keys() <= set(spans)
        return Lacking(step, missing, () if as_now else tuple(sorted(gone)))
    own = {
        stage: parts for stage, parts in enumerate(covers) if len(parts) == 1 and parts[0].stored.span == spans[stage]
    }
    takes = {
        peer: frozenset(stage for stage, (part,) in own.items() if part.stored.own and peer in part.peers)
        for peer in inventories
    }
    cuts = {stage: parts for stage, parts in enumerate(covers) if parts and stage not in own}
    takes, reserve = _dealt(takes, cuts, spans, num_replicas)
    return Start(step, takes, frozenset(cuts), reserve)


def _chosen(inventories: Mapping[PeerId, Sequence[Stored]], step: int) -> dict[Span, Part]:
    """Of the checkpoints of the same blocks at a step the one that counts, with all who have it."""
    holders: dict[Stored, list[PeerId]] = {}
    for peer, stored in inventories.items():
        for one in {one for one in stored if one.step == step}:
            holders.setdefault(one, []).append(peer)
    best = sorted(holders, key=lambda one: (one.own, len(holders[one]), one.digest))
    return {one.span: Part(one, tuple(sorted(holders[one]))) for one in best}


def _cover(parts: Mapping[Span, Part], span: Span) -> tuple[Part, ...]:
    if span in parts or span == HEAD:
        return (parts[span],) if span in parts else ()
    return tuple([parts[each] for each in _chain(parts, span)])


def _chain(spans: Collection[Span], wanted: Span) -> tuple[Span, ...]:
    """The fewest of the spans that cover the wanted one, each beginning where the one before it ends; none for none."""
    first, stop = wanted
    chains: list[tuple[Span, ...]] = [(span,) for span in sorted(spans) if span[0] <= first < span[1]]
    while chains:
        if whole := [chain for chain in chains if chain[-1][1] >= stop]:
            return whole[0]
        ends = {chain[-1][1]: chain for chain in reversed(chains)}
        chains = [(*ends[span[0]], span) for span in sorted(spans) if span[0] in ends]
    return ()


def _dealt(
    own: Mapping[PeerId, frozenset[int]], cuts: Mapping[int, Sequence[Part]], spans: Sequence[Span], num_replicas: int
) -> tuple[dict[PeerId, frozenset[int]], dict[int, PeerId]]:
    """What members take besides what they have, and what they take as well if nobody else comes.

    Whoever has stages of the old cut takes as many as these are, and one that is alone takes all; each takes what it
    has most of. Who has nothing comes to the rest as to any stage that is lost.
    """
    takes, reserve = dict(own), dict[int, PeerId]()
    parts = {part.stored: part for each in cuts.values() for part in each}.values()
    had = {peer: sum(peer in part.peers for part in parts) for peer in own}
    left = {peer: len(cuts) if len(own) == 1 else had[peer] for peer in own}

    def overlap(peer: PeerId, stage: int) -> int:
        first, stop = spans[stage]
        mine = [part.stored.span for part in cuts[stage] if peer in part.peers]
        return sum(min(stop, high) - max(first, low) for low, high in mine)

    for number in range(num_replicas or len(own)):
        waiting = set(cuts)
        while waiting:
            pairs = [
                (overlap(peer, s), s, peer) for s in waiting for peer in own if left[peer] and s not in takes[peer]
            ]
            # Beyond the first holder of each, nobody takes what it would have to fetch as a whole.
            pairs = [pair for pair in pairs if number == 0 or pair[0]]
            if not pairs:
                break
            _, stage, peer = min(pairs, key=lambda pair: (-pair[0], *pair[1:]))
            takes[peer] |= {stage}
            left[peer] -= 1
            waiting.remove(stage)
        if waiting and number == 0:
            for stage in waiting:
                _, reserve[stage] = min((-overlap(peer, stage), peer) for peer in own)
            break
    return takes, reserve
