"""Work that goes on beside other work, and work that is left where it stands when somebody asks to stop."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Background:
    """Tasks that go on beside the body of ``async with`` and end with it.

    What fails in one of them ends the body at once, and leaves it as the exception that it is: no group has to be taken
    apart to find out why a worker ended.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_open = False
        """Whether something can be begun."""

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self.is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_open = False
        for task in list(self._tasks):
            task.cancel()
        try:
            await self._group.__aexit__(kind, error, trace)
            return
        except BaseExceptionGroup as failed:
            failure: BaseException = failed
            while isinstance(failure, BaseExceptionGroup):
                failure = error if error is not None and error in failure.exceptions else failure.exceptions[0]
        if failure is not error:  # else it goes on by itself
            raise failure from failure.__cause__

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do ``work`` beside the body; it may be cancelled before that ends."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``, which may wait for others for long, but leave it where it stands once ``stop`` is set.

    Raises what ``work`` raises.
    """
    async with Background() as beside:
        doing, stopping = beside.begin(work), beside.begin(stop.wait())
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
