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


def rendezvous(purpose: str, key: SyncKey, peers: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """``peers`` in the order of their scores for ``purpose`` in round ``key``."""
    return _ranked(purpose, key, peers)[0]


@functools.lru_cache(maxsize=1024)
def _ranked(purpose: str, key: SyncKey, peers: tuple[PeerId, ...]) -> tuple[tuple[PeerId, ...], tuple[int, ...]]:
    """In the order of their scores, and these."""
    scores, asked = _scores(purpose, key), set(peers)
    if new := asked.difference(scores):
        found = {peer: score_of(purpose, key, peer) for peer in new}
        ranked = sorted([*scores.items(), *found.items()], key=operator.itemgetter(1))
        scores.clear()
        scores.update(ranked)
    ranked_peers = tuple([peer for peer in scores if peer in asked])
    return ranked_peers, tuple(map(scores.__getitem__, ranked_peers))


def score_of(purpose: str, key: SyncKey, peer: PeerId) -> int:
    """So many bits that no two peers ever have the same."""
    name = f"{purpose}/{key.round}/{key.fragment}/{peer}".encode()
    return int.from_bytes(blake2b(name, digest_size=_SCORE_BITS // 8).digest())


@functools.lru_cache(maxsize=16)
def _scores(purpose: str, key: SyncKey) -> dict[PeerId, int]:
    """Of peers that were asked about in this round, the lowest first.

    When one comes or goes the others need neither be hashed nor put in order again.
    """
    return {}


def group_of(me: PeerId, peers: tuple[PeerId, ...], key: SyncKey, size: int) -> tuple[PeerId, ...]:
    """One of random groups for ``key`` that are nearly the same for workers who see nearly the same peers.

    Scores are cut in halves by their leading bit, each half by the next bit, and so on: a binary trie. In every
    subtrie, the deepest first, a group of ``size`` is taken out as soon as there are enough who have none yet; the
    others wait for the subtrie above. Those who are left over at the root are the last group; a single one joins the
    group before as its last member, so that those who do not know it plan the same hosts.

    A peer that only some workers see changes the groups of the subtries that its own score lies in and no others, and
    each of those takes out at most one: of N peers about log2(N) groups at most. Measured with 2,048 peers in pairs:
    6 at most, 3.6 on average. Cutting a shuffled list into pieces would change half of all groups.

    Args:
        me: whose group.
        peers: distinct, in any order; ``me`` is one of them.
        key: the round and fragment. Over rounds all groups are equally likely.
        size: members of a group, at least 2.

    Returns:
        The members in the order of their scores, except for one that has joined: the first one is the host. At most one
        group is smaller than ``size``, or one larger. A single peer is alone only if there is no other.
    """
    ranked, scores = _ranked("group", key, peers)
    if len(ranked) < size:
        return ranked

    def waiting(start: int, stop: int) -> tuple[PeerId, ...]:
        """Who has no group in either half of a subtrie: a group that is taken out of it, if there are enough, first."""
        middle = _middle(scores, start, stop)
        return rest(start, middle) + rest(middle, stop)

    def rest(start: int, stop: int) -> tuple[PeerId, ...]:
        """Who is left over of a subtrie: as many as its peers modulo ``size``, so that most need not be looked at."""
        if stop - start < size:
            return ranked[start:stop]
        count = (stop - start) % size
        return waiting(start, stop)[-count:] if count else ()

    start, stop, score = 0, len(ranked), score_of("group", key, me)
    while me not in (candidates := waiting(start, stop)):
        middle = _middle(scores, start, stop)
        start, stop = (start, middle) if score < scores[middle] else (middle, stop)
    left_over = rest(0, len(ranked))
    group = left_over if me in left_over else candidates[:size]
    if len(left_over) != 1:
        return group
    start, stop = 0, len(ranked)
    while len(last := waiting(start, stop)[:size]) < size:
        middle = _middle(scores, start, stop)
        start, stop = (middle, stop) if stop - middle >= size else (start, middle)
    return (*last, *left_over) if group in (last, left_over) else group


def _middle(scores: Sequence[int], start: int, stop: int) -> int:
    """Where the second half begins of a subtrie, a range of at least two of all scores in order."""
    last = scores[stop - 1]
    bit = (scores[start] ^ last).bit_length() - 1
    return bisect.bisect_left(scores, last >> bit << bit, start, stop)


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
