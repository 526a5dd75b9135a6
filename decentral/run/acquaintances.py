"""Keeps a worker's address book, and looks for those in it of whom nothing is heard, as long as the run goes on.

So a worker that was stopped knows whom to ask, and two halves of a swarm that were brought back apart meet.
"""

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from decentral.engine.hello import ask_hello
from decentral.engine.membership import Membership
from decentral.engine.reunion import Known, seek_absent
from decentral.errors import DecentralError
from decentral.ports.clock import Clock
from decentral.run.connection import Connection
from decentral.types import PeerId, short_id

_log = logging.getLogger(__name__)
#: Between two looks at who is there; each asks for the addresses of a few newcomers at most.
_LOOK_S = 2.0
_AT_ONCE = 8
#: Between two writes.
_WRITE_S = 30.0
_HELLO_S = 5.0


class Acquaintances:
    """See the module.

    Args:
        connection: of the run; its book is kept, in its folder if there is one.
        membership: knows who lives, and is told of those who are found.
        clock: for the bound on writing.
    """

    def __init__(self, connection: Connection, membership: Membership, clock: Clock) -> None:
        self._node = connection.node
        self._book = connection.book
        self._folder = Path(connection.own.out) if connection.own.out else None
        self._membership = membership
        self._clock = clock
        self._in_book = frozenset(self._book.peers())
        """As it was written last."""
        self._wrote_at = clock.monotonic()
        self._config = connection.swarm.to_json().encode()
        self._others: set[PeerId] = set()
        """Of the run, with other settings; each is told of once."""

    def begin(self, resources: AsyncExitStack) -> None:
        """Begin; it ends with ``resources``, whose first act it is then."""
        task = asyncio.create_task(self._keep())

        async def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        resources.push_async_callback(end)

    @property
    def known(self) -> Known:
        """Those in the book."""
        return Known(self._book.peers, self._dial)

    async def _dial(self, peer: PeerId) -> bool:
        """Connect to a worker of the book; whether it is there, in this run, and with its settings."""
        for address in self._book.addresses:
            if address.peer == peer and await self._node.dial(address.multiaddr()) is not None:
                return await self._is_ours(peer)
        return False

    async def _is_ours(self, peer: PeerId) -> bool:
        try:
            hello = await ask_hello(self._node.transport, peer, self._node.identity.verify, timeout_s=_HELLO_S)
        except DecentralError:  # not up yet, or another program by now
            return False
        if hello.run_id != self._book.run:
            return False
        if hello.config != self._config and peer not in self._others:
            self._others.add(peer)
            _log.error(
                "worker %s goes on with other settings of this run than this worker: they stay apart. Stop one of the "
                "two and resume it again, without settings: it takes over the other's",
                short_id(peer),
            )
        return hello.config == self._config

    async def _keep(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(seek_absent(self.known, self._membership, self._clock, _tell))
            while True:
                await self._note()
                await asyncio.sleep(_LOOK_S)

    async def _note(self) -> None:
        """Learn where newcomers are, and write it down if it is time."""
        live = [presence.peer for presence in self._membership.roster.live(self._clock.monotonic())]
        others = [peer for peer in live if peer != self._node.identity.peer_id]
        known = set(self._book.peers())
        for peer in [peer for peer in others if peer not in known][:_AT_ONCE]:
            self._book.heard(await self._node.addresses_of(peer))
        # The first one found is worth a write at once: without it there would be nobody to ask.
        due = not self._in_book or self._clock.monotonic() - self._wrote_at >= _WRITE_S
        if due and self._in_book != frozenset(self._book.peers()):
            self._write()

    def _write(self) -> None:
        self._wrote_at, self._in_book = self._clock.monotonic(), frozenset(self._book.peers())
        if self._folder is None:
            return
        try:
            self._book.save(self._folder)
        except OSError as err:
            _log.error("cannot write who else is in the run to %s: %s", self._folder, err.strerror or err)


def _tell(peer: PeerId) -> None:
    _log.info("found worker %s, of which nothing was heard", short_id(peer))
