"""Naming the participants of one round: who is in, who is not, and why. Pure: the time is an argument.

The all-reduce of a round begins with one peer, the leader, collecting the members' calls and answering all of them with
the same participants. The list of participants is the only statement of who is in the round, so that members cannot
disagree about it, and the place where members with different anchors are told apart: the anchor most callers hold goes
on, the others repair.

With a quorum the leader waits for so many members and then a little longer, instead of for everybody it expects.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.swarm.message import Message, Peer, Text, ascending
from decentral.types import Count, PeerId, SyncKey

MAX_MEMBERS = 4096
#: A list of participants of so many members with their absent peers, and whatever surrounds it.
MAX_PARTICIPANTS_BYTES = 256 * MAX_MEMBERS
#: More are not left out of those who reduce.
MAX_DISTRUSTED = 64
#: Callers who train meanwhile may be kept waiting for this part of the time that they have left (gamma).
_SLACK_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Quorum:
    r"""How many members are enough for a round, and how long others may still come.

    The grace window is $\min(\xi, \gamma \max(0, \min_i(t_i + s_i) - t_K))$: at time $t_K$ the quorum was there,
    member i called at $t_i$ and could train on for $s_i$ until it needs the participants; $\gamma = 0.8$.

    Raises:
        ValueError: a quorum of nobody, or a grace window of no finite length.

    Source: Decoupled DiLoCo (arXiv 2604.21428), where one syncer bounds the window by gamma times its slack. Here
        members have slacks of their own; where nobody trains meanwhile there is none, and the window is as configured.
    """

    size: int
    """K: so many members who hold the same anchor must have called."""
    grace_s: float
    """Xi, in seconds."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a quorum has at least one member, not {self.size}")
        if not 0 <= self.grace_s < math.inf:
            raise ValueError(f"the grace window of a quorum must be finite and at least 0 s, not {self.grace_s}")


@dataclass(frozen=True, slots=True)
class Call:
    """One member's call to the leader."""

    peer: PeerId
    base: str
    """Digest of the fragment's anchor and outer state that the member holds."""
    num_steps: int
    """Outer steps behind that anchor; decides between equally frequent anchors."""
    slack_s: float = math.inf
    """For so long it can train on before it needs the participants; without end if it does not train meanwhile."""


