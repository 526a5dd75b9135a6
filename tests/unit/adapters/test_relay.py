"""A place at a relay, over sockets of one process; between real workers it is in tests/process/test_nat.py."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from decentral.adapters import relay as module
from decentral.adapters.address import Address
from decentral.adapters.relay import RELAY, Relay, Tunnel
from decentral.adapters.transport import Ends, HivemindTransport
from decentral.errors import CallRefused, FrameError, PeerUnreachable
from decentral.ports.transport import Handler
from decentral.swarm.message import to_wire
from decentral.types import PeerId

RELAYING, HOME, STRANGER = (PeerId("Qm" + letter * 44) for letter in "RHS")


class Wired(HivemindTransport):
    """Of the relay, with a stream to whoever has a tunnel here."""

    def __init__(self, tunnels: dict[PeerId, Tunnel]) -> None:
        super().__init__(SimpleNamespace(), RELAYING)  # type: ignore[arg-type]
        self.handlers: dict[str, Handler] = {}
        self._tunnels = tunnels

    async def serve(self, method: str, handler: Handler, **limits: Any) -> None:
        self.handlers[method] = handler

    @contextlib.asynccontextmanager
    async def stream(self, peer: PeerId, protocol: str) -> AsyncIterator[Ends]:
        if peer not in self._tunnels:
            raise PeerUnreachable("gone")

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._tunnels[peer].receive(RELAYING, reader, writer)

        async with await asyncio.start_server(receive, "127.0.0.1") as server:
            yield await asyncio.open_connection(*server.sockets[0].getsockname())

    async def ask(self, sender: PeerId, port: int = 0) -> int:
        reply = await self.handlers[RELAY](sender, to_wire([port]))
        return int(reply[1:].hex(), 16) & 0xFFFF


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[tuple[Wired, Relay, Tunnel]]:
    """A relay, and a peer with a place there whose daemon says what it is told."""
    tunnels: dict[PeerId, Tunnel] = {}
    transport = Wired(tunnels)
    relay = Relay(transport, "127.0.0.1", ())
    await relay.serve()
    async with await asyncio.start_server(echo, "127.0.0.1") as daemon:
        port = daemon.sockets[0].getsockname()[1]
        seen = SimpleNamespace(seen_at=lambda peer: "/ip4/127.0.0.1/tcp/5")
        tunnels[HOME] = tunnel = Tunnel(transport, seen, "0.0.0.0", port)  # type: ignore[arg-type]
        try:
            yield transport, relay, tunnel
        finally:
            await relay.close()
            await transport.close()


async def said(port: int, data: bytes) -> bytes:
    """What comes back from a port; nothing if it is closed under us."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await reader.readexactly(len(data))
    except (OSError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()


def test_what_comes_to_a_place_reaches_whose_it_is_and_only_by_its_own_relay() -> None:
    async def scenario() -> None:
        async with world() as (transport, relay, tunnel):
            port = await transport.ask(HOME)
            assert await said(port, b"too early") == b""  # it has asked for no place here
            tunnel.place = Address("127.0.0.1", port, RELAYING)
            data = bytes(range(256)) * 4096
            assert await asyncio.gather(said(port, data), said(port, b"x")) == [data, b"x"]
            assert transport.traffic().sent_bytes >= 2 * len(data)  # and so within the upload limit
            assert await transport.ask(HOME, port) == port
            tunnel.place = Address("127.0.0.1", port, STRANGER)
            assert await said(port, b"by another") == b""
            # Who comes by the relay seems to be on this machine, which nobody may have us dial.
            assert tunnel.seen_at(STRANGER) == ""
            tunnel.place = None
            assert tunnel.seen_at(STRANGER) == "/ip4/127.0.0.1/tcp/5"
            await relay.close()
            with pytest.raises(OSError):  # noqa: PT011
                await said(port, b"given up")

    asyncio.run(scenario())


def test_places_are_bounded_in_number_ports_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PLACES", 2)

    async def scenario() -> None:
        async with world() as (transport, _, _):
            first, second = await transport.ask(HOME), await transport.ask(RELAYING)
            assert first != second
            with pytest.raises(CallRefused, match="all 2 places"):
                await transport.ask(STRANGER)
            monkeypatch.setattr(module, "_KEEP_S", 0.01)
            assert await transport.ask(HOME, first) == first
            await asyncio.sleep(0.1)
            monkeypatch.setattr(module, "_KEEP_S", 60.0)
            assert await transport.ask(STRANGER, first) == first  # the other one has not come back
            alone = Relay(transport, "127.0.0.1", (first,))
            await alone.serve()
            with pytest.raises(CallRefused, match="no port"):
                await transport.ask(HOME, first)
            with pytest.raises(FrameError):
                await transport.handlers[RELAY](HOME, b"\x91\x01\x01")

    asyncio.run(scenario())
