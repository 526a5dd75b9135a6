"""For whom a leader waits, on the memory network."""

import asyncio

import pytest

from decentral.exchange.allreduce.leader import CONVENE, Leader
from decentral.exchange.allreduce.messages import Answer, Convene, ConveneReply, unpack_participants
from decentral.exchange.allreduce.participants import MAX_PARTICIPANTS_BYTES, Participants
from decentral.exchange.progress import Progress
from decentral.sim.loop import run
from decentral.sim.world import World, peer_id
from decentral.swarm.matching import leaders
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

KEY = SyncKey(0, 0)
RECORDS = [Presence(peer_id(number), "run", 1, State.SYNCING, 0, 0, "", round_s=1.0) for number in range(3)]
LEADER, CALLER, MISSING = leaders(RECORDS, KEY)
#: A member that lives is worth five seconds of waiting, and one that says nothing is believed to live for ten.
TIMING = Timing(min_patience_s=5.0, ttl_s=10.0)


async def convened(fate: str) -> tuple[Participants, float]:
    """Two of three members call; who is in the round, and how long that took."""
    world = World(0)
    peers = {record.peer: world.add(record.peer) for record in RECORDS}
    for peer in peers.values():
        await peer.transport.serve("ping", ping, max_request_bytes=0)
    roster = Roster(TIMING.ttl_s)
    for record in RECORDS:
        roster.observe(record, 0.0)
    leader = peers[LEADER]
    await Leader(leader.transport, leader.clock, roster, Progress(1), TIMING).start()
    if fate == "died":
        world.network.crash(MISSING)
    elif fate == "hangs":
        world.network.pause(MISSING)

    async def call(caller: PeerId) -> bytes:
        while True:
            sent = await peers[caller].transport.call(
                LEADER,
                CONVENE,
                to_wire(Convene(KEY, "base", 0, ())),
                timeout_s=5.0,
                max_reply_bytes=MAX_PARTICIPANTS_BYTES,
            )
            reply = from_wire(ConveneReply, sent)
            if reply.kind is not Answer.WAIT:
                return reply.participants

    packed, same = await asyncio.gather(call(LEADER), call(CALLER))
    assert packed == same
    return unpack_participants(packed), leader.clock.monotonic()


async def ping(sender: PeerId, request: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("fate", "at_least_s", "below_s"), [("died", 1.0, 1.5), ("lives", 5.0, 6.0), ("hangs", 5.0, 6.0)]
)
def test_who_died_is_not_waited_for_and_who_lives_is(fate: str, at_least_s: float, below_s: float) -> None:
    participants, took_s = run(convened(fate), until_s=60.0)
    assert participants.members == tuple(sorted((LEADER, CALLER)))
    assert at_least_s <= took_s < below_s


#: Of five members one leads; it is doubted by some.
FIVE = [Presence(peer_id(number), "run", 1, State.SYNCING, 0, 0, "", round_s=1.0) for number in range(5)]


async def answers(
    doubters: int, *, has_stalled: bool = False, times: int = 1, strangers: int = 0
) -> list[ConveneReply]:
    """What the second candidate tells all but the first, of whom the first so many doubt that one, so many times.

    So many that are no members have told it the same before.
    """
    world = World(0)
    first, *rest = leaders(FIVE, KEY)
    peers = {record.peer: world.add(record.peer) for record in FIVE}
    roster = Roster(TIMING.ttl_s)
    for record in FIVE:
        roster.observe(record, 0.0)
    for peer in peers.values():
        await peer.transport.serve("ping", ping, max_request_bytes=0)
    second = peers[rest[0]]
    leader = Leader(second.transport, second.clock, roster, Progress(1), TIMING)
    await leader.start()
    if has_stalled:
        leader.pass_over(first, 0)

    others = [world.add(peer_id(5 + number)).peer_id for number in range(strangers)]
    peers |= {peer: world.peers[peer] for peer in others}

    async def call(caller: PeerId, doubts: bool) -> ConveneReply:
        message = to_wire(Convene(KEY, "base", 0, (), doubted=(first,) * times if doubts else ()))
        sent = await peers[caller].transport.call(
            second.peer_id, CONVENE, message, timeout_s=9.0, max_reply_bytes=MAX_PARTICIPANTS_BYTES
        )
        return from_wire(ConveneReply, sent)

    await asyncio.gather(*[call(peer, True) for peer in others])
    return list(await asyncio.gather(*[call(peer, number < doubters) for number, peer in enumerate(rest)]))


def test_who_is_doubted_by_most_is_passed_over_by_the_next_candidate() -> None:
    some = run(answers(2), until_s=60.0)
    assert [reply.kind for reply in some] == [Answer.WAIT, Answer.WAIT, Answer.REDIRECT, Answer.REDIRECT]
    most = run(answers(3), until_s=60.0)
    assert [reply.kind for reply in most[:3]] == [Answer.PARTICIPANTS] * 3
    assert len(unpack_participants(most[0].participants).members) >= 3


def test_each_member_has_one_voice_against_a_leader_and_nobody_else_has_one() -> None:
    for replies in (run(answers(2, times=2), until_s=60.0), run(answers(2, strangers=3), until_s=60.0)):
        assert [reply.kind for reply in replies] == [Answer.WAIT, Answer.WAIT, Answer.REDIRECT, Answer.REDIRECT]


async def doubts_half_of_the_members() -> None:
    world, roster = World(0), Roster(TIMING.ttl_s)
    for record in FIVE:
        roster.observe(record, 0.0)
    peer = world.add(FIVE[0].peer)
    leader = Leader(peer.transport, peer.clock, roster, Progress(1), TIMING)
    others = [record.peer for record in FIVE[1:]]
    leader.doubt(others[:2], 0)
    assert list(leader.may_lead(others, 63)) == others[2:]
    assert list(leader.may_lead(others, 64)) == others
    leader.doubt(others[:2], 70)
    leader.doubt(others[2:3], 71)
    assert list(leader.may_lead(others, 72)) == others


def test_who_comes_to_pass_over_half_of_the_members_takes_it_back() -> None:
    run(doubts_half_of_the_members(), until_s=60.0)


def test_nobody_waits_for_one_that_is_passed_over() -> None:
    replies = run(answers(0, has_stalled=True), until_s=4.0)
    assert {reply.kind for reply in replies} == {Answer.PARTICIPANTS}
