"""News of members spreads by itself: a directory that hangs changes nothing for those who know each other."""

import asyncio
import contextlib
from collections import defaultdict

import pytest

from decentral.engine import membership
from decentral.engine.membership import PRESENCE, Membership
from decentral.monitor.events import PeerLost, PeerSeen, RoundMixed
from decentral.monitor.journal import MemoryJournal
from decentral.ports.transport import Traffic
from decentral.sim import loop
from decentral.sim.directory import MemoryDirectory
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.transport import MemoryTransport
from decentral.sim.world import World, peer_id
from decentral.swarm.presence import Metrics, Presence, State
from decentral.swarm.timing import Timing
from decentral.types import PeerId, short_id

TIMING = Timing()


async def started(world: World, number: int, journal: MemoryJournal | None = None, tokens: int = 0) -> Membership:
    """A member that answers; its heart does not beat yet."""
    peer = world.add(peer_id(number))
    member = Membership(
        Presence(peer.peer_id, "run", 0, State.TRAINING, 0, 0, ""),
        metrics=lambda: Metrics(tokens=tokens),
        transport=peer.transport,
        directory=peer.directory,
        clock=peer.clock,
        identity=peer.identity,
        timing=TIMING,
        journal=journal or MemoryJournal(),
    )
    await member.start()
    return member


def test_everybody_is_known_with_the_figures_of_this_moment_the_worker_itself_as_well() -> None:
    async def play() -> None:
        world = World(seed=0)
        members = [await started(world, number, tokens=7 + number) for number in range(2)]
        await members[0].tell(peer_id(1))
        assert {(p.peer, p.metrics.tokens) for p, _ in members[0].everybody()} == {(peer_id(0), 7), (peer_id(1), 8)}

    loop.run(play(), until_s=1e4)


def test_links_are_told_with_bytes_and_the_quickest_way_but_not_in_a_large_swarm(monkeypatch) -> None:
    async def play() -> None:
        world = World(seed=0)
        members = [await started(world, number) for number in range(2)]
        gone = peer_id(7)
        monkeypatch.setattr(MemoryTransport, "by_peer", lambda self: {gone: Traffic(9, 9), peer_id(1): Traffic(5, 3)})
        await members[0].tell(peer_id(1))
        assert [p.metrics.links for p, _ in members[1].everybody() if p.peer == peer_id(0)] == [()]
        members[0].update()
        await members[0].tell(peer_id(1))
        ((link,),) = [p.metrics.links for p, _ in members[1].everybody() if p.peer == peer_id(0)]
        assert (link.id, link.sent_bytes, link.received_bytes) == (short_id(peer_id(1)), 5, 3)
        assert 0 < link.round_trip_s < 1
        monkeypatch.setattr(membership, "MAX_LINKED", 1)
        assert [p.metrics.links for p, _ in members[0].everybody() if p.peer == peer_id(0)] == [()]

    loop.run(play(), until_s=1e4)


def test_who_says_that_it_is_furthest_is_asked_for_its_state_only_where_all_hold_the_same() -> None:
    async def play() -> None:
        world = World(seed=0)
        members = [await started(world, number) for number in range(21)]
        for number, member in enumerate(members[1:], 1):
            member.update(round=number)
            await members[0].tell(peer_id(number))
        given, furthest = peer_id(3), {peer_id(number) for number in range(14, 21)}
        assert members[0].donors([given], common=True) == [given, *sorted(furthest, reverse=True)]
        drawn = [members[0].donors([given], common=False) for _ in range(20)]
        assert all((donors[0], len(set(donors))) == (given, 8) for donors in drawn)
        assert set().union(*drawn) == {peer_id(number) for number in range(1, 21)}

    loop.run(play(), until_s=1e4)


@pytest.fixture
def _hanging_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*args: object, **kwargs: object) -> None:
        await asyncio.sleep(1e9)

    monkeypatch.setattr(MemoryDirectory, "publish", hang)
    monkeypatch.setattr(MemoryDirectory, "lookup", hang)


def test_of_many_that_are_known_the_directory_tells_of_those_who_were_silent_longest(monkeypatch) -> None:
    monkeypatch.setattr(membership, "_NUM_FROM_DIRECTORY", 2)

    async def play() -> None:
        world = World(seed=0)
        reader, *others = [await started(world, number) for number in range(5)]
        for number in (3, 1, 2):
            await reader.tell(peer_id(number))
        for other in others:
            other.update(round=1)
            await other._ask_directory()
        await reader._ask_directory()
        newer = {p.peer for p, _ in reader.everybody() if p.round}
        assert newer == {peer_id(3), peer_id(4)}, "of two, itself among them, whoever was silent, and the stranger"

    loop.run(play(), until_s=1e4)


