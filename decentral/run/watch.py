"""A run as one worker sees it, kept to be shown: live in a page (``worker.dashboard``), and as a report at its end.

Whatever else takes reports of it is told the same ones (``telemetry``). Its own record is kept in its folder: so a
local run knows of its workers without asking.
"""

import asyncio
import contextlib
import logging
import time
from contextlib import AsyncExitStack
from pathlib import Path

from decentral.dashboard import page
from decentral.dashboard.place import serve
from decentral.engine.membership import Membership
from decentral.monitor.history import History
from decentral.monitor.recall import recall
from decentral.run.connection import Connection
from decentral.run.folder import JOURNAL, PRESENCE, REPORT, whole_file
from decentral.run.telemetry import takers_of

_log = logging.getLogger(__name__)
#: Between two looks at what the others say of themselves, which they say no more often.
_LOOK_S = 2.0


def begun(connection: Connection) -> History:
    """A history of this worker; of one that comes back it has what its journal tells of earlier lives.

    To be called before the journal is written.
    """
    history, own = History(), connection.own
    if connection.is_back and own.out:
        try:
            recall(history, Path(own.out) / JOURNAL, connection.run_id, connection.node.identity.peer_id)
        except OSError as err:
            _log.warning("the journal of before cannot be read: %s", err.strerror or err)
    return history


async def watch(connection: Connection, membership: Membership, history: History, resources: AsyncExitStack) -> None:
    """Begin to keep what this worker knows of its swarm, and to serve it if that is wanted; ends with ``resources``.

    Raises:
        ConfigError: the page or the metrics cannot be served there.
        PortTakenError: likewise.
    """
    own = connection.own
    if own.dashboard:
        server = serve(history, own.dashboard)
        resources.push_async_callback(asyncio.to_thread, server.close)
        _log.info("page: %s", server.url)
    takers = takers_of(connection)
    if not (own.out or own.dashboard or takers):
        return

    def look() -> None:
        report = connection.report(membership.everybody())
        history.sample(time.time(), report)
        for taker in takers:
            taker.take(report)
        if own.out:
            with contextlib.suppress(OSError), whole_file(Path(own.out) / PRESENCE, "wb") as file:
                file.write(membership.signed()[0])

    async def keep() -> None:
        while True:
            look()
            await asyncio.sleep(_LOOK_S)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        look()
        await asyncio.gather(*(asyncio.to_thread(taker.close) for taker in takers))
        if own.out:
            await asyncio.to_thread(write_report, Path(own.out), history, connection.run_id)

    task = asyncio.create_task(keep())
    resources.push_async_callback(end)


def write_report(folder: Path, history: History, run: str) -> None:
    """Write what is known of a run as one page into its folder. A disk that is full keeps nothing else from its end."""
    try:
        with whole_file(folder / REPORT) as file:
            file.write(page.report(history.state(), run))
    except OSError as err:
        _log.warning("no report in %s (%s)", folder, err.strerror or err)
