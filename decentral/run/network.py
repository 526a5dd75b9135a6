"""An event loop on a thread of its own, for a swarm that runs beside somebody's training loop. Knows no swarm."""

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
#: What is still under way when the loop is closed may take so long to end.
_CLOSE_S = 10.0


class NetworkThread:
    """Runs coroutines off the caller's thread. ``close`` it; at the end of the process it closes itself."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="decentral-network", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin ``work`` and return at once; from any thread but the network's own."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def is_closed(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def call_soon(self, work: Callable[[], object]) -> None:
        """Do ``work`` on the thread, soon, and do not wait for it; nothing if the thread has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)

    def call_later(self, seconds: float, work: Callable[[], object]) -> None:
        """Do ``work`` on the thread after so many seconds, unless it has ended by then."""
        self.call_soon(lambda: self._loop.call_later(seconds, work))

    def call(self, work: Coroutine[Any, Any, T], *, timeout_s: float) -> T:
        """Do ``work`` and wait for its result.

        Raises:
            TimeoutError: it took longer; it is cancelled.
            Exception: what ``work`` raises.
        """
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what is left, and end the thread. Idempotent."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self.call_soon(self._loop.stop)
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(_cancel_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_CLOSE_S)
