"""Who does what in a round: pure functions of plain records, the same on every worker that is given the same.

Order comes from rendezvous hashing (Thaler and Ravishankar 1998): every peer gets a score for the round from a hash,
so work rotates between peers and the loss of one moves only that one's part. Groups for gossip come from the same
scores.
"""

import bisect
import functools
import itertools
import operator
import statistics
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from decentral.swarm.presence import Presence
from decentral.types import PeerId, SyncKey

_SCORE_BITS = 128


@functools.lru_cache(maxsize=1024)
def rendezvous(purpose: str, key: SyncKey, peers: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """``peers`` in the order of their scores for ``purpose`` in round ``key``."""
    return tuple(peer for _, peer in _ranked(purpose, key, peers))


def _ranked(purpose: str, key: SyncKey, peers: tuple[PeerId, ...]) -> list[tuple[int, PeerId]]:
    """Score and peer, lowest score first; so many bits that no two are ever equal."""
    scores = _scores(purpose, key)
    for peer in peers:
        if peer not in scores:
            name = f"{purpose}/{key.round}/{key.fragment}/{peer}".encode()
            scores[peer] = int.from_bytes(blake2b(name, digest_size=_SCORE_BITS // 8).digest())
    return sorted([(scores[peer], peer) for peer in peers])


@functools.lru_cache(maxsize=16)
def _scores(purpose: str, key: SyncKey) -> dict[PeerId, int]:
    """Of peers that were asked about in this round: when one comes or goes the others need not be hashed again."""
    return {}


@functools.lru_cache(maxsize=256)
def groups(peers: tuple[PeerId, ...], key: SyncKey, size: int) -> tuple[tuple[PeerId, ...], ...]:
    """Random groups for ``key`` that are nearly the same for workers who see nearly the same peers.

    Scores are cut in halves by their leading bit, each half by the next bit, and so on: a binary trie. In every
    subtrie, the deepest first, a group of ``size`` is taken out as soon as there are enough who have none yet; the
    others wait for the subtrie above. Those who are left over at the root are the last group; a single one joins the
    group before as its last member, so that those who do not know it plan the same hosts.

    A peer that only some workers see changes the groups of the subtries that its own score lies in and no others, and
    each of those takes out at most one: of N peers about log2(N) groups at most. Measured with 2,048 peers in pairs:
    6 at most, 3.6 on average. Cutting a shuffled list into pieces would change half of all groups.

    Args:
        peers: distinct, in any order.
        key: the round and fragment. Over rounds all groups are equally likely.
        size: members of a group, at least 2.

    Returns:
        Groups with the members in the order of their scores, except for one that has joined: the first one is the host.
        At most one group, the last, is smaller than ``size``, or one larger. A single peer is alone only if there is
        no other.
    """
    ranked = _ranked("group", key, peers)
    formed: list[tuple[PeerId, ...]] = []
    waiting: list[tuple[int, list[PeerId]]] = []
    """Subtries from left to right with who has no group in them: each has a wider one to its right than those after."""
    for place, (score, peer) in enumerate(ranked):
        rest = [peer]
        # The first bit that differs from the next score, from the right: the subtrie that ends here is below it.
        width = (score ^ ranked[place + 1][0]).bit_length() if place + 1 < len(ranked) else _SCORE_BITS + 1
        while waiting and waiting[-1][0] < width:
            rest = waiting.pop()[1] + rest
            if len(rest) >= size:
                formed.append(tuple(rest[:size]))
                rest = rest[size:]
        waiting.append((width, rest))
    remainder = tuple(waiting[0][1]) if waiting else ()
    if len(remainder) == 1 and formed:
        formed[-1] += remainder
        remainder = ()
    return (*formed, remainder) if remainder else tuple(formed)


def middle_round(active: Sequence[Presence]) -> int:
    """The round that a slow worker catches up to: the upper median of the rounds of ``active``, one worker at least.

    As long as fewer than half of them lie, it is between the lowest and the highest round of an honest worker.
    """
    return sorted([presence.round for presence in active])[len(active) // 2]


def round_to_join(rounds: Sequence[int], runners: Sequence[Presence]) -> int | None:
    """Where nobody waits for a slow worker: the round in which it goes on, as the others are there by now.

    So its learning rate is theirs, and the run ends for it as well. A round behind is nothing: records travel.

    Args:
        rounds: in which its fragments are.
        runners: all who take part or have finished. There are none for a worker that was stopped in the middle of a
            sync: all look dead, itself included, until they are asked.

    Returns:
        The round; ``None`` to go on where it is.
    """
    if len(set(rounds)) > 1 or not runners:
        return None
    middle = middle_round(runners)
    return middle if middle > min(rounds) + 1 else None


def leaders(members: Sequence[Presence], key: SyncKey) -> Iterator[PeerId]:
    """Candidates for naming the participants of ``key``, best first: by seniority, rendezvous order among equals.

    Two peers who each think that they lead would split the round. What workers know of each other
    differs most about newcomers, so these come last; seniority is a number in the signed record, so all who know a
    record agree on it.
    """
    by_seniority = operator.attrgetter("since")
    for _, equals in itertools.groupby(sorted(members, key=by_seniority), key=by_seniority):
        # An old word, kept: another one would choose other leaders.
        yield from rendezvous("chair", key, tuple([p.peer for p in equals]))


def reducers(members: tuple[PeerId, ...], key: SyncKey, num_shards: int) -> tuple[PeerId, ...]:
    """The one reducer of each shard, for participants of a round."""
    return rendezvous("reduce", key, members)[:num_shards]


def evaluator(members: tuple[PeerId, ...], key: SyncKey) -> PeerId:
    """The member that measures the validation loss after ``key``, so that only one pays for it."""
    return rendezvous("evaluate", key, members)[0]


def shards(
    numel: int, num_members: int, *, min_values: int, align: int, uncut: tuple[tuple[int, int], ...] = ()
) -> tuple[tuple[int, int], ...]:
    """Cut ``numel`` values into ranges [start, stop), one for each reducer.

    No more shards than members, none (but the last) shorter than ``min_values``, all starts multiples of ``align`` so
    that blocks of a codec never straddle two reducers.

    Args:
        numel: at least 0.
        num_members: at least 1.
        min_values: at least 1.
        align: at least 1.
        uncut: ranges, in order and apart, that must stay in one piece. A cut that would fall into one is moved to its
            nearer end: shards are then as equal as that lets them be, perhaps fewer or shorter, and start anywhere.
    """
    count = max(1, min(num_members, numel // min_values))
    step = -(-numel // count)
    step = max(1, -(-step // align)) * align
    cuts = sorted({0} | ({_moved_out(start, uncut) for start in range(0, numel, step)} - {numel}))
    return tuple(zip(cuts, [*cuts[1:], numel], strict=True))


def _moved_out(cut: int, uncut: Sequence[tuple[int, int]]) -> int:
    """The nearest place to ``cut`` that is not inside of one of these ranges."""
    index = bisect.bisect_right(uncut, cut, key=operator.itemgetter(0)) - 1
    if index < 0 or cut >= uncut[index][1]:
        return cut
    start, stop = uncut[index]
    return start if cut - start <= stop - cut else stop


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
