"""The head's account of one batch: where its micro-batches are, and who has counted them. Pure.

A replica of a stage counts a micro-batch when its gradient first comes by, be that of a stale attempt, and never again.
Whoever was on any path of a micro-batch may have counted it, so exactly once means: of all replicas of a stage that it
was ever sent through, only one is not lost. ``sent`` holds every path to that, and ``shares`` follows from it: what is
done was counted at every hop of its last path, and elsewhere only by lost ones, whose counts are in nobody's share.
"""

from collections import defaultdict
from collections.abc import Mapping, Set

from decentral.pipeline.packets import Hop
from decentral.types import PeerId


class Ledger:
    """One batch, each micro-batch at each stage counted by one replica.

    Args:
        num_microbatches: M; indices run from 0 to M - 1.
    """

    def __init__(self, num_microbatches: int) -> None:
        self._num = num_microbatches
        self._waiting = set(range(num_microbatches))
        self._done: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._paths: dict[int, tuple[Hop, ...]] = {}
        self._tried: list[dict[int, set[PeerId]]] = [defaultdict(set) for _ in range(num_microbatches)]
        """By index and stage: all that it was ever sent to, of whom at most one is not lost."""
        self._banned: set[PeerId] = set()
        self._left: set[Hop] = set()
        """Where replicas that count elsewhere by now had something that is lost."""

    @property
    def in_flight(self) -> int:
        """How many micro-batches are under way."""
        return self._num - len(self._waiting) - len(self._done)

    @property
    def complete(self) -> bool:
        """Whether all are done."""
        return len(self._done) == self._num

    @property
    def banned(self) -> frozenset[PeerId]:
        """Who is lost to this batch."""
        return frozenset(self._banned)

    def waiting(self) -> list[int]:
        """Indices to be sent, or sent again, in order."""
        return sorted(self._waiting)

    def in_use(self) -> set[Hop]:
        """Where replicas are whose loss would cost work: all that have counted something or are to count it."""
        tried = (item for stages in self._tried for item in stages.items())
        return {Hop(stage, peer) for stage, peers in tried for peer in self._alive(stage, peers)}

    def peers(self) -> set[PeerId]:
        """Those replicas."""
        return {hop.peer for hop in self.in_use()}

    def hops(self, peer: PeerId) -> set[Hop]:
        """Where such a replica is in use."""
        return {hop for hop in self.in_use() if hop.peer == peer}

    def keep(self, index: int) -> Mapping[int, PeerId]:
        """The replicas, by stage, that the next path of ``index`` must go through: they may have counted it."""
        return {stage: peer for stage, peers in self._tried[index].items() for peer in self._alive(stage, peers)}

    def sent(self, index: int, path: tuple[Hop, ...]) -> int:
        """Enter that ``index`` is under way on ``path``; returns the number of the attempt.

        Raises:
            ValueError: it is not waiting, or the path goes through a lost replica or past one that is to be kept.
        """
        if index not in self._waiting:
            raise ValueError(f"micro-batch {index} is not to be sent")
        kept = self.keep(index)
        for hop in path[1:-1]:
            if hop.peer in self._banned or hop in self._left or kept.get(hop.stage, hop.peer) != hop.peer:
                raise ValueError(f"micro-batch {index} may not go to stage {hop.stage} at {hop.peer}")
        for hop in path[1:-1]:
            self._tried[index][hop.stage].add(hop.peer)
        self._waiting.remove(index)
        self._paths[index] = path
        self._attempts[index] = self.attempt(index) + 1
        return self._attempts[index]

    def attempt(self, index: int) -> int:
        """The number of the last attempt, -1 for none."""
        return self._attempts.get(index, -1)

    def path(self, index: int) -> tuple[Hop, ...]:
        """The path of the last attempt, empty for none."""
        return self._paths.get(index, ())

    def is_current(self, index: int, attempt: int) -> bool:
        """Whether ``attempt`` is the one under way."""
        under_way = index not in self._waiting and index not in self._done
        return under_way and self.attempt(index) == attempt

    def done(self, index: int, attempt: int) -> bool:
        """Enter that an attempt came back; ``False`` if it is stale."""
        current = self.is_current(index, attempt)
        if current:
            self._done.add(index)
        return current

    def failed(self, index: int, attempt: int) -> None:
        """An attempt will not come back: again, through the same replicas. Nothing happens if it is stale."""
        if self.is_current(index, attempt):
            self._waiting.add(index)

    def lost(self, peer: PeerId) -> list[int]:
        """Nothing that ``peer`` counts is in its share of this batch any more.

        Returns:
            Indices, in order, that are to be sent again because of it: what it has counted of the batch, and what is
            under way through it.
        """
        self._banned.add(peer)
        again = [
            index
            for index, path in sorted(self._paths.items())
            if index not in self._waiting and any(hop.peer == peer for hop in path[1:-1])
        ]
        self._done.difference_update(again)
        self._waiting.update(again)
        return again

    def pardon(self, peer: PeerId) -> bool:
        """Let a lost replica count again, if nobody has taken anything over from it; ``False`` if somebody has.

        For one that came back, or was only out of reach, and has no substitute. What was sent to it stays with it,
        whether it still has its counts or not: it is to be sent everything again.
        """
        tried = (item for stages in self._tried for item in stages.items())
        mine = [(stage, peers) for stage, peers in tried if peer in peers and Hop(stage, peer) not in self._left]
        free = all(not self._alive(stage, peers - {peer}) for stage, peers in mine)
        if free:
            self._banned.discard(peer)
        return free

    def moved(self, peer: PeerId, stage: int) -> bool:
        """Let a lost replica count at a stage where it has had nothing of this batch; ``False`` if it has.

        For one that has taken another stage. What it had elsewhere stays lost.
        """
        had = {s for stages in self._tried for s, peers in stages.items() if peer in peers}
        if stage not in had:
            self._left.update(Hop(s, peer) for s in had)
            self._banned.discard(peer)
        return stage not in had

    def _alive(self, stage: int, peers: Set[PeerId]) -> set[PeerId]:
        """Those of a stage's replicas whose counts are not lost."""
        return {peer for peer in peers - self._banned if Hop(stage, peer) not in self._left}

    def shares(self) -> dict[Hop, tuple[int, ...]]:
        """Which micro-batches each replica of stages 1 to S has counted, ascending; the head has counted all.

        Raises:
            ValueError: not all are done.
        """
        if not self.complete:
            raise ValueError("the batch is not complete")
        shares: dict[Hop, list[int]] = defaultdict(list)
        for index, path in sorted(self._paths.items()):
            for hop in path[1:-1]:
                shares[hop].append(index)
        return {hop: tuple(indices) for hop, indices in shares.items()}
