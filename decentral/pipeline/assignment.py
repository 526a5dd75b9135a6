"""Who holds which stage: pure functions of what members say of themselves, the same on all who see the same members."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from decentral.swarm.matching import rendezvous
from decentral.types import PeerId, SyncKey


@dataclass(frozen=True, slots=True)
class Member:
    """What a member says of itself. A spare holds and takes nothing."""

    peer: PeerId
    holds: frozenset[int]
    """Stages that it serves, the head as 0."""
    takes: frozenset[int]
    """Stages that it is about to serve."""
    stored: frozenset[int]
    """Stages of which it has a checkpoint."""
    queue: int
    """Micro-batches that wait at it."""
    unfit: frozenset[int] = frozenset()
    """Stages that it cannot hold."""


def neediest(members: Sequence[Member], num_stages: int, num_replicas: int) -> int | None:
    """The stage that a joiner should take.

    That with the fewest members who hold or take it; among these the one with the most micro-batches waiting at them;
    then the lowest, the head before all others.

    Args:
        members: without the joiner.
        num_stages: without the head.
        num_replicas: of each stage and the head; 0 for no limit.

    Returns:
        The stage, or ``None`` if each has as many replicas as it should: the joiner waits as a spare.

    Source: rebalancing by queue length in SWARM (arXiv 2301.11913). Differences: a joiner is placed and nobody moves;
    what a stage lacks in replicas comes before its queue.
    """
    held = {stage: [m for m in members if stage in m.holds | m.takes] for stage in range(num_stages + 1)}
    wanting = [stage for stage, holders in held.items() if not num_replicas or len(holders) < num_replicas]
    return min(wanting, key=lambda stage: (len(held[stage]), -sum(m.queue for m in held[stage])), default=None)


def appointed(members: Sequence[Member], lost: Sequence[int]) -> dict[int, PeerId]:
    """Who takes each lost stage.

    Whoever takes it already; else a spare, at first one with a checkpoint of it; else a holder of stages that all have
    other holders, a head only if there is no other such, and at first one whose stages have most of them. It gives
    these up, so that no stage loses its last holder. Among equals the stage's rendezvous order decides. Apart from what
    they take already, each is appointed to one stage at most, and nobody to one that it cannot hold.

    Args:
        members: those who live, in any order.
        lost: stages without a live holder, in any order.

    Returns:
        Peer by stage; stages for which there is nobody are left out and wait for a joiner.
    """
    chosen: dict[int, PeerId] = {}
    holders = Counter(stage for m in members for stage in m.holds)
    spares = [m for m in members if not m.holds and not m.takes]
    movable = [m for m in members if m.holds and not m.takes]

    def appoint(stage: int, candidates: Iterable[Member]) -> bool:
        fit = tuple(m.peer for m in candidates if stage not in m.unfit)
        if order := rendezvous(f"take {stage}", SyncKey(0, 0), fit):
            chosen[stage] = order[0]
        return bool(order)

    def free(group: Iterable[Member]) -> list[Member]:
        return [m for m in group if m.peer not in chosen.values()]

    waiting = [s for s in sorted(set(lost)) if not appoint(s, (m for m in members if s in m.takes))]
    waiting = [s for s in waiting if not appoint(s, (m for m in free(spares) if s in m.stored))]
    waiting = [s for s in waiting if not appoint(s, free(spares))]
    for stage in waiting:
        # A head that goes while a stage is lost leaves the batch that it is committing uncounted there.
        ranks = {m: (0 not in m.holds, min(holders[s] for s in m.holds) - 1) for m in free(movable)}
        ranks = {m: rank for m, rank in ranks.items() if rank[1] and stage not in m.unfit}
        best = max(ranks.values(), default=None)
        if appoint(stage, (m for m, rank in ranks.items() if rank == best)):
            holders.subtract(next(m.holds for m in movable if m.peer == chosen[stage]))
    return chosen
