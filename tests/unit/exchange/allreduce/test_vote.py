"""When a mean that a member doubts is refused, on the memory network."""

import asyncio
import math
from collections.abc import Mapping

import pytest

from decentral.errors import CallRefused
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.allreduce.vote import DOUBTED, Vote
from decentral.sim.loop import run
from decentral.sim.world import World, peer_id
from decentral.swarm.message import to_wire
from decentral.swarm.timing import Timing
from decentral.types import SyncKey

MEMBERS = tuple(peer_id(number) for number in range(5))
PARTICIPANTS = to_wire(Participants(SyncKey(0, 0), MEMBERS[0], 0, "base", MEMBERS))
TIMING = Timing(ttl_s=6.0)


def refused(told: Mapping[int, tuple[float, ...]], *, after_s: float = 0.0) -> tuple[dict[int, list[int]], float]:
    """What each member refuses of two shards if those given say so, the last one later; and how long the first waited.

    Who says something negative doubts.
    """
    ends = dict[int, float]()

    async def main() -> dict[int, list[int]]:
        world = World(0)
        peers = [world.add(member) for member in MEMBERS]
        votes = [Vote(peer.transport, peer.clock, TIMING, 1) for peer in peers]

        async def vote(number: int) -> list[int]:
            await votes[number].start()
            await asyncio.sleep(after_s if number == max(told) else 0.1)
            doubted = [i for i, product in enumerate(told[number]) if product < 0]
            found = await votes[number].refused(PARTICIPANTS, told[number], doubted)
            ends[number] = peers[number].clock.monotonic()
            return found

        found = await asyncio.gather(*[vote(number) for number in told])
        return dict(zip(told, found, strict=True))

    return run(main(), until_s=60.0), ends[min(told)]


def test_what_points_against_most_and_all_together_is_refused_by_those() -> None:
    """The two others are silent, as dead members and liars may be."""
    found, _ = refused({0: (-1.0, -1.0), 1: (0.5, -1.0), 2: (2.0, -1.0)})
    assert found == {0: [1], 1: [1], 2: [1]}


@pytest.mark.parametrize(
    "told",
    [
        {0: (-5.0,), 1: (-5.0,), 2: (1.0,), 3: (1.0,), 4: (1.0,)},
        # Honest parts that do not agree: most are against their mean, but not all of them together.
        {0: (-1.0,), 1: (-1.0,), 2: (-1.0,), 3: (-1.0,), 4: (5.0,)},
        # What is no number says nothing, and who brought nothing neither.
        {0: (-1.0,), 1: (-1.0,), 2: (-math.inf,), 3: (math.nan,), 4: ()},
    ],
)
def test_what_fewer_doubt_or_what_adds_up_is_taken(told: dict[int, tuple[float, ...]]) -> None:
    found, _ = refused(told)
    assert found[0] == found[1] == []


def test_members_that_wait_for_means_are_waited_for_but_not_for_ever() -> None:
    found, waited_s = refused({0: (-1.0,), 1: (-1.0,), 2: (-1.0,), 3: (1.0,), 4: (1.0,)}, after_s=3.0)
    assert found[0] == [0]
    assert 3.0 < waited_s < 4.0
    found, waited_s = refused({0: (-1.0,), 1: (-1.0,), 2: (-1.0,)}, after_s=10.0)
    assert found == {0: [], 1: [], 2: [0]}
    assert waited_s == pytest.approx(TIMING.ttl_s, abs=1.0)


def test_who_does_not_doubt_asks_nobody_and_strangers_are_told_nothing() -> None:
    _, waited_s = refused({0: (1.0,), 1: (-1.0,)})
    assert waited_s == pytest.approx(0.1)

    async def ask() -> None:
        world = World(0)
        host, asking = world.add(MEMBERS[0]), world.add(peer_id(9))
        await Vote(host.transport, host.clock, TIMING, 1).start()
        await asking.transport.call(MEMBERS[0], DOUBTED, PARTICIPANTS, timeout_s=5.0, max_reply_bytes=8)

    with pytest.raises(CallRefused, match="no participant"):
        run(ask(), until_s=20.0)
