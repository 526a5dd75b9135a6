"""The machine's clocks and three threads for work that blocks."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class RealClock:
    """Implements ``ports.clock.Clock``. ``close`` it when the worker ends.

    All work of ``run`` is done on the same thread, which some libraries (CUDA contexts, autocast state) care about.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decentral-work")
        self._aside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decentral-aside")
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decentral-disk")

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the Unix epoch as this machine believes."""
        return time.time()

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the clock's thread, after all earlier calls.

        If the caller is cancelled, work that has begun goes on (a thread cannot be stopped) and what follows waits
        for it; work that has not begun is dropped.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run_aside(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the second thread; cancelled as ``run`` is."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work)

    async def run_on_disk(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the third thread; cancelled as ``run`` is."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def close(self) -> None:
        """Drop what has not begun and do not wait for what has. Idempotent."""
        for thread in (self._thread, self._aside, self._disk):
            thread.shutdown(wait=False, cancel_futures=True)
