"""Who is found by a worker that comes back, and how long it waits for whom."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from decentral.engine.background import Background
from decentral.engine.membership import Membership
from decentral.engine.reunion import Found, Known, Reunion
from decentral.monitor.journal import MemoryJournal
from decentral.sim import loop
from decentral.sim.world import World, peer_id
from decentral.swarm.presence import Metrics, Presence, State
from decentral.swarm.timing import Timing
from decentral.types import PeerId

TIMING = Timing()


@dataclass(frozen=True)
class There:
    """Another worker: from when on it answers, and as what."""

    state: State = State.JOINING
    digest: str = "digest"
    round: int = 5
    from_s: float = 0.0


def found(others: Sequence[There], known: int | None = None, round_: int = 5) -> tuple[Found, float]:
    """What a worker whose state is of ``round_`` finds, and after how long."""

    async def play() -> tuple[Found, float]:
        world = World(seed=0)

        def member(number: int, there: There) -> Membership:
            peer = world.add(peer_id(number))
            return Membership(
                Presence(peer.peer_id, "run", 0, there.state, there.round, 0, there.digest),
                metrics=Metrics,
                transport=peer.transport,
                directory=peer.directory,
                clock=peer.clock,
                identity=peer.identity,
                timing=TIMING,
                journal=MemoryJournal(),
            )

        async def live(number: int, there: There) -> None:
            await asyncio.sleep(there.from_s)
            other = member(number, there)
            await other.start()
            await other.run()

        async def dial(peer: PeerId) -> bool:
            return peer in world.peers

        own = member(0, There(round=round_))
        await own.start()
        peers = [peer_id(1 + number) for number in range(len(others) if known is None else known)]
        clock, said = world.peers[peer_id(0)].clock, list[str]()
        async with Background() as beside:
            beside.begin(own.run())
            for number, there in enumerate(others, 1):
                beside.begin(live(number, there))
            result = await Reunion(Known(lambda: peers, dial), own, clock, TIMING.beat_s, said.append).found()
        assert said[-1] == ""
        return result, clock.monotonic()

    return loop.run(play(), until_s=1000.0)


def test_who_knew_nobody_waits_for_nobody() -> None:
    assert found([]) == (Found([], []), 0.0)


def test_all_who_come_back_are_waited_for() -> None:
    who, after_s = found([There(), There(round=7, from_s=12.0)])
    assert (who.members, sorted(who.returning)) == ([], [peer_id(1), peer_id(2)])
    assert 12.0 <= after_s < 12.0 + 3 * TIMING.beat_s


def test_who_does_not_come_is_waited_for_half_a_minute() -> None:
    who, after_s = found([There()], known=2)
    assert who == Found([], [peer_id(1)])
    assert 30.0 <= after_s < 30.0 + TIMING.beat_s


@pytest.mark.parametrize("state", [State.TRAINING, State.SYNCING, State.STALLED, State.CATCHING_UP, State.DONE])
def test_a_swarm_that_runs_is_not_kept_waiting(state: State) -> None:
    who, after_s = found([There(), There(state, round=9), There(state, round=8)], known=9)
    assert who.members[:1] == [peer_id(2)]
    assert after_s < 3 * TIMING.beat_s


def test_a_newcomer_with_nothing_to_give_is_nobody() -> None:
    assert found([There(digest="", round=0)])[0] == Found([], [])


def test_one_that_goes_on_with_less_is_not_joined() -> None:
    who, after_s = found([There(State.TRAINING, round=4)])
    assert who == Found([], [])
    assert after_s < 3 * TIMING.beat_s


def test_one_that_leaves_is_not_there() -> None:
    who, after_s = found([There(State.LEAVING)])
    assert who == Found([], [])
    assert after_s >= 30.0
