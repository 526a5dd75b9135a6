"""Where peers are to be found that their daemons do not announce: told in the directory, signed, and kept up to date.

What a daemon announces is settled at its start. A place at a relay that is had later, because the one of before is gone
or none was known, and the address of a machine that has come to another network are told by a record, and so is who
relays. Everybody looks the records up and connects to whom it is not connected: a connection, once made, carries all
calls, and nobody else has to know. A record is its own peer's word, and whoever follows it proves at the handshake whom
it has found, so that a false one leads to nobody.

See ``docs/network.md``; what a relay does is in ``relay``.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.adapters.address import Address, parse_address
from decentral.adapters.daemon import Daemon, DaemonError, DaemonGone
from decentral.adapters.own_network import OwnNetwork
from decentral.adapters.reach import Reached, Way, asked_reach
from decentral.adapters.relay import Tunnel
from decentral.adapters.transport import HivemindTransport
from decentral.errors import FrameError, UsageError
from decentral.ports.directory import Directory
from decentral.ports.identity import Identity
from decentral.swarm.message import Message, from_wire, to_wire
from decentral.types import PeerId, short_id

_log = logging.getLogger(__name__)
KEY = "whereabouts"
#: Between two looks at the own network, and how many of them go by between two at the records and the own place.
_LOOK_S, _LOOKS_A_RENEWAL = 3.0, 5
_TTL_S = 60.0
_DIAL_S = 5.0
#: Relays that are asked for a place at a look, peers that are dialled, and how many of those at a time.
_NUM_ASKED, _MAX_DIALLED, _AT_ONCE = 8, 64, 8


class _Record(Message, frozen=True):
    what: ClassVar[str] = "record of whereabouts"
    max_bytes: ClassVar[int] = 2048
    address: Annotated[str, Meta(max_length=500)]
    """A full multiaddr."""
    relays: bool
    signature: bytes


@dataclass(frozen=True, slots=True)
class Self:
    """What this peer is."""

    identity: Identity
    port: int
    """Where others reach it, if they do."""
    relay_at: Address | None = None
    """Where others ask it for a place; ``None`` if it does not relay."""
    announces: bool = False
    """Whether its user has said where it is found, so that nobody needs to find out."""


class Whereabouts:
    """Of one peer and of the others.

    Args:
        own: this peer.
        transport: of it.
        daemon: its daemon.
        directory: where records are.
        tunnel: its end of a place at a relay.
        reached: how others reach it, as was found out at its start.
        initial: whom it has joined.
    """

    def __init__(
        self,
        own: Self,
        transport: HivemindTransport,
        daemon: Daemon,
        directory: Directory,
        tunnel: Tunnel,
        reached: Reached,
        initial: Sequence[Address],
    ) -> None:
        self._own = own
        self._transport = transport
        self._daemon = daemon
        self._directory = directory
        self._tunnel = tunnel
        self.reached = reached
        """How others reach it now."""
        self._initial = [address.listener() for address in initial]
        self._network = OwnNetwork([address.host for address in self._initial])
        self._moved_to: Address | None = None
        """Where others reach it without a relay since it has come to another network."""
        self._to_ask: list[PeerId] = []
        """Who is to dial this peer back in the network that it has come to."""

    @property
    def place(self) -> Address | None:
        """Where this peer is to be found beside what its daemon announces."""
        place = self._tunnel.place or self._moved_to
        return None if place is None else place.with_peer(self._transport.peer_id)

    async def run(self) -> None:
        """Keep everything up to date, for ever."""
        while True:
            await self.look()
            for _ in range(_LOOKS_A_RENEWAL):
                await asyncio.sleep(_LOOK_S)
                if self._network.has_changed():
                    await self._move()
                    break

    async def look(self) -> None:
        """Once: a place if one is needed, then what others say, and what is to be said of this peer."""
        if self._tunnel.place is not None and not await self._tunnel.renew():
            self._lost()
        if self._to_ask:
            await self._ask()
        found = await self._found()
        if self.reached.way in (Way.NONE, Way.INTRODUCED):
            await self._settle([*self._initial, *(address for address, relays in found.values() if relays)])
        await self._publish()
        await self._meet({peer: address for peer, (address, _) in found.items()})

    def _lost(self) -> None:
        _log.warning("the place at the relay %s is lost: others may not reach this worker", self._tunnel.place)
        self._tunnel.place = None
        self.reached = replace(self.reached, way=Way.NONE)

    async def _move(self) -> None:
        """This machine is in another network: connections from the old one are dead, which TCP finds out late."""
        _log.warning("this machine has come to another network (%s): connects anew", ", ".join(self._network.addresses))
        with contextlib.suppress(DaemonError, DaemonGone, TimeoutError):
            known = await self._daemon.peers()
            await asyncio.gather(*(self._daemon.disconnect(peer) for peer in known), return_exceptions=True)
            if not self._own.announces:
                self._to_ask = random.sample(known, min(len(known), _NUM_ASKED))
        self._moved_to = None

    async def _ask(self) -> None:
        """Find out how others reach this peer in the network to which it has come."""
        if self._tunnel.place is not None:  # and it has been renewed
            self._to_ask = []
            return
        reached = await asked_reach(self._transport, self._to_ask, self._own.port)
        if reached.sight is None or reached.sight.place is None:
            return  # nobody is there yet, and the next look asks again
        self.reached, self._to_ask = reached, []
        if reached.way is Way.DIRECT:
            self._moved_to = replace(reached.sight.place, port=self._own.port)

    async def _settle(self, relays: Sequence[Address]) -> None:
        """Ask for a place, those first whom this peer has joined."""
        mine = self._transport.peer_id
        for relay in dict.fromkeys(relay for relay in relays[:_NUM_ASKED] if relay.peer not in (None, mine)):
            await self._connect(relay)
            if (place := await self._tunnel.open(relay, self._own.port)) is not None:
                self.reached = replace(self.reached, way=Way.RELAYED)
                _log.info("has a place at the relay %s", place)
                return

    async def _publish(self) -> None:
        place, relays = self._own.relay_at or self.place, self._own.relay_at is not None
        if place is not None:
            body = _signed_part(self._transport.peer_id, text := place.multiaddr(), relays)
            record = _Record(text, relays, self._own.identity.sign(body))
            await self._directory.publish(KEY, self._transport.peer_id, to_wire(record), ttl_s=_TTL_S)

    async def _found(self) -> dict[PeerId, tuple[Address, bool]]:
        """Where others say that they are, and whether they relay; those first that come by chance."""
        entries = list((await self._directory.lookup(KEY)).items())
        random.shuffle(entries)
        found: dict[PeerId, tuple[Address, bool]] = {}
        for subkey, data in entries[:_MAX_DIALLED]:
            peer = PeerId(subkey)
            with contextlib.suppress(FrameError, UsageError):
                record = from_wire(_Record, data)
                body = _signed_part(peer, record.address, record.relays)
                address = parse_address(record.address)
                if address.peer == peer and self._own.identity.verify(peer, body, record.signature):
                    found[peer] = (address, record.relays)
        return found

    async def _meet(self, found: Mapping[PeerId, Address]) -> None:
        """Connect to those with whom there is no connection."""
        try:
            known = {self._transport.peer_id, *await self._daemon.peers()}
        except (DaemonError, DaemonGone, TimeoutError):
            return
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def meet(address: Address) -> None:
            async with at_once:
                await self._connect(address)

        absent = [peer for peer in found if peer not in known and not self._transport.is_barred(peer)]
        await asyncio.gather(*(meet(found[peer]) for peer in absent))

    async def _connect(self, address: Address) -> None:
        if address.peer is None:
            raise AssertionError("who is there is known")
        try:
            async with asyncio.timeout(_DIAL_S):
                await self._daemon.connect(address.peer, [replace(address, peer=None).multiaddr()])
        except (DaemonError, DaemonGone, TimeoutError) as err:
            _log.debug("%s is not at %s: %s", short_id(address.peer), address, err)


def _signed_part(peer: PeerId, address: str, relays: bool) -> bytes:
    return to_wire([KEY, peer, address, relays])
