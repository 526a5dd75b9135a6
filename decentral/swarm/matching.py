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
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

from decentral.swarm.presence import Presence
from decentral.types import PeerId, SyncKey

_SCORE_BITS = 128


def rendezvous(purpose: str, key: SyncKey, peers: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """``peers`` in the order of their scores for ``purpose`` in round ``key``."""
    return _ranked(purpose, key, peers)[0]


@functools.lru_cache(maxsize=1024)
def _ranked(purpose: str, key: SyncKey, peers: tuple[PeerId, ...]) -> tuple[tuple[PeerId, ...], Mapping[PeerId, int]]:
    """In order, and the scores of at least these."""
    scores, asked = _scores(purpose, key), set(peers)
    if new := asked.difference(scores):
        found = {peer: score_of(purpose, key, peer) for peer in new}
        ranked = sorted([*scores.items(), *found.items()], key=operator.itemgetter(1))
        scores.clear()
        scores.update(ranked)
    return tuple([peer for peer in scores if peer in asked]), scores


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
    trie = _Trie(*_ranked("group", key, peers), size)
    group, formed = trie.group_of(me)
    if trie.num_left_over != 1 or len(peers) == 1:
        return group
    last = trie.last()
    return (*last, *trie.rest(0, len(peers))) if not formed or group == last else group


class _Trie:
    """The trie of ``group_of``. A subtrie is a range [start, stop) of the peers in the order of their scores.

    Whoever is left over of one are as many as its peers modulo ``size``, so that most of it need not be looked at.

    Args:
        peers: the lowest score first.
        scores: of at least these.
        size: of a group.
    """

    def __init__(self, peers: tuple[PeerId, ...], scores: Mapping[PeerId, int], size: int) -> None:
        self._peers = peers
        self._scores = scores
        self._size = size

    @property
    def num_left_over(self) -> int:
        """Who has no group of ``size``."""
        return len(self._peers) % self._size

    def rest(self, start: int, stop: int) -> tuple[PeerId, ...]:
        """Who is left over of a subtrie."""
        if stop - start < self._size:
            return self._peers[start:stop]
        if (stop - start) % self._size == 0:
            return ()
        return self._waiting(start, stop)[-((stop - start) % self._size) :]

    def _waiting(self, start: int, stop: int) -> tuple[PeerId, ...]:
        """Who has no group in either half of a subtrie: a group and the rest, or the rest alone."""
        middle = self._middle(start, stop)
        return self.rest(start, middle) + self.rest(middle, stop)

    def _middle(self, start: int, stop: int) -> int:
        """Where the second half of a subtrie begins; it has two peers at least."""
        last = self._scores[self._peers[stop - 1]]
        bit = (self._scores[self._peers[start]] ^ last).bit_length() - 1
        return bisect.bisect_left(self._peers, last >> bit << bit, start, stop, key=self._scores.__getitem__)

    def group_of(self, me: PeerId) -> tuple[tuple[PeerId, ...], bool]:
        """The group of a peer, and whether it is one of ``size``; else all those left over in the end."""
        place = bisect.bisect_left(self._peers, self._scores[me], key=self._scores.__getitem__)
        subtries, start, stop = list[tuple[int, int]](), 0, len(self._peers)
        while stop - start >= self._size:
            subtries.append((start, stop))
            middle = self._middle(start, stop)
            start, stop = (start, middle) if place < middle else (middle, stop)
        for subtrie in reversed(subtries):
            group = self._waiting(*subtrie)[: self._size]
            if len(group) == self._size and me in group:
                return group, True
        return self.rest(0, len(self._peers)), False

    def last(self) -> tuple[PeerId, ...]:
        """The group that is taken out last; there is one."""
        start, stop = 0, len(self._peers)
        while True:
            middle = self._middle(start, stop)
            if (middle - start) % self._size + (stop - middle) % self._size >= self._size:
                return self._waiting(start, stop)[: self._size]
            start, stop = (middle, stop) if stop - middle >= self._size else (start, middle)


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
