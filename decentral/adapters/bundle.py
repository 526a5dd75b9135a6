"""A long call goes over several streams: each begins with a narrow window, which grows by the round trip.

The first stream has the call's head, the others its key; a body is cut into one part for each. Knows no network.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from decentral.types import PeerId

#: Of a stream, both ways.
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: For every so many bytes of a body one stream more: as many as one may have on their way at first.
STREAM_BYTES = 1 << 18
MAX_STREAMS = 8
#: So long the streams of a call wait for each other.
_GATHER_S = 10.0
_MAX_OVER = 256


def part_sizes(size: int, num_streams: int) -> list[int]:
    """How many bytes of a body go over each stream; a short one goes over the first alone."""
    if size <= STREAM_BYTES:
        return [size, *[0] * (num_streams - 1)]
    most = -(-size // num_streams)
    return [max(0, min(most, size - most * number)) for number in range(num_streams)]


@dataclass(slots=True)
class _Bundle:
    further: dict[int, Ends] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    claimed: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Bundles:
    """Streams that have come, by the call that they are for."""

    def __init__(self) -> None:
        self._bundles: dict[tuple[PeerId, bytes], _Bundle] = {}
        self._over: OrderedDict[tuple[PeerId, bytes], None] = OrderedDict()
        """Calls that ended last: a stream may come later than its call was refused."""

    async def lend(self, sender: PeerId, key: bytes, number: int, ends: Ends) -> None:
        """Lend a further stream to its call until that is over.

        Raises:
            TimeoutError: there is no such call.
        """
        if (sender, key) in self._over:
            return
        bundle = self._bundles.setdefault((sender, key), _Bundle())
        bundle.further[number] = ends
        bundle.changed.set()
        try:
            async with asyncio.timeout(_GATHER_S):
                await bundle.claimed.wait()
            await bundle.over.wait()
        finally:
            self.end(sender, key)

    @contextlib.asynccontextmanager
    async def gathered(self, sender: PeerId, key: bytes, num_streams: int) -> AsyncIterator[list[Ends]]:
        """The further streams of a call, in order, for its length.

        Raises:
            TimeoutError: they have not all come.
        """
        if num_streams == 1:
            yield []
            return
        bundle = self._bundles.setdefault((sender, key), _Bundle())
        bundle.claimed.set()
        try:
            async with asyncio.timeout(_GATHER_S):
                while any(number not in bundle.further for number in range(1, num_streams)):
                    bundle.changed.clear()
                    await bundle.changed.wait()
            yield [bundle.further[number] for number in range(1, num_streams)]
        finally:
            self.end(sender, key)

    def end(self, sender: PeerId, key: bytes) -> None:
        """The call is over, or there is none: its streams are not needed any more."""
        self._over[sender, key] = None
        if len(self._over) > _MAX_OVER:
            self._over.popitem(last=False)
        bundle = self._bundles.pop((sender, key), None)
        if bundle is not None:
            bundle.claimed.set()
            bundle.over.set()
