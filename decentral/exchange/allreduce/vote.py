"""Whether a mean that a member doubts is refused: if most members of the round doubt it.

A mean that points against what a member brought is doubted by it (``plausible.against``); it cannot refuse it alone,
for others take it. All honest members doubt a mean that was negated, though, and of an honest mean no majority can: its
product with what they brought, added up over all, is the square of its length. Nobody asks where nobody doubts, so it
costs a swarm without liars next to nothing. A member that does not doubt what most do differs from them and repairs, as
after any round that it saw otherwise.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Collection

from decentral.errors import FrameError, TransportError
from decentral.exchange.allreduce.messages import Result, unpack_participants
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId

DOUBTED = "doubted"
_YES, _NO, _PENDING = b"y", b"n", b""
#: Rounds of each fragment whose votes are remembered: members ask within the round.
_ROUNDS = 3
_MAX_ASKED_AT_ONCE = 8


class Vote:
    """What this member doubts, for others that ask, and what they do.

    Args:
        transport: to the others.
        clock: for durations.
        timing: how long to wait for one that has not all means yet.
        num_fragments: of each of which a round may be under way.
    """

    def __init__(self, transport: Transport, clock: Clock, timing: Timing, num_fragments: int) -> None:
        self._transport = transport
        self._clock = clock
        self._timing = timing
        self._most = _ROUNDS * num_fragments
        self._doubted: OrderedDict[bytes, frozenset[int]] = OrderedDict()

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(DOUBTED, self._on_doubted, max_request_bytes=Result.max_bytes)

    async def refused(self, participants: bytes, doubted: Collection[int]) -> set[int]:
        """Say which shards of a round this member doubts the means of; returns those that are refused.

        Asks the others about each, as long as they may still be waiting for means: ``ttl_s`` at most. Who does not
        answer does not doubt.
        """
        self._doubted[participants] = frozenset(doubted)
        while len(self._doubted) > self._most:
            self._doubted.popitem(last=False)
        if not doubted:
            return set()
        members = unpack_participants(participants).members
        others = [member for member in members if member != self._transport.peer_id]
        until = self._clock.monotonic() + self._timing.ttl_s
        at_once = asyncio.Semaphore(_MAX_ASKED_AT_ONCE)

        async def doubts(member: PeerId, question: bytes) -> bool:
            async with at_once:
                return await self._ask(member, question, until) == _YES

        refused = set[int]()
        for index in doubted:
            question = to_wire(Result(participants, index))
            votes = await asyncio.gather(*[doubts(member, question) for member in others])
            if 2 * (1 + sum(votes)) > len(members):
                refused.add(index)
        return refused

    async def _ask(self, member: PeerId, question: bytes, until: float) -> bytes:
        """What a member says, once it has all means."""
        while (left_s := until - self._clock.monotonic()) > 0:
            try:
                answer = await self._transport.call(member, DOUBTED, question, timeout_s=left_s, max_reply_bytes=1)
            except TransportError:
                break
            if answer != _PENDING:
                return answer
            await asyncio.sleep(self._timing.beat_s / 8)
        return _NO

    async def _on_doubted(self, sender: PeerId, request: bytes) -> bytes:
        """A member doubts the mean of a shard: do we?"""
        asked = from_wire(Result, request)
        if sender not in unpack_participants(asked.participants).members:
            raise FrameError("the sender is no participant")
        doubted = self._doubted.get(asked.participants)
        if doubted is None:
            return _PENDING
        return _YES if asked.index in doubted else _NO
