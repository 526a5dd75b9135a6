"""Whether a mean that a member doubts is refused, by what all members of the round brought.

A mean that points against what a member brought is doubted by it (``plausible.beside``). It cannot refuse it alone,
for others take it; and honest parts that do not agree may point against their mean, even most of them. But the
products of a mean with all parts, each with its weight, add up to the square of its length, and of one that was
negated to less than 0. So who doubts asks the others for theirs. Nobody asks where nobody doubts: a swarm without
liars pays next to nothing. A member that does not doubt what the others refuse differs from them and repairs, as
after any round that it saw otherwise. What members say of their parts is not proven: a reducer that says of its own
what makes the sum come out right gets through here, and is left to those who do its shards over (``audit``).
"""

import asyncio
import math
import struct
from collections import OrderedDict
from collections.abc import Sequence

from decentral.errors import FrameError, TransportError
from decentral.exchange.allreduce.messages import Result, unpack_participants
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId

DOUBTED = "doubted"
_PRODUCT = struct.Struct("<d")
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
        self._products: OrderedDict[bytes, tuple[float, ...]] = OrderedDict()

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(DOUBTED, self._on_doubted, max_request_bytes=Result.max_bytes)

    async def refused(self, participants: bytes, products: Sequence[float], doubted: Sequence[int]) -> list[int]:
        """Say what the means of a round are beside this member's part; returns which of those doubted are refused.

        That is if the products of more than half of all members are negative, and the sum of all is. Asks the others as
        long as they may still be waiting for means: ``ttl_s`` at most. Who does not answer says 0.

        Args:
            participants: of the round, packed.
            products: of each shard's mean with this member's part, times its weight; empty if it brought none.
            doubted: indices of shards.
        """
        self._products[participants] = tuple(products)
        while len(self._products) > self._most:
            self._products.popitem(last=False)
        members = unpack_participants(participants).members if doubted else ()
        others = [member for member in members if member != self._transport.peer_id]
        until = self._clock.monotonic() + self._timing.ttl_s
        at_once = asyncio.Semaphore(_MAX_ASKED_AT_ONCE)

        async def product(member: PeerId, question: bytes) -> float:
            async with at_once:
                return await self._ask(member, question, until)

        refused = []
        for index in doubted:
            question = to_wire(Result(participants, index))
            told = [products[index], *await asyncio.gather(*[product(member, question) for member in others])]
            if 2 * sum(each < 0 for each in told) > len(members) and sum(told) < 0:
                refused.append(index)
        return refused

    async def _ask(self, member: PeerId, question: bytes, until: float) -> float:
        """What a member says, once it has all means."""
        while (left_s := until - self._clock.monotonic()) > 0:
            try:
                answer = await self._transport.call(
                    member, DOUBTED, question, timeout_s=left_s, max_reply_bytes=_PRODUCT.size
                )
            except TransportError:
                break
            if len(answer) == _PRODUCT.size:
                (told,) = _PRODUCT.unpack(answer)
                return float(told) if math.isfinite(told) else 0.0
            await asyncio.sleep(self._timing.beat_s / 8)
        return 0.0

    async def _on_doubted(self, sender: PeerId, request: bytes) -> bytes:
        """A member doubts the mean of a shard: what is it beside our part? Empty until we know."""
        asked = from_wire(Result, request)
        if sender not in unpack_participants(asked.participants).members:
            raise FrameError("the sender is no participant")
        products = self._products.get(asked.participants)
        if products is None:
            return b""
        return _PRODUCT.pack(products[asked.index] if asked.index < len(products) else 0.0)
