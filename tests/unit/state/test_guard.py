"""Snapshots in neighbours' memory: kept within a bound, given once, and only of those who are gone."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from decentral.sim.loop import run
from decentral.sim.world import SimPeer, World, peer_id
from decentral.state import guard as module
from decentral.state.guard import FETCH, Found, Guard, Protector, claim, guards_of
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId

PIECE = 100
OWNER, FIRST, SECOND, NEWCOMER, LATER = (peer_id(number) for number in range(5))
TIMING = Timing()
DATA = random.Random(7).randbytes(1234)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", PIECE)


class House:
    """Peers with a roster and a guard each, which all know each other."""

    def __init__(self, max_bytes: int = 10_000) -> None:
        self.world = World(0)
        self.peers = {peer: self.world.add(peer) for peer in (OWNER, FIRST, SECOND, NEWCOMER, LATER)}
        self.rosters = {peer: Roster(TIMING.ttl_s) for peer in self.peers}
        self.guards = {
            peer: Guard(each.transport, self.rosters[peer], each.clock, max_bytes) for peer, each in self.peers.items()
        }
        self.told: list[tuple[int, int, Sequence[PeerId]]] = []
        self.sent = asyncio.Event()
        self._seq = 0

    async def start(self, *members: PeerId) -> None:
        for peer in (FIRST, SECOND):
            await self.guards[peer].start()
        for member in members or (OWNER, FIRST, SECOND):
            self.hear(member, State.TRAINING)

    def hear(self, peer: PeerId, state: State) -> None:
        self._seq += 1
        for listener, roster in self.rosters.items():
            now = self.peers[listener].clock.monotonic()
            roster.observe(Presence(peer, "run", self._seq, state, 0, 0, ""), now)

    def gone(self, peer: PeerId) -> None:
        for roster in self.rosters.values():
            roster.bury(peer)

    def protector(self, copies: int = 1, owner: PeerId = OWNER) -> Protector:
        each = self.peers[owner]

        def told(step: int, size: int, seconds: float, keepers: Sequence[PeerId]) -> None:
            self.told.append((step, size, keepers))
            self.sent.set()

        return Protector(each.transport, self.rosters[owner], each.clock, TIMING, copies, told)

    async def give(self, step: int = 5, data: bytes = DATA, copies: int = 1, owner: PeerId = OWNER) -> None:
        """Have a snapshot sent."""
        protector = self.protector(copies, owner)
        task = asyncio.create_task(protector.run())
        self.sent.clear()
        protector.offer(step, lambda: data)
        async with asyncio.timeout(60):
            await self.sent.wait()
        task.cancel()

    async def claim(self, newcomer: PeerId = NEWCOMER, **more: Any) -> Found | None:
        arguments = {"max_bytes": 10_000} | more
        each = self.peers[newcomer]
        return await claim(each.transport, [FIRST, SECOND], TIMING, each.clock, **arguments)


def play(scene: Callable[[House], Coroutine[Any, Any, None]], max_bytes: int = 10_000) -> House:
    async def all_of_it() -> House:
        house = House(max_bytes)
        await scene(house)
        return house

    return run(all_of_it(), until_s=1e5)


def test_a_newcomer_takes_up_what_a_lost_worker_left() -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give(step=5)
        assert await house.claim() is None, "its owner lives"
        house.gone(OWNER)
        found = await house.claim()
        assert found is not None
        assert (found.owner, found.step, found.data) == (OWNER, 5, DATA)

    house = play(scene)
    assert house.told == [(5, len(DATA), guards_of(OWNER, [FIRST, SECOND], 1))]


def test_one_that_left_in_order_leaves_an_orphan_and_one_that_is_done_does_not() -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give()
        house.hear(OWNER, State.DONE)
        assert await house.claim() is None
        house.hear(OWNER, State.LEAVING)
        assert await house.claim() is not None

    play(scene)


def test_what_is_promised_to_one_is_not_given_to_another_until_it_has_had_its_time() -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give()
        house.gone(OWNER)
        assert await house.claim(NEWCOMER) is not None
        assert await house.claim(LATER) is None
        assert await house.claim(NEWCOMER) is not None, "the same may ask again"
        await asyncio.sleep(module._PROMISE_S + 1)
        assert await house.claim(LATER) is not None

    play(scene)


def test_the_owner_itself_gets_it_back_although_it_lives_again() -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give()
        house.hear(OWNER, State.JOINING)
        found = await house.claim(OWNER)
        assert found is not None
        assert found.data == DATA
        assert await house.claim(NEWCOMER) is None

    play(scene)


def test_a_second_guard_has_it_when_the_first_is_lost_as_well() -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give(copies=2)
        house.gone(OWNER)
        first = guards_of(OWNER, [FIRST, SECOND], 1)[0]
        house.world.network.leave(house.peers[first].transport)
        found = await house.claim()
        assert found is not None
        assert found.guard != first
        assert found.data == DATA

    house = play(scene)
    assert len(house.told[0][2]) == 2


def test_the_newest_of_an_owner_replaces_the_one_before() -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give(step=5, data=b"old" * 100)
        await house.give(step=9)
        house.gone(OWNER)
        found = await house.claim()
        assert found is not None
        assert (found.step, found.data) == (9, DATA)

    house = play(scene)
    assert sum(guard.kept_bytes for guard in house.guards.values()) == len(DATA)


def test_a_guard_takes_no_more_than_its_bound_and_makes_room_at_the_price_of_the_gone() -> None:
    async def scene(house: House) -> None:
        await house.start(OWNER, FIRST, SECOND, LATER)
        await house.give(data=bytes(1500))
        await house.give(data=bytes(1500), owner=LATER, copies=2)
        assert all(guard.kept_bytes <= 2000 for guard in house.guards.values())
        assert len(house.told[-1][2]) == 1, "one guard has room, the other keeps what a living worker gave"
        house.gone(OWNER)
        await house.give(data=bytes(1600), owner=LATER, copies=2)
        assert all(guard.kept_bytes <= 2000 for guard in house.guards.values())

    play(scene, max_bytes=2000)


def test_what_is_too_large_for_the_newcomer_is_not_fetched() -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give()
        house.gone(OWNER)
        assert await house.claim(max_bytes=len(DATA) - 1) is None

    play(scene)


def test_flipped_bytes_are_not_taken_for_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        await house.start()
        await house.give(copies=1)
        house.gone(OWNER)
        liar = guards_of(OWNER, [FIRST, SECOND], 1)[0]
        original = house.guards[liar]._on_fetch

        async def flipped(sender: PeerId, request: bytes) -> bytes:
            piece = bytearray(await original(sender, request))
            piece[0] ^= 1
            return bytes(piece)

        await house.peers[liar].transport.serve(FETCH, flipped, max_request_bytes=1024)
        assert await house.claim() is None

    play(scene)


@pytest.mark.parametrize("seed", range(20))
def test_no_message_breaks_a_guard(seed: int) -> None:
    dice = random.Random(seed)

    async def scene(house: House) -> None:
        await house.start()
        await house.give(copies=2)
        caller: SimPeer = house.peers[NEWCOMER]
        house.hear(NEWCOMER, State.TRAINING)
        for _ in range(30):
            method = dice.choice([module.KEEP, module.CLAIM, module.FETCH])
            message = dice.randbytes(dice.randrange(60))
            with pytest.raises(Exception):  # noqa: B017, PT011 - refused in words, whatever they are
                await caller.transport.call(FIRST, method, message, timeout_s=5, max_reply_bytes=PIECE)
        house.gone(OWNER)
        found = await house.claim()
        assert found is not None
        assert found.data == DATA

    play(scene)
