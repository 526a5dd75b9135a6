"""Data slots of heads: each head draws the batches of its own, and a successor goes on where the one before it stopped.

Nobody gives slots out: heads take them and hear of each other. It knows neither data nor stages.
"""

import asyncio
import math

from decentral.engine.membership import Membership
from decentral.pipeline.holders import Holders
from decentral.pipeline.placement import CutInForce
from decentral.ports.clock import Clock
from decentral.swarm.presence import Presence, stages_of
from decentral.swarm.timing import Timing

#: Two heads of one slot are left alone for so long: one of them may find out by itself that it was replaced.
_TWINS_S = 3.0


class Slots:
    """The slot of this worker, should it be a head.

    Args:
        membership: says what this worker's slot is, and hears of others'.
        holders: who lives.
        clock: for the time.
        cut: the stages there are.
        timing: after how long a silent worker is replaced.
    """

    def __init__(self, membership: Membership, holders: Holders, clock: Clock, cut: CutInForce, timing: Timing) -> None:
        self._membership = membership
        self._holders = holders
        self._clock = clock
        self._cut = cut
        self._ttl_s = timing.ttl_s
        self._looked_at = clock.monotonic()
        self._twins_at = math.inf
        """Since when there is another head of this one's slot."""

    async def take(self) -> None:
        """That of a head which is gone, or the next one, but not that of another head that comes at the same time.

        All who hold something hear of a new head, as they would not believe it otherwise; and it hears from them of
        others. Those who told them at the very same moment are known when they are told once more.
        """
        rivals = True
        while rivals:
            self._membership.update(slot=self._free())
            for _ in range(2):
                holders = {peer for stage in range(self._cut.num_stages + 1) for peer in self._holders.of(stage)}
                others = sorted(holders - {self._membership.own.peer})
                await asyncio.gather(*[self._membership.tell(peer) for peer in others])
            own = self._membership.own
            rivals = any(_holds(other) or (_takes(other) and other.peer < own.peer) for other in self._twins())

    async def is_doubled(self) -> bool:
        """Whether this worker, a head, has to make way for another one with its slot. To be asked now and then.

        They came at the same moment: then the one with the lowest peer id stays. Or one of them was stopped for so long
        that it was replaced: that one goes, and finds out first.
        """
        now = self._clock.monotonic()
        was_away, self._looked_at = now - self._looked_at > self._ttl_s, now
        if was_away:
            await self._membership.catch_up()
        twins = [other for other in self._twins() if _holds(other)]
        if not twins:
            self._twins_at = math.inf
            return False
        self._twins_at = min(self._twins_at, now)
        lowest = min(other.peer for other in twins)
        return was_away or (now - self._twins_at > _TWINS_S and lowest < self._membership.own.peer)

    def _twins(self) -> list[Presence]:
        own = self._membership.own
        return [other for other in self._holders.present() if other.slot == own.slot and other.peer != own.peer]

    def _free(self) -> int:
        me = self._membership.own.peer
        coming = {other.slot for other in self._holders.present() if other.peer != me and _takes(other)}
        used = self._holders.slots() | coming
        gone = {other.slot for other in self._holders.records() if other.peer != me and _holds(other)} - used
        return min(gone) if gone else next(slot for slot in range(len(used) + 1) if slot not in used)


def _holds(presence: Presence) -> bool:
    return 0 in stages_of(presence.holds)


def _takes(presence: Presence) -> bool:
    return 0 in stages_of(presence.takes)
