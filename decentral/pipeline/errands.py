"""Work beside the main loop of a stage: bounded, awaited at the end, and what fails in it ends the stage."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Errands:
    """Tasks that somebody looks after."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do ``work`` beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def check(self) -> None:
        """Raises what an errand raised: a bug, as expected failures are values."""
        if self._error is not None:
            raise self._error

    async def end(self, within_s: float) -> None:
        """Wait for what is under way, then cancel it and what it has begun meanwhile."""
        if self._tasks and within_s > 0:
            await asyncio.wait(set(self._tasks), timeout=within_s)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()