class Participants(Message, frozen=True):
    """Who is in a round. Members get identical bytes of it."""

    what: ClassVar[str] = "list of participants"
    max_bytes: ClassVar[int] = MAX_PARTICIPANTS_BYTES
    key: SyncKey
    leader: Peer
    serial: Count
    """Grows with every participants of this leader: two lists of participants are never mistaken for each other."""
    base: Text
    """The anchor all members hold."""
    members: Annotated[tuple[Peer, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    """In order of peer id."""
    absent: tuple[tuple[Peer, Text], ...] = ()
    """Who was known to the leader but is not in, and why."""
    distrusted: Annotated[tuple[Peer, ...], Meta(max_length=MAX_DISTRUSTED)] = ()
    """Members that are to reduce nothing, in order of peer id: what they answered lately was no mean."""

    def check(self) -> None:
        """Refuse members that are not in order."""
        ascending("members", self.members)
        ascending("distrusted", self.distrusted)

    @property
    def reducers(self) -> tuple[PeerId, ...]:
        """Members that may reduce; all, if none is left otherwise."""
        if not self.distrusted:
            return self.members
        return tuple(member for member in self.members if member not in self.distrusted) or self.members


class Gathering:
    """Collects the calls for one key until its participants can be named.

    Args:
        key: the synchronisation.
        leader: the peer that collects.
        quorum: for whom to wait; ``None`` for everybody.
    """

    def __init__(self, key: SyncKey, leader: PeerId, quorum: Quorum | None = None) -> None:
        self.key = key
        self.participants: Participants | None = None
        self._leader = leader
        self._quorum = quorum
        self._calls: OrderedDict[PeerId, tuple[Call, float]] = OrderedDict()
        """In the order of the latest calls."""
        self._opened_at: float | None = None
        self._quorum_at = math.inf
        """When so many had called."""
        self._needed_by = math.inf
        """When the first caller would stand still."""

    def call(self, call: Call, now: float) -> None:
        """A member calls (again). After the participants were named this changes nothing."""
        if self.participants is not None:
            return
        if self._opened_at is None:
            self._opened_at = now
        self._calls[call.peer] = (call, now)
        self._calls.move_to_end(call.peer)
        self._needed_by = min(self._needed_by, now + call.slack_s)
        if self._quorum is not None and len(self._calls) >= self._quorum.size:
            self._quorum_at = min(self._quorum_at, now)

    def drop_silent(self, since: float) -> None:
        """Forget callers that have not called again since the time ``since``: they went elsewhere or died."""
        if self.participants is not None:
            return
        while self._calls and next(iter(self._calls.values()))[1] < since:
            self._calls.popitem(last=False)
        if not self._calls:
            self._opened_at, self._needed_by = None, math.inf
        if self._quorum is not None and len(self._calls) < self._quorum.size:
            self._quorum_at = math.inf

    def overdue(self, now: float, patience_s: float) -> bool:
        """Whether the wait for those who are missing has lasted for ``patience_s`` seconds."""
        return self.participants is None and self._opened_at is not None and now - self._opened_at >= patience_s

    def patience_left_s(self, now: float, patience_s: float) -> float:
        """How much longer those who are missing are waited for; without end if nobody has called, or it is over."""
        left_s = self.opened_at + patience_s - now
        return left_s if left_s > 0 else math.inf

    @property
    def opened_at(self) -> float:
        """When the first of the callers called; without end if there is none."""
        return math.inf if self._opened_at is None else self._opened_at

    def missing(self, expected: Collection[PeerId]) -> list[PeerId]:
        """Those expected who have not called."""
        return [peer for peer in expected if peer not in self._calls]

    def lacks_most(self, expected: Collection[PeerId]) -> bool:
        """Whether at least half of more than two that are expected have not called. Of two neither is most."""
        return len(expected) > 2 and 2 * len(self.missing(expected)) >= len(expected)

    def grace_left_s(self, now: float) -> float:
        """How much longer the grace window of the quorum is open; without end if there is none or it is over."""
        left_s = self._grace_over_at() - now
        return left_s if left_s > 0 else math.inf

    def _grace_over_at(self) -> float:
        if self._quorum is None or self._quorum_at == math.inf:
            return math.inf
        slack_s = max(0.0, self._needed_by - self._quorum_at)
        return self._quorum_at + min(self._quorum.grace_s, _SLACK_SHARE * slack_s)

    def _has_quorum(self, now: float) -> bool:
        """Whether there is a quorum and its grace window is over."""
        if self._quorum is None or now < self._grace_over_at():
            return False
        return max(self._votes().values()) >= self._quorum.size

    def conclude(
        self,
        now: float,
        *,
        expected: Collection[PeerId],
        patience_s: float,
        serial: int,
        distrusted: Collection[PeerId] = (),
    ) -> bool:
        """Name the participants if all expected or a quorum called, or patience is over; returns whether they are.

        Args:
            now: monotonic seconds.
            expected: peers worth waiting for, each once.
            patience_s: seconds after the first call at which the wait ends.
            serial: number for a new participants.
            distrusted: who is to reduce nothing.
        """
        if self.participants is not None:
            return True
        if self._opened_at is None:
            return False
        overdue = self._has_quorum(now) or self.overdue(now, patience_s)
        # Every call is a question whether it was the last one: the answer must not look at everybody each time.
        if len(self._calls) < len(expected) and not overdue:
            return False
        missing = self.missing(expected)
        if missing and not overdue:
            return False
        base = self._common_base()
        members = tuple(sorted(peer for peer, (call, _) in self._calls.items() if call.base == base))
        absent = [(peer, f"did not call within {now - self._opened_at:.1f} s") for peer in missing]
        absent += [(peer, "holds another anchor") for peer, (call, _) in self._calls.items() if call.base != base]
        idle = tuple(member for member in members if member in distrusted)[:MAX_DISTRUSTED]
        self.participants = Participants(self.key, self._leader, serial, base, members, tuple(sorted(absent)), idle)
        return True

    def _common_base(self) -> str:
        """The anchor most callers hold; then that with more outer steps, then the smaller digest."""
        votes = self._votes()
        steps = {call.base: call.num_steps for call, _ in self._calls.values()}
        return min(votes, key=lambda base: (-votes[base], -steps[base], base))

    def _votes(self) -> Counter[str]:
        """How many callers hold each anchor."""
        return Counter(call.base for call, _ in self._calls.values())
