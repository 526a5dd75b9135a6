"""A place at another worker for one that nobody reaches: what comes to a port there is passed on to it.

libp2p's own relays, as the daemon has them, cut a connection after 128 KiB (ADR 13). A worker that relays listens on a
further port for each peer that asks for a place, and passes what comes there on by a stream to it; that one hands it to
its own daemon. What travels is a connection of libp2p's from end to end: the relay can read nothing of it and pretend
to be nobody, and who is let in is decided by the proofs of those two. Places are for peers that the relay lets in.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.adapters.address import Address, parse_address
from decentral.adapters.daemon import Daemon
from decentral.adapters.probe import probe
from decentral.adapters.transport import HivemindTransport
from decentral.errors import CallRefused, DecentralError, FrameError, TransportError, UsageError
from decentral.swarm.message import Message, from_wire, to_wire
from decentral.types import PeerId, short_id

_log = logging.getLogger(__name__)
RELAY = "relay"
RELAYED = "/decentral/relayed/1"
#: A place is kept for so long after it was asked for last, which is done more often (``whereabouts``).
_KEEP_S = 180.0
_MAX_PLACES = 64
#: Connections passed on at a time, of a place.
_MAX_CONNECTIONS = 256
_TIMEOUT_S = 5.0


class _Place(Message, frozen=True):
    """Question and answer: the port that was had before or none, and the one that is had now."""

    what: ClassVar[str] = "place at a relay"
    port: Annotated[int, Meta(ge=0, lt=65_536)]


@dataclass(slots=True)
class _Held:
    server: asyncio.Server
    port: int
    expires: asyncio.TimerHandle
    num_connections: int = 0


class Relay:
    """Gives places. ``close`` it before its transport.

    Args:
        transport: of this peer; the streams' bytes count within its upload limit.
        host: to listen on.
        ports: to take for places, one each; any free ones if there are none.
    """

    def __init__(self, transport: HivemindTransport, host: str, ports: Sequence[int]) -> None:
        self._transport = transport
        self._host = host
        self._ports = ports or (0,)
        self._places: dict[PeerId, _Held] = {}

    async def serve(self) -> None:
        """Begin."""
        await self._transport.serve(RELAY, self._on_ask, max_request_bytes=_Place.max_bytes, max_concurrent=8)

    async def close(self) -> None:
        """Give all places up. Idempotent."""
        for peer in list(self._places):
            self._drop(peer)

    async def _on_ask(self, sender: PeerId, request: bytes) -> bytes:
        wanted = from_wire(_Place, request).port
        held = self._places.get(sender)
        expires = asyncio.get_running_loop().call_later(_KEEP_S, self._drop, sender)
        try:
            if held is None:
                held = self._places[sender] = await self._open(sender, wanted, expires)
        except BaseException:
            expires.cancel()
            raise
        if held.expires is not expires:
            held.expires.cancel()
            held.expires = expires
        return to_wire(_Place(held.port))

    async def _open(self, peer: PeerId, wanted: int, expires: asyncio.TimerHandle) -> _Held:
        if len(self._places) >= _MAX_PLACES:
            raise CallRefused(f"all {_MAX_PLACES} places of this relay are taken")

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._pass_on(peer, reader, writer)

        ports = [wanted, *self._ports] if wanted in self._ports or self._ports == (0,) else list(self._ports)
        for port in ports:
            try:
                listening = _listening_socket(self._host, port)
            except OSError:
                continue
            server = await asyncio.start_server(accept, sock=listening)
            return _Held(server, server.sockets[0].getsockname()[1], expires)
        raise CallRefused("no port of this relay is free")

    async def _pass_on(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = self._places.get(peer)
        if held is None or held.num_connections >= _MAX_CONNECTIONS:
            writer.close()
            return
        held.num_connections += 1
        try:
            async with self._transport.stream(peer, RELAYED) as stream:
                await self._transport.splice(stream, (reader, writer))
        except TransportError as err:
            _log.debug("nothing passed on to %s: %s", short_id(peer), err)
        finally:
            held.num_connections -= 1
            writer.transport.abort()

    def _drop(self, peer: PeerId) -> None:
        if held := self._places.pop(peer, None):
            held.expires.cancel()
            held.server.close()


def _listening_socket(host: str, port: int) -> socket.socket:
    """For both families where the host is all addresses of the machine."""
    is_six = ":" in host
    family = socket.AF_INET6 if is_six else socket.AF_INET
    return socket.create_server((host, port), family=family, dualstack_ipv6=is_six and host == "::")


class Tunnel:
    """This peer's end of its place at a relay, if it has one.

    Args:
        transport: of this peer.
        daemon: its daemon, to which what comes is passed on.
        host: on which that listens.
        port: on which that listens.
        place: that this peer has, as ``open`` gave it.
    """

    def __init__(
        self, transport: HivemindTransport, daemon: Daemon, host: str, port: int, place: Address | None = None
    ) -> None:
        self._transport = transport
        self._daemon = daemon
        self.port = port
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.place = place
        """With the relay's own id."""
        self._num_connections = 0

    async def open(self, relay: Address, port: int) -> Address | None:
        """Ask for a place, and see whether this peer is reached there.

        Args:
            relay: where a worker listens that may be one.
            port: that is liked best.

        Returns:
            The place; ``None`` if that is no relay, it has none, or a firewall is before it.
        """
        if relay.peer is None:
            return None
        try:
            self.place = replace(relay, port=await self._ask(relay.peer, port))
            await probe(self.place.with_peer(self._transport.peer_id), timeout_s=_TIMEOUT_S)
        except (TransportError, FrameError, DecentralError) as err:
            _log.debug("no place at %s: %s", short_id(relay.peer), err)
            self.place = None
        return self.place

    async def renew(self) -> bool:
        """Hold the place for a while longer; whether it is still had."""
        if self.place is None or self.place.peer is None:
            return False
        try:
            return await self._ask(self.place.peer, self.place.port) == self.place.port
        except (TransportError, FrameError):
            return False

    async def _ask(self, relay: PeerId, port: int) -> int:
        reply = await self._transport.call(
            relay, RELAY, to_wire(_Place(port)), timeout_s=_TIMEOUT_S, max_reply_bytes=_Place.max_bytes
        )
        return from_wire(_Place, reply).port

    async def receive(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a stream of the relay's on to the daemon; of anybody else's nothing."""
        if self.place is None or sender != self.place.peer or self._num_connections >= _MAX_CONNECTIONS:
            writer.close()
            return
        self._num_connections += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                ends = await asyncio.open_connection(self._host, self.port)
            await self._transport.splice((reader, writer), ends)
        except OSError as err:
            _log.debug("our own daemon takes no connection: %s", err)
        finally:
            self._num_connections -= 1
            writer.transport.abort()

    def seen_at(self, peer: PeerId) -> str:
        """Where a peer's last stream came from; nothing of one that came by the relay, as all seem to be here then."""
        place = self._daemon.seen_at(peer)
        with contextlib.suppress(UsageError):
            if self.place is not None and place and parse_address(place).host == self._host:
                return ""
        return place
