"""The clock of a simulated machine: its time is the loop's, its work costs what the work says it costs."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from decentral.sim.loop import virtual_loop

T = TypeVar("T")

#: Where wall clocks start: a round moment, so that they look like wall clocks in journals.
_EPOCH_S = 1_700_000_000.0


class SimClock:
    """A clock on virtual time.

    Args:
        skew_s: by how much its wall clock is wrong; may be changed at any moment.
        aside_s: virtual seconds that each piece of work aside takes.
    """

    def __init__(self, *, skew_s: float = 0.0, aside_s: float = 0.0) -> None:
        self.skew_s = skew_s
        self._aside_s = aside_s
        self._aside_turn = asyncio.Lock()
        self._loop = virtual_loop()
        self._turn = asyncio.Lock()
        self._charged_s = 0.0

    def monotonic(self) -> float:
        """Virtual seconds since the start of the run."""
        return self._loop.now_s

    def wall(self) -> float:
        """Seconds since the Unix epoch as this machine believes."""
        return _EPOCH_S + self._loop.time() + self.skew_s

    def charge(self, seconds: float) -> None:
        """Called by work inside ``run``: it takes so much virtual time."""
        self._charged_s += seconds

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` now and return its result when the time that it charged has passed.

        Its effects are there at the beginning of that time: others that look into the same objects see them early.
        """
        async with self._turn:
            self._charged_s = 0.0
            try:
                return work()
            finally:
                if self._charged_s > 0:
                    await asyncio.sleep(self._charged_s)

    async def run_on_disk(self, work: Callable[[], T]) -> T:
        """Run ``work`` at once."""
        return work()

    async def run_aside(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the middle of the time that it takes."""
        if not self._aside_s:
            return work()
        async with self._aside_turn:
            await asyncio.sleep(self._aside_s / 2)
            try:
                return work()
            finally:
                await asyncio.sleep(self._aside_s / 2)