@pytest.mark.usefixtures("_hanging_directory")
def test_a_hanging_directory_delays_no_sign_of_life() -> None:
    async def play() -> None:
        world = World(seed=0)
        members = [await started(world, number) for number in range(2)]
        await members[0].tell(peer_id(1))
        hearts = [asyncio.create_task(member.run()) for member in members]
        await asyncio.sleep(10 * TIMING.ttl_s)
        now = world.peers[peer_id(0)].clock.monotonic()
        assert [p.peer for p in members[0].roster.active(now)] == [peer_id(0), peer_id(1)]
        assert members[0].roster.get(peer_id(1)) != Presence(peer_id(1), "run", 0, State.TRAINING, 0, 0, "")
        for heart in hearts:
            heart.cancel()

    loop.run(play(), until_s=1e4)


def test_a_directory_that_swallows_its_cancellation_keeps_nobody_from_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    async def swallow(*args: object, **kwargs: object) -> dict[str, bytes]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1e9)
        return {}

    async def play() -> None:
        heart = asyncio.create_task((await started(World(seed=0), 0)).run())
        await asyncio.sleep(TIMING.ttl_s)
        heart.cancel()
        assert await asyncio.wait({heart}, timeout=TIMING.ttl_s) == ({heart}, set())

    monkeypatch.setattr(MemoryDirectory, "lookup", swallow)
    loop.run(play(), until_s=1e4)


@pytest.mark.usefixtures("_hanging_directory")
@pytest.mark.parametrize("seed", range(4))
def test_no_round_splits_when_workers_join(seed: int) -> None:
    record = simulate(Scenario(seed, num_workers=6, rounds=8, step_s=0.07))
    members = defaultdict(set)
    for journals in record.journals.values():
        for event in journals[0].events:
            if isinstance(event, RoundMixed):
                members[event.round].add(event.members)
    assert {round_: participants for round_, participants in members.items() if len(participants) > 1} == {}
    assert len(next(iter(members[7]))) == 6


@pytest.mark.usefixtures("_hanging_directory")
def test_who_hangs_makes_nobody_else_look_dead() -> None:
    async def hang(sender: PeerId, request: bytes) -> bytes:
        await asyncio.sleep(1e9)
        return b""

    async def play() -> None:
        world = World(seed=0)
        members = [await started(world, number, journals[number]) for number in range(len(journals))]
        for member in members:
            await asyncio.gather(*(member.tell(other.own.peer) for other in members if other is not member))
        hanging, *others = members
        transport = world.peers[hanging.own.peer].transport
        await transport.serve(PRESENCE, hang, max_request_bytes=1 << 20)
        hearts = [asyncio.create_task(member.run()) for member in others]
        await asyncio.sleep(4 * TIMING.ttl_s)
        for heart in hearts:
            heart.cancel()

    journals = [MemoryJournal() for _ in range(4)]
    loop.run(play(), until_s=1e4)
    gone = [[event.peer for event in journal.events if isinstance(event, PeerLost)] for journal in journals[1:]]
    assert gone == [[peer_id(0)]] * 3


def test_after_a_pause_the_others_are_asked_before_they_count_as_dead() -> None:
    async def play() -> None:
        world = World(seed=0)
        sleeper, *others = [await started(world, number) for number in range(3)]
        for other in others:
            await sleeper.tell(other.own.peer)
        await asyncio.sleep(2 * TIMING.ttl_s)
        now = world.peers[peer_id(0)].clock.monotonic
        assert sleeper.roster.active(now()) == ()
        for other in others:
            other.update()
        await sleeper.catch_up()
        assert [p.peer for p in sleeper.roster.active(now()) if p.peer != peer_id(0)] == [peer_id(1), peer_id(2)]

    loop.run(play(), until_s=1e4)


@pytest.mark.parametrize(
    ("last", "reason"),
    [(State.LEAVING, "it left"), (State.DONE, "it is done"), (State.TRAINING, "silent or unreachable")],
)
def test_the_journal_says_why_a_worker_is_gone(last: State, reason: str) -> None:
    journal = MemoryJournal()

    async def play() -> None:
        world = World(seed=0)
        witness, other = await started(world, 0, journal), await started(world, 1)
        await other.tell(witness.own.peer)
        await witness.beat()
        other.update(state=last)
        await other.tell(witness.own.peer)
        world.network.crash(other.own.peer)
        for _ in range(8):
            await asyncio.sleep(TIMING.ttl_s / 4)
            await witness.beat()

    loop.run(play(), until_s=1e4)
    assert journal.events == [PeerSeen(peer_id(1)), PeerLost(peer_id(1), reason)]
