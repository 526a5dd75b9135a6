"""A machine that may be taken away soon, such as a spot machine: how that is noticed, and what is done about it."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator

_log = logging.getLogger(__name__)
#: Between two looks for the notice.
_LOOK_S = 1.0
#: A trainer that hangs, or a slow disk, keeps nobody from leaving for longer; who leaves saves in any case.
_SAVE_S = 20.0


@contextlib.contextmanager
def watching(path: str, preempted: Callable[[], object]) -> Iterator[None]:
    """Call ``preempted`` on a thread of its own whenever the file at ``path`` appears or is written anew.

    Args:
        path: of the notice; empty for none. One that lies there at the beginning is of an earlier time.
        preempted: what is told.
    """
    if not path:
        yield
        return
    over, seen = threading.Event(), _written_at(path)
    if seen:
        _log.warning("%s is there already: it counts when it is written anew", path)

    def look() -> None:
        known = seen
        while not over.wait(_LOOK_S):
            now = _written_at(path)
            if now and now != known:
                preempted()
            known = now

    looking = threading.Thread(target=look, name="decentral-notice", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join(_LOOK_S)


async def save_at_once(save: Callable[[], Awaitable[None]], leave: Callable[[], object] | None) -> None:
    """Save, and then leave if that is wanted, whatever came of it.

    Args:
        save: returns when everything is on disk, or nothing can be.
        leave: begins to leave in order; ``None`` to go on.
    """
    _log.warning("this machine may be taken away soon: saves at once%s", "" if leave is None else " and leaves")
    saving = asyncio.ensure_future(save())
    if leave is not None:
        await asyncio.wait({saving}, timeout=_SAVE_S)
        leave()
    await saving


def _written_at(path: str) -> int:
    """When it was written, in nanoseconds; 0 if it is not there."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
