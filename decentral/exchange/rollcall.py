"""Calling the roll of one round: who is in, who is not, and why. Pure: the time is an argument.

The all-reduce of a round begins with one peer, the chair, collecting the members' calls and answering all of them with
the same roll. The roll is the only statement of who is in the round, so that members cannot disagree about it, and
the place where members with different anchors are told apart: the anchor most callers hold goes on, the others repair.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from decentral.types import PeerId, SyncKey


@dataclass(frozen=True, slots=True)
class Call:
    """One member's call to the chair."""

    peer: PeerId
    base: str
    """Digest of the fragment's anchor and outer state that the member holds."""
    num_steps: int
    """Outer steps behind that anchor; decides between equally frequent anchors."""


@dataclass(frozen=True, slots=True)
class Roll:
    """Who is in a round. Members get identical bytes of it."""

    key: SyncKey
    chair: PeerId
    serial: int
    """Grows with every roll of this chair: two rolls are never mistaken for each other."""
    base: str
    """The anchor all members hold."""
    members: tuple[PeerId, ...]
    """In order of peer id."""
    absent: tuple[tuple[PeerId, str], ...] = ()
    """Who was known to the chair but is not in, and why."""


class RollCall:
    """Collects the calls for one key until its roll can be called.

    Args:
        key: the synchronisation.
        chair: the peer that collects.
    """

    def __init__(self, key: SyncKey, chair: PeerId) -> None:
        self.key = key
        self.roll: Roll | None = None
        self._chair = chair
        self._calls: OrderedDict[PeerId, tuple[Call, float]] = OrderedDict()
        """In the order of the latest calls."""
        self._opened_at: float | None = None

    def call(self, call: Call, now: float) -> None:
        """A member calls (again). After the roll was called this changes nothing."""
        if self.roll is not None:
            return
        if self._opened_at is None:
            self._opened_at = now
        self._calls[call.peer] = (call, now)
        self._calls.move_to_end(call.peer)

    def drop_silent(self, since: float) -> None:
        """Forget callers that have not called again since the time ``since``: they went elsewhere or died."""
        if self.roll is not None:
            return
        while self._calls and next(iter(self._calls.values()))[1] < since:
            self._calls.popitem(last=False)
        if not self._calls:
            self._opened_at = None

    def overdue(self, now: float, patience_s: float) -> bool:
        """Whether the wait for those who are missing has lasted for ``patience_s`` seconds and no roll is called."""
        return self.roll is None and self._opened_at is not None and now - self._opened_at >= patience_s

    def conclude(self, now: float, *, expected: Collection[PeerId], patience_s: float, serial: int) -> bool:
        """Call the roll if everybody expected has called or patience is over; returns whether there is a roll.

        Args:
            now: monotonic seconds.
            expected: peers worth waiting for, each once.
            patience_s: seconds after the first call at which the wait ends.
            serial: number for a new roll.
        """
        if self.roll is not None:
            return True
        if self._opened_at is None:
            return False
        overdue = self.overdue(now, patience_s)
        # Every call is a question whether it was the last one: the answer must not look at everybody each time.
        if len(self._calls) < len(expected) and not overdue:
            return False
        missing = [peer for peer in expected if peer not in self._calls]
        if missing and not overdue:
            return False
        base = self._common_base()
        members = tuple(sorted(peer for peer, (call, _) in self._calls.items() if call.base == base))
        absent = [(peer, f"did not call within {now - self._opened_at:.1f} s") for peer in missing]
        absent += [(peer, "holds another anchor") for peer, (call, _) in self._calls.items() if call.base != base]
        self.roll = Roll(self.key, self._chair, serial, base, members, tuple(sorted(absent)))
        return True

    def _common_base(self) -> str:
        """The anchor most callers hold; then that with more outer steps, then the smaller digest."""
        votes = Counter(call.base for call, _ in self._calls.values())
        steps = {call.base: call.num_steps for call, _ in self._calls.values()}
        return min(votes, key=lambda base: (-votes[base], -steps[base], base))
