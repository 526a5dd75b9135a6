"""Time and blocking work. Waiting itself is ``asyncio.sleep``: the simulator's event loop runs on virtual time."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """A monotonic clock for durations, a wall clock for people, and threads for work that blocks."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back. The only clock decisions may use."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch as this machine believes; may be wrong by minutes. For journals only."""
        ...

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking ``work`` off the event loop and return its result.

        One piece at a time: the calls of one clock are carried out in order. In simulation the work runs inline
        and its cost is charged to virtual time.
        """
        ...

    async def run_aside(self, work: Callable[[], T]) -> T:
        """Run ``work`` off the event loop, beside that of ``run`` and in its own order: packing values, adding them up.

        It must not touch what the work of ``run`` touches. In simulation it takes the time that the machine is given.
        """
        ...

    async def run_on_disk(self, work: Callable[[], T]) -> T:
        """Run ``work`` that waits for a disk off the event loop, beside all other work and in its own order.

        It may take minutes, for which nothing that a round waits for stands in line. In simulation it takes no time.
        """
        ...
