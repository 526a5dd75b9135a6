"""Turns on the way to a peer: only so many packets are under way at once, and gradients go before activations.

Packets that are all sent at once share the way: each arrives when nearly all do, and the next hop has nothing to
compute until then. One after the other, it begins with the first. It knows no packets, only that they are alike.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Of one way.

    Args:
        at_once: turns that are given before one is over.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}
        """Those that go first, and the others."""

    @asynccontextmanager
    async def turn(self, *, first: bool) -> AsyncIterator[None]:
        """A turn; those that go ``first`` have theirs before all others that wait."""
        if self._free:
            self._free -= 1
        else:
            called = asyncio.get_running_loop().create_future()
            self._waiting[first].append(called)
            try:
                await called
            except asyncio.CancelledError:
                if called.done() and not called.cancelled():
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        for queue in (self._waiting[True], self._waiting[False]):
            while queue:
                if not (called := queue.popleft()).done():
                    called.set_result(None)
                    return
        self._free += 1
