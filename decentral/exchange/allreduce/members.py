"""Where the members of a round are, asked of themselves: a leader's word counts as long as most do not contradict it.

A leader that sends a member away says something about all others: that they have finished the round, or that they hold
another anchor. Who is sent away asks them. The question goes to each directly and so is never old news, as a record is
that went from mouth to mouth; and as long as fewer than half of those asked lie, what most say is so.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from decentral.errors import FrameError, TransportError
from decentral.exchange.allreduce.messages import Held, Where
from decentral.exchange.progress import Progress
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.presence import State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

HELD = "held"
#: So many are asked: of more, a random sample.
_MAX_ASKED = 16


@dataclass(frozen=True, slots=True)
class Word:
    """What members say of one synchronisation. Pure. Most are more than half of all asked and this worker itself.

    Who does not answer is on nobody's side: so if nothing is what most say, nothing is held against a leader. Nor is
    anything if there is nobody to ask: a worker alone are not most.
    """

    num_asked: int
    """Others whose word counts, whether they answer or not."""
    told: Mapping[PeerId, Where]
    """What those say that answered."""

    def list_of_most(self) -> tuple[bytes, PeerId] | None:
        """The participants, packed, that most were told, and one of those who say so; ``None`` if there are none."""
        lists = Counter(where.participants for where in self.told.values() if where.participants)
        packed, count = lists.most_common(1)[0] if lists else (b"", 0)
        if not self._are_most(count):
            return None
        return packed, next(peer for peer, where in self.told.items() if where.participants == packed)

    def is_open(self, round: int, named: bytes) -> bool:
        """Whether most, this worker among them, are in no later round and were not told the participants ``named``."""
        others = [where for where in self.told.values() if where.round <= round]
        return self._are_most(1 + sum(not where.participants or where.participants != named for where in others))

    def are_with(self, round: int, base: str) -> bool:
        """Whether most, this worker among them, are in that round with that anchor."""
        return self._are_most(1 + sum((where.round, where.base) == (round, base) for where in self.told.values()))

    def are_left_out(self, round: int, base: str, members: Collection[PeerId]) -> bool:
        """Whether half are in that round with that anchor, were told of nobody, and are not among ``members``.

        No leader closes a round as long as half of those are missing for whom it waits (``Gathering.lacks_most``).
        """
        out = [where for peer, where in self.told.items() if peer not in members and not where.participants]
        return 2 * sum((where.round, where.base) == (round, base) for where in out) > self.num_asked

    def holder_of_most(self, source: PeerId | None) -> PeerId | None:
        """Somebody with the anchor that most hold: ``source`` if it is one of them, or if there is no such anchor."""
        base, count = Counter(where.base for where in self.told.values()).most_common(1)[0] if self.told else ("", 0)
        holders = [peer for peer, where in self.told.items() if where.base == base]
        return source if source in holders or not self._are_most(count) else holders[0]

    def _are_most(self, count: int) -> bool:
        return 2 * count > self.num_asked + 1 > 1


class Members:
    """Says where this worker is, and asks others.

    Args:
        transport: to the others.
        clock: for who is alive.
        roster: whom to ask.
        progress: how far this worker is.
        timing: how long to wait for answers.
        expected: members worth waiting for.
        anchor: a fragment's anchor [N] with its digest; ``None`` as long as there is none.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        progress: Progress,
        timing: Timing,
        expected: Callable[[], Sequence[PeerId]],
        anchor: Callable[[int], tuple[str, Tensor] | None],
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._progress = progress
        self._timing = timing
        self._expected = expected
        self._anchor = anchor
        self._random = random.Random(transport.peer_id)

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(HELD, self._on_held, max_request_bytes=Held.max_bytes)

    async def word(self, key: SyncKey) -> Word:
        """What those say whom a leader would wait for, or who have finished the run; of many a sample.

        Who is new here knows nothing but what its donor says; and no other newcomer counts, but in the first round.
        """
        donor = self._progress.donor
        told = await self.ask(key, None if donor is None else [donor])
        news = {peer for peer, where in told.items() if where is not None and where.is_new}
        passed = news if donor is None and key.round else frozenset[PeerId]()
        return Word(
            len(told) - len(passed),
            {peer: where for peer, where in told.items() if where is not None and peer not in passed},
        )

    async def ask(self, key: SyncKey, peers: Sequence[PeerId] | None = None) -> Mapping[PeerId, Where | None]:
        """Where each of these is, ``None`` of one that does not answer; without them of all, or a sample of many."""
        if peers is None:
            me = self._transport.peer_id
            done = [p.peer for p in self._roster.live(self._clock.monotonic()) if p.state is State.DONE]
            others = [peer for peer in (*self._expected(), *done) if peer != me]
            peers = others if len(others) <= _MAX_ASKED else self._random.sample(others, _MAX_ASKED)
        question = to_wire(Held(key.round, key.fragment))

        async def ask(peer: PeerId) -> Where | None:
            try:
                answer = await self._transport.call(
                    peer, HELD, question, timeout_s=self._timing.hold_s, max_reply_bytes=Where.max_bytes
                )
                return from_wire(Where, answer)
            except (TransportError, FrameError):
                return None

        async with asyncio.TaskGroup() as group:
            tasks = {peer: group.create_task(ask(peer)) for peer in peers}
        return {peer: task.result() for peer, task in tasks.items()}

    async def _on_held(self, sender: PeerId, request: bytes) -> bytes:
        """A member was sent away or lost the leader: where are we?"""
        asked, progress = from_wire(Held, request), self._progress
        if asked.fragment >= progress.num_fragments:
            raise FrameError(f"there is no fragment {asked.fragment}")
        held = self._anchor(asked.fragment)
        told = progress.participants.get(SyncKey(asked.round, asked.fragment)) or b""
        base = held[0] if held is not None else ""
        return to_wire(Where(progress.next_round(asked.fragment), base, told, progress.donor is not None))
