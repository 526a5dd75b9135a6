"""Whether a mean that a member doubts is refused, by what all members of the round brought.

A mean that points against what a member brought is doubted by it (``bounds.beside``). It cannot refuse it alone,
for others take it; and honest parts that do not agree may point against their mean, even most of them. But the
products of a mean with all parts, each with its weight, add up to the square of its length, and of one that was
negated to less than 0. So who doubts asks the others for theirs. Nobody asks where nobody doubts: a swarm without
liars pays next to nothing. A member that does not doubt what the others refuse differs from them and repairs, as
after any round that it saw otherwise. What members say of their parts is not proven: a reducer that says of its own
what makes the sum come out right gets through here, and is left to those who do its shards over (``audit``).
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from decentral.errors import FrameError, TransportError
from decentral.exchange.allreduce.messages import unpack_participants
from decentral.exchange.allreduce.participants import MAX_PARTICIPANTS_BYTES
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.timing import Timing
from decentral.types import PeerId

DOUBTED = "doubted"
#: What a member says that has not all means yet, and one that brought nothing; else a float64 for each shard.
_PENDING, _NOTHING = b"", b"\0"
_FLOATS = "<f8"
#: Rounds of each fragment of which this is remembered: members ask within the round.
_ROUNDS = 3
_MAX_ASKED_AT_ONCE = 8


class Vote:
    """What this member says of the means of a round, for others that ask, and what they say.

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
        self._told: OrderedDict[bytes, bytes] = OrderedDict()

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(DOUBTED, self._on_doubted, max_request_bytes=MAX_PARTICIPANTS_BYTES)

    async def refused(self, participants: bytes, products: Sequence[float], doubted: Sequence[int]) -> list[int]:
        """Say what the means of a round are beside this member's part; returns which of those doubted are refused.

        That is if the products of more than half of all members are negative, and the sum of all is. Asks the others as
        long as they may still be waiting for means: ``ttl_s`` at most. Who does not answer says 0.

        Args:
            participants: of the round, packed.
            products: of each shard's mean with this member's part, times its weight; empty if it brought none.
            doubted: indices of shards.
        """
        self._told[participants] = np.asarray(products, _FLOATS).tobytes() or _NOTHING
        while len(self._told) > self._most:
            self._told.popitem(last=False)
        if not doubted:
            return []
        members = unpack_participants(participants).members
        others = [member for member in members if member != self._transport.peer_id]
        until, limit = self._clock.monotonic() + self._timing.ttl_s, len(self._told[participants])
        at_once = asyncio.Semaphore(_MAX_ASKED_AT_ONCE)

        async def ask(member: PeerId) -> Sequence[float]:
            async with at_once:
                return await self._ask(member, participants, until, limit)

        told = [products, *[each for each in await asyncio.gather(*map(ask, others)) if each]]
        refused = []
        for index in doubted:
            each = [products[index] for products in told]
            if 2 * sum(product < 0 for product in each) > len(members) and sum(each) < 0:
                refused.append(index)
        return refused

    async def _ask(self, member: PeerId, participants: bytes, until: float, limit: int) -> Sequence[float]:
        """What a member says of all shards, once it has their means; nothing if it says nothing that makes sense."""
        while (left_s := until - self._clock.monotonic()) > 0:
            try:
                answer = await self._transport.call(
                    member, DOUBTED, participants, timeout_s=left_s, max_reply_bytes=limit
                )
            except TransportError:
                break
            if answer != _PENDING:
                told = np.frombuffer(answer, _FLOATS).tolist() if len(answer) == limit else ()
                return [product if math.isfinite(product) else 0.0 for product in told]
            await asyncio.sleep(self._timing.beat_s / 8)
        return ()

    async def _on_doubted(self, sender: PeerId, request: bytes) -> bytes:
        """A member doubts a mean of a round: what are they beside our parts? Empty until we know."""
        if sender not in unpack_participants(request).members:
            raise FrameError("the sender is no participant")
        return self._told.get(request, _PENDING)
