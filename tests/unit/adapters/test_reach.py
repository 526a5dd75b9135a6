"""Who is asked dials back, and only there; two real nodes on loopback for what needs them."""

import asyncio

import pytest

from decentral.adapters.address import parse_address
from decentral.adapters.node import NodeOptions, open_node
from decentral.adapters.reach import REACH, Dialled, ask_reach, serve_reach
from decentral.adapters.speed import measure_speed
from decentral.errors import CallRefused
from decentral.ports.transport import Handler
from decentral.swarm.message import to_wire
from decentral.types import PeerId

ME, OTHER = PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"), PeerId("Qm" + "1" * 44)


class Wire:
    """A transport to a peer that answers by itself."""

    def __init__(self) -> None:
        self.handler: Handler | None = None

    async def serve(self, method: str, handler: Handler, **limits: object) -> None:
        self.handler = handler

    async def call(self, peer: PeerId, method: str, request: bytes, **limits: object) -> bytes:
        if self.handler is None:
            raise CallRefused("unknown method")
        return await self.handler(ME, request)


def test_who_listens_is_seen_and_who_does_not_is_told_why() -> None:
    async def scenario() -> None:
        a = await open_node(NodeOptions(host="127.0.0.1"))
        b = await open_node(NodeOptions(host="127.0.0.1", initial_peers=(a.addresses()[0],)))
        try:
            peer, own = a.transport.peer_id, parse_address(b.addresses()[0])
            there = await ask_reach(b.transport, peer, own.port)
            assert there is not None
            assert (there.by, there.dialled, there.why) == (peer, Dialled.OPEN, "")
            assert there.place is not None
            assert there.place.host == "127.0.0.1"
            assert abs(there.clock_ahead_s) < there.took_s + 1
            other = await ask_reach(b.transport, peer, parse_address(a.addresses()[0]).port)
            assert other is not None
            assert other.dialled is Dialled.OTHER
            nobody = await ask_reach(b.transport, peer, 1)
            assert nobody is not None
            assert (nobody.dialled, nobody.why) == (
                Dialled.CLOSED,
                "Nothing listens on 127.0.0.1:1 (connection refused).",
            )
            speed = await measure_speed(b.transport, peer)
            assert speed is not None
            assert min(speed.up_bytes_per_s, speed.down_bytes_per_s, speed.round_trip_s) > 0
        finally:
            await b.close()
            await a.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("seen", ["", f"/ip4/127.0.0.1/tcp/5/p2p/{OTHER}/p2p-circuit", "/ip4/127.0.0.1/udp/5/quic-v1"])
def test_nobody_is_dialled_whose_own_address_is_not_seen(seen: str) -> None:
    async def scenario() -> None:
        wire = Wire()
        await serve_reach(wire, lambda peer: seen)  # type: ignore[arg-type]
        sight = await ask_reach(wire, OTHER, 5)  # type: ignore[arg-type]
        assert sight is not None
        assert (sight.dialled, sight.place) == (Dialled.RELAYED, None)

    asyncio.run(scenario())


def test_an_answer_that_is_none_is_no_answer() -> None:
    async def scenario() -> None:
        wire = Wire()
        assert await ask_reach(wire, OTHER, 5) is None  # type: ignore[arg-type]
        for answer in (b"", to_wire(["open", "", "nowhere", 0.0]), to_wire(["ajar", "", "", 0.0])):

            async def lie(sender: PeerId, request: bytes, answer: bytes = answer) -> bytes:
                return answer

            await wire.serve(REACH, lie)
            assert await ask_reach(wire, OTHER, 5) is None  # type: ignore[arg-type]

    asyncio.run(scenario())
