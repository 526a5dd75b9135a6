"""Who does what in a round: pure functions of plain records, the same on every worker that is given the same.

Order comes from rendezvous hashing (Thaler and Ravishankar 1998): every peer gets a score for the round from a hash,
so work rotates between peers and the loss of one moves only that one's part.
"""

import functools
import itertools
import operator
import statistics
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from decentral.swarm.presence import Presence
from decentral.types import PeerId, SyncKey


@functools.lru_cache(maxsize=1024)
def rendezvous(purpose: str, key: SyncKey, peers: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """``peers`` in the order of their scores for ``purpose`` in round ``key``."""

    def score(peer: PeerId) -> bytes:
        return blake2b(f"{purpose}/{key.round}/{key.fragment}/{peer}".encode(), digest_size=16).digest()

    return tuple(sorted(peers, key=score))


def chairs(members: Sequence[Presence], key: SyncKey) -> Iterator[PeerId]:
    """Candidates for calling the roll of ``key``, best first: by seniority, rendezvous order among equals.

    Two peers who each think that they chair would call two rolls. What workers know of each other differs most about
    newcomers, so these come last; seniority is a number in the signed record, so all who know a record agree on it.
    """
    by_seniority = operator.attrgetter("since")
    for _, equals in itertools.groupby(sorted(members, key=by_seniority), key=by_seniority):
        yield from rendezvous("chair", key, tuple([p.peer for p in equals]))


def reducers(members: tuple[PeerId, ...], key: SyncKey, num_shards: int) -> tuple[PeerId, ...]:
    """The one reducer of each shard, for members of a roll."""
    return rendezvous("reduce", key, members)[:num_shards]


def evaluator(members: tuple[PeerId, ...], key: SyncKey) -> PeerId:
    """The member that measures the validation loss after ``key``, so that only one pays for it."""
    return rendezvous("evaluate", key, members)[0]


def shards(numel: int, num_members: int, *, min_values: int, align: int) -> tuple[tuple[int, int], ...]:
    """Cut ``numel`` values into ranges [start, stop), one for each reducer.

    No more shards than members, none (but the last) shorter than ``min_values``, all starts multiples of ``align`` so
    that blocks of a codec never straddle two reducers.
    """
    count = max(1, min(num_members, numel // min_values))
    step = -(-numel // count)
    step = max(1, -(-step // align)) * align
    return tuple((start, min(start + step, numel)) for start in range(0, max(numel, 1), step))


def stragglers(members: Sequence[Presence], patience_factor: float, min_patience_s: float = 0.0) -> frozenset[PeerId]:
    """Members whose last stretch took more than ``1 + patience_factor`` times the median: nobody waits for them.

    Whoever is late by no more than ``min_patience_s`` is none: the pace of a round of milliseconds is mostly noise.

    They take part in the round that is open when they arrive. Members that have not finished a stretch yet have no
    known pace and are waited for.
    """
    paces = [p.round_s for p in members if p.round_s > 0]
    if len(paces) < 2:
        return frozenset()
    median_s = statistics.median_low(paces)
    limit_s = median_s + max(patience_factor * median_s, min_patience_s)
    return frozenset(p.peer for p in members if p.round_s > limit_s)
