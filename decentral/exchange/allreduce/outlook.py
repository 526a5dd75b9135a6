"""What a leader makes of its roster, worked out once for all who call while nothing changes. Pure.

A leader is asked by every member, again and again while it waits; if each question looked at every member, the work of
a round would grow with the square of the swarm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from decentral.swarm.matching import leaders, stragglers
from decentral.swarm.presence import ACTIVE, Presence, State
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey


@dataclass(frozen=True, slots=True)
class Prospect:
    """What the roster says about one round."""

    candidates: tuple[PeerId, ...]
    """For the leader, best first."""
    ahead: PeerId | None
    """A member, perhaps one that is done, that is past this round, if half of them are: then the round is over.

    Half, and not one, so that nobody can send all others to itself by claiming to be far ahead.
    """
    left_behind: PeerId | None
    """A member of the majority if that is two rounds or more behind: whoever calls for this round went on without it.

    One round is the difference between any two members for a moment. Half of them may be stragglers.
    """


class Outlook:
    """The living as of one moment.

    Args:
        living: their records, in order of peer id.
        timing: who is a straggler.
    """

    def __init__(self, living: Sequence[Presence], timing: Timing) -> None:
        self.living = living
        self._active = [p for p in living if p.state in ACTIVE]
        self._in_the_run = [p for p in living if p.state in ACTIVE or p.state is State.DONE]
        slow = stragglers(self._active, timing.patience_factor, timing.min_patience_s)
        self.expected: tuple[PeerId, ...] = tuple([p.peer for p in self._active if p.peer not in slow])
        """Members worth waiting for: alive and not known to be slow."""
        self._prospects: dict[SyncKey, Prospect] = {}

    def of(self, key: SyncKey) -> Prospect:
        """What there is to say about round ``key``."""
        known = self._prospects.get(key)
        if known is None:
            ahead = [p for p in self._in_the_run if p.round > key.round]
            behind = [p for p in self._active if p.round < key.round - 1]
            known = self._prospects[key] = Prospect(
                tuple(leaders(self._active, key)),
                _first(ahead) if 2 * len(ahead) >= len(self._in_the_run) else None,
                _first(behind) if 2 * len(behind) > len(self._active) else None,
            )
        return known


def _first(members: Sequence[Presence]) -> PeerId | None:
    return members[0].peer if members else None
