"""With whom a worker gossips, from what it knows itself: there is nobody to ask.

All who know the same workers plan the same groups. Where they do not, a worker whose plan fails looks for another
partner, so a difference costs a message or a step alone and never an agreement.
"""

import random
from collections.abc import Callable, Sequence

from decentral.exchange.progress import Progress
from decentral.ports.clock import Clock
from decentral.swarm.matching import group_of, round_to_join
from decentral.swarm.roster import Roster, without
from decentral.types import PeerId, SyncKey


class Company:
    """This worker's view of the others.

    Args:
        me: this worker.
        clock: for ages.
        roster: who is alive.
        progress: which round comes next.
        group_size: n.
        until_launch_s: seconds until this worker will have finished its inner steps before the next sync of a
            fragment, as far as it can tell.
    """

    def __init__(
        self,
        me: PeerId,
        clock: Clock,
        roster: Roster,
        progress: Progress,
        group_size: int,
        until_launch_s: Callable[[int], float],
    ) -> None:
        self.me = me
        self.until_launch_s = until_launch_s
        self._clock = clock
        self._roster = roster
        self.progress = progress
        self._group_size = group_size
        self._planned: dict[tuple[int, int], tuple[SyncKey, tuple[PeerId, ...], tuple[PeerId, ...]]] = {}
        """Groups as they were planned last: for which round, among whom."""

    def group(self, fragment: int, later: int = 0) -> tuple[PeerId, ...]:
        """The members planned for this worker's next sync of a fragment (or one so much later), the host first."""
        key = SyncKey(self.progress.next_round(fragment) + later, fragment)
        active, known = self._roster.active_peers(self._clock.monotonic()), self._planned.get((fragment, later))
        if known is None or known[0] != key or known[1] is not active:
            everybody = active if self.me in active else tuple(sorted([*active, self.me]))
            mine = group_of(self.me, everybody, key, self._group_size)
            known = self._planned[fragment, later] = key, active, mine
        return known[2]

    def round_to_join(self) -> int | None:
        """The round that the others are in by now, if this worker is far behind."""
        return round_to_join(self.progress.rounds(), self._roster.runners(self._clock.monotonic()))

    def others(self) -> list[PeerId]:
        """All other workers, in order of peer id."""
        return without(self.me, self._roster.active_peers(self._clock.monotonic()))

    def some(self, fragment: int, peers: Sequence[PeerId], count: int) -> list[PeerId]:
        """At most ``count`` of ``peers`` to ask when the plan for a sync has failed, others every time."""
        dice = random.Random(f"{self.me}/{self.progress.next_round(fragment)}/{fragment}")
        return dice.sample(peers, min(count, len(peers)))

    def round_s(self) -> float:
        """How long this worker's inner steps between two syncs took last; 0 if it is not known yet."""
        own = self._roster.get(self.me)
        return own.round_s if own is not None else 0.0

    def bury(self, peer: PeerId) -> None:
        """The peer could not be reached."""
        self._roster.bury(peer)

    def vouch(self, peer: PeerId) -> None:
        """The peer was heard of just now."""
        self._roster.vouch((peer,), self._clock.monotonic())
