"""Where peers are to be found, told by records, without a daemon; between machines in tests/process/test_nat.py."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from decentral.adapters import own_network
from decentral.adapters.address import Address, parse_address
from decentral.adapters.daemon import DaemonError
from decentral.adapters.identity import KeyIdentity
from decentral.adapters.own_network import OwnNetwork
from decentral.adapters.reach import REACH, Reached, Sight, Way
from decentral.adapters.relay import RELAY, Tunnel
from decentral.adapters.whereabouts import KEY, Self, Whereabouts
from decentral.errors import CallRefused, PeerUnreachable
from decentral.swarm.message import to_wire
from decentral.types import PeerId

ME, RELAYING, SPARE, OTHER = (KeyIdentity.generate() for _ in range(4))
JOINED = PeerId("Qm" + "J" * 44)


class World:
    """Directory, daemon and transport of one peer, and what there is."""

    def __init__(self) -> None:
        self.peer_id = ME.peer_id
        self.relays = {RELAYING.peer_id: 4001}
        """Who gives which port."""
        self.records: dict[str, bytes] = {}
        self.connected: list[PeerId] = []
        self.dialled: list[str] = []
        self.has_published = asyncio.Event()

    async def publish(self, key: str, subkey: str, value: bytes, *, ttl_s: float) -> bool:
        self.records[subkey] = value
        self.has_published.set()
        return True

    async def lookup(self, key: str) -> dict[str, bytes]:
        return dict(self.records)

    async def close(self) -> None: ...

    async def connect(self, peer: PeerId, addresses: list[str]) -> None:
        self.dialled += addresses
        if "203.0.113.99" in addresses[0]:
            raise DaemonError("nobody is there")
        self.connected.append(peer)

    async def peers(self) -> list[PeerId]:
        return self.connected

    async def disconnect(self, peer: PeerId) -> None:
        self.connected = [each for each in self.connected if each != peer]

    def seen_at(self, peer: PeerId) -> str:
        return ""

    def is_barred(self, peer: PeerId) -> bool:
        return False

    async def call(self, peer: PeerId, method: str, request: bytes, **limits: Any) -> bytes:
        if method == RELAY:
            if peer not in self.relays:
                raise CallRefused("no such method") if peer == JOINED else PeerUnreachable("gone")
            return to_wire([self.relays[peer]])
        assert method == REACH
        return to_wire(["open", "", "/ip4/203.0.113.50/tcp/555", 0.0])

    def tells(self, who: KeyIdentity, address: str, *, relays: bool, by: KeyIdentity | None = None) -> None:
        body = to_wire([KEY, who.peer_id, address, relays])
        self.records[who.peer_id] = to_wire([address, relays, (by or who).sign(body)])


def at(who: KeyIdentity, host: str, port: int = 31_337) -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{who.peer_id}"


@pytest.fixture(autouse=True)
def _reached_at_places(monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(address: Address, **limits: Any) -> None: ...

    monkeypatch.setattr("decentral.adapters.relay.probe", probe)
    monkeypatch.setattr("decentral.adapters.whereabouts._LOOK_S", 0.001)


def whereabouts(world: World, way: Way) -> Whereabouts:
    wire: Any = world
    sight = Sight(JOINED, "closed", "", 31_337, Address("203.0.113.1", 9), 0.0, 0.0)  # type: ignore[arg-type]
    joined = [Address("203.0.113.9", 31_337, JOINED)]
    tunnel = Tunnel(wire, wire, "0.0.0.0", 31_337)
    return Whereabouts(Self(ME, 31_337), wire, wire, world, tunnel, Reached(way, sight), joined)


def test_a_place_is_had_at_any_relay_that_says_so_and_at_another_one_when_that_is_gone() -> None:
    async def scenario() -> None:
        world = World()
        own = whereabouts(world, Way.NONE)
        await own.look()
        assert (own.reached.way, own.place) == (Way.NONE, None)  # whom it joined does not relay
        world.tells(RELAYING, at(RELAYING, "203.0.113.5"), relays=True)
        await own.look()
        assert own.reached.way is Way.RELAYED
        assert own.place == parse_address(at(ME, "203.0.113.5", 4001))
        assert at(ME, "203.0.113.5", 4001).encode() in world.records[ME.peer_id]
        world.relays = {SPARE.peer_id: 4002}
        await own.look()
        assert (own.reached.way, own.place) == (Way.NONE, None)
        world.tells(SPARE, at(SPARE, "203.0.113.6"), relays=True)
        await own.look()
        assert own.place == parse_address(at(ME, "203.0.113.6", 4002))

    asyncio.run(scenario())


def test_who_is_elsewhere_is_dialled_there_on_its_own_word_alone() -> None:
    async def scenario() -> None:
        world = World()
        own = whereabouts(world, Way.DIRECT)
        world.tells(OTHER, at(OTHER, "203.0.113.7", 5001), relays=False)
        world.tells(SPARE, at(SPARE, "203.0.113.66"), relays=True, by=OTHER)
        world.tells(RELAYING, at(OTHER, "203.0.113.67"), relays=True)
        world.records["x"] = b"no record"
        await own.look()
        assert world.dialled == ["/ip4/203.0.113.7/tcp/5001"]
        world.dialled.clear()
        await own.look()
        assert world.dialled == []  # they are connected
        assert ME.peer_id not in world.records  # there is nothing to be said
        world.tells(SPARE, at(SPARE, "203.0.113.99"), relays=False)
        await own.look()  # nobody is there

    asyncio.run(scenario())


def test_in_another_network_it_connects_anew_and_is_found_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        world = World()
        world.connected = [JOINED, OTHER.peer_id]
        own = whereabouts(world, Way.DIRECT)
        changes = iter([False, True])
        monkeypatch.setattr(OwnNetwork, "has_changed", lambda self: next(changes, False))
        running = asyncio.create_task(own.run())
        async with asyncio.timeout(60):
            await world.has_published.wait()
        running.cancel()
        assert "another network" in caplog.text
        assert world.connected == []
        assert own.place == parse_address(at(ME, "203.0.113.50", 31_337))
        # Who has said where it is found is found there by its name.
        named = whereabouts(world, Way.DIRECT)
        named._own = replace(named._own, announces=True)
        await named._move()
        await named.look()
        assert named.place is None

    asyncio.run(scenario())


def test_an_address_that_is_gone_is_another_network_and_one_more_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_at(*addresses: str, lost: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(own_network, "_source", dict(zip(own_network._ANYWHERE, addresses, strict=False)).get)
        monkeypatch.setattr(own_network, "_is_own", lambda address: address not in lost)

    is_at("192.168.1.5")
    network = OwnNetwork([])
    is_at("192.168.1.5", "2001:db8::5")
    assert not network.has_changed()
    is_at("", "", lost=("192.168.1.5", "2001:db8::5"))
    assert not network.has_changed()  # there is none at all, for now
    is_at("10.0.0.7", lost=("192.168.1.5", "2001:db8::5"))
    assert network.has_changed()
    assert network.addresses == ("10.0.0.7",)
    assert not network.has_changed()
    monkeypatch.undo()
    assert OwnNetwork(["127.0.0.1", "a.name"]).addresses[-1] == "127.0.0.1"
    assert not OwnNetwork(["127.0.0.1"]).has_changed()
