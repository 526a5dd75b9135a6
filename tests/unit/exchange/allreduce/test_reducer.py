"""What a reducer does with what peers send it, right or wrong, on the memory network."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import pytest
import torch

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack, unpack
from decentral.errors import CallRefused
from decentral.exchange.allreduce.answers import Answers
from decentral.exchange.allreduce.messages import Shard, unpack_mean
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.allreduce.reducer import PENDING, RESULT, SHARD, Reducer, Values
from decentral.exchange.wire import Wire
from decentral.sim.loop import run
from decentral.sim.world import SimPeer, World, peer_id
from decentral.swarm.matching import reducers
from decentral.swarm.message import to_wire
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

MEMBERS = tuple(peer_id(number) for number in range(3))
KEY = SyncKey(0, 0)
HOST = reducers(MEMBERS, KEY, 1)[0]
B, C = (peer for peer in MEMBERS if peer != HOST)
STRANGER = peer_id(9)
FP32 = make_codec("fp32")
WIRE = Wire((4,), FP32, FP32)
TIMING = Timing(hold_s=2.0, ttl_s=6.0, transfer_timeout_s=30.0)
PARTICIPANTS = to_wire(Participants(KEY, MEMBERS[0], 0, "base", MEMBERS))


class Round:
    """A reducer at work and peers that talk to it."""

    def __init__(self) -> None:
        self.world = World(0)
        self.peers = {peer: self.world.add(peer) for peer in (*MEMBERS, STRANGER)}
        self.roster = Roster(TIMING.ttl_s)
        self.answers = Answers()

    async def start(self) -> None:
        host = self.peers[HOST]
        for member in MEMBERS:
            self.roster.observe(Presence(member, "run", 1, State.SYNCING, 0, 0, ""), 0.0)
        self.reducer = Reducer(host.transport, host.clock, self.roster, WIRE, [self.answers], TIMING)
        await self.reducer.start()

    async def send(self, sender: PeerId, request: bytes, method: str = SHARD) -> bytes:
        host: SimPeer = self.peers[sender]
        return await host.transport.call(HOST, method, request, timeout_s=60.0, max_reply_bytes=10_000)

    async def bring(self, sender: PeerId, weight: float = 0.0, values: list[float] | None = None) -> bytes:
        frame = pack(FP32, torch.tensor(values)) if values is not None else b""
        return await self.send(sender, to_wire(Shard(PARTICIPANTS, 0, weight, frame)))


def play(scenario: Callable[[Round], Awaitable[None]]) -> None:
    async def main() -> None:
        a_round = Round()
        await a_round.start()
        await scenario(a_round)

    run(main(), until_s=200.0)


def test_what_a_member_does_with_its_values_later_changes_no_mean() -> None:
    async def scenario(a_round: Round) -> None:
        sent_N = torch.tensor([0.0, 4.0, 8.0, 0.0])
        values = Values(sent_N, 1.0, sent_N.clone(), torch.zeros(4))
        with a_round.reducer.beside(PARTICIPANTS, values):
            own = asyncio.create_task(a_round.bring(HOST, 1.0, sent_N.tolist()))
            await asyncio.sleep(0.5)
        values.sent_N.fill_(99.0)  # the member gave this shard up, and went on
        others = await asyncio.gather(a_round.bring(B, 1.0, [4.0, 0.0, 0.0, 4.0]), a_round.bring(C))
        mean = unpack_mean(others[0], 10_000, 3)
        assert unpack(mean.frame, FP32, 4).tolist() == [2.0, 2.0, 4.0, 2.0]
        await own

    play(scenario)


def test_everybody_gets_the_same_bytes_at_once() -> None:
    async def scenario(a_round: Round) -> None:
        replies = await asyncio.gather(
            a_round.bring(HOST, 1.0, [0.0, 4.0, 8.0, 0.0]),
            a_round.bring(B, 3.0, [4.0, 0.0, 0.0, 4.0]),
            a_round.bring(C),
        )
        assert a_round.peers[HOST].clock.monotonic() < 0.1
        assert len(set(replies)) == 1
        mean = unpack_mean(replies[0], 10_000, 3)
        assert mean.contributors == tuple(sorted(MEMBERS.index(peer) for peer in (HOST, B)))
        assert unpack(mean.frame, FP32, 4).tolist() == [3.0, 1.0, 2.0, 3.0]
        assert await a_round.send(C, bytes(msgpack.packb([PARTICIPANTS, 0])), RESULT) == replies[0]
        assert await a_round.bring(C) == replies[0]

    play(scenario)


def test_a_missing_member_is_waited_for_while_it_lives() -> None:
    async def scenario(a_round: Round) -> None:
        assert await a_round.bring(B, 1.0, [1.0] * 4) == PENDING
        assert a_round.peers[B].clock.monotonic() == pytest.approx(2.04)
        await a_round.bring(HOST)
        while (reply := await a_round.bring(B)) == PENDING:
            a_round.roster.vouch(B, a_round.peers[B].clock.monotonic())
        assert 6.0 <= a_round.peers[B].clock.monotonic() < 6.5, "C was silent for its time to live"
        assert unpack_mean(reply, 10_000, 3).contributors == (MEMBERS.index(B),)

    play(scenario)


def test_an_answer_that_somebody_asked_for_too_early_is_never_given() -> None:
    async def scenario(a_round: Round) -> None:
        waiting = asyncio.create_task(a_round.bring(B, 1.0, [1.0] * 4))
        await asyncio.sleep(1.0)
        assert await a_round.send(C, bytes(msgpack.packb([PARTICIPANTS, 0])), RESULT) == PENDING
        with pytest.raises(CallRefused, match="given up"):
            await waiting
        for sender in MEMBERS:
            with pytest.raises(CallRefused, match="given up"):
                await a_round.bring(sender, 1.0, [1.0] * 4)

    play(scenario)


def test_a_round_of_listeners_has_no_answer() -> None:
    async def scenario(a_round: Round) -> None:
        replies = await asyncio.gather(*(a_round.bring(peer) for peer in MEMBERS), return_exceptions=True)
        assert [type(reply) for reply in replies] == [CallRefused] * 3

    play(scenario)


def frame_of(codec: str, numel: int) -> bytes:
    return pack(make_codec(codec), torch.ones(numel))


NAN_FRAME = pack(FP32, torch.ones(4))[:-4] + torch.tensor(math.nan).numpy().tobytes()
BAD: list[tuple[str, PeerId, bytes, str]] = [
    ("a stranger", STRANGER, to_wire(Shard(PARTICIPANTS, 0, 1.0, frame_of("fp32", 4))), "no participant"),
    ("no such shard", B, to_wire(Shard(PARTICIPANTS, 1, 1.0, frame_of("fp32", 4))), "shard 1 is not reduced here"),
    (
        "no such fragment",
        B,
        to_wire(Shard(to_wire(Participants(SyncKey(0, 1), HOST, 0, "", MEMBERS)), 0, 1.0, b"")),
        "there is no fragment 1",
    ),
    ("too few values", B, to_wire(Shard(PARTICIPANTS, 0, 1.0, frame_of("fp32", 3))), "agreed on 4"),
    ("another codec", B, to_wire(Shard(PARTICIPANTS, 0, 1.0, frame_of("bf16", 4))), "agreed on 'fp32'"),
    ("not finite", B, to_wire(Shard(PARTICIPANTS, 0, 1.0, NAN_FRAME)), "FrameError"),
    ("values without weight", B, to_wire(Shard(PARTICIPANTS, 0, 0.0, frame_of("fp32", 4))), "values with weight 0"),
    ("negative weight", B, to_wire(Shard(PARTICIPANTS, 0, -1.0, frame_of("fp32", 4))), "values with weight -1"),
    ("infinite weight", B, to_wire(Shard(PARTICIPANTS, 0, math.inf, frame_of("fp32", 4))), "weight inf"),
    (
        "no weight at all",
        B,
        to_wire(Shard(PARTICIPANTS, 0, math.nan, frame_of("fp32", 4))),
        "values with weight nan",
    ),
    ("noise", B, b"\xff\x00noise", "FrameError"),
]


@pytest.mark.parametrize(("sender", "request_", "match"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_contribution_is_refused_and_harms_nobody(sender: PeerId, request_: bytes, match: str) -> None:
    async def scenario(a_round: Round) -> None:
        with pytest.raises(CallRefused, match=match):
            await a_round.send(sender, request_)
        replies = await asyncio.gather(*(a_round.bring(peer, 1.0, [1.0] * 4) for peer in MEMBERS))
        assert unpack_mean(replies[0], 10_000, 3).contributors == (0, 1, 2)

    play(scenario)


@pytest.mark.parametrize(
    ("sender", "question"),
    [
        (B, [PARTICIPANTS, 1]),
        (B, [PARTICIPANTS, -1]),
        (B, [PARTICIPANTS, "0"]),
        (B, [PARTICIPANTS]),
        (B, [[PARTICIPANTS], 0]),
        (B, [b"noise", 0]),
        (B, 5),
        (B, [to_wire(Participants(SyncKey(0, 7), HOST, 0, "", MEMBERS)), 0]),
    ],
)
def test_a_bad_question_is_refused_and_harms_nobody(sender: PeerId, question: Any) -> None:
    async def scenario(a_round: Round) -> None:
        with pytest.raises(CallRefused):
            await a_round.send(sender, bytes(msgpack.packb(question)), RESULT)
        replies = await asyncio.gather(*(a_round.bring(peer, 1.0, [1.0] * 4) for peer in MEMBERS))
        assert len(set(replies)) == 1

    play(scenario)


def test_who_missed_the_round_gets_its_mean_and_its_question_binds_nobody() -> None:
    async def scenario(a_round: Round) -> None:
        question = bytes(msgpack.packb([PARTICIPANTS, 0]))
        assert await a_round.send(STRANGER, question, RESULT) == PENDING
        replies = await asyncio.gather(*(a_round.bring(peer, 1.0, [1.0] * 4) for peer in MEMBERS))
        assert len(set(replies)) == 1
        assert await a_round.send(STRANGER, question, RESULT) == replies[0]

    play(scenario)


def test_tensors_of_layers_keep_the_norm_of_the_members() -> None:
    async def scenario(a_round: Round) -> None:
        host = a_round.peers[HOST]
        wire = Wire((4,), FP32, FP32, directed=(((1, 3),),))
        await Reducer(host.transport, host.clock, a_round.roster, wire, [a_round.answers], TIMING).start()
        replies = await asyncio.gather(
            a_round.bring(HOST, 1.0, [2.0, 2.0, 0.0, 2.0]),
            a_round.bring(B, 1.0, [0.0, 0.0, 2.0, 0.0]),
            a_round.bring(C),
        )
        mean_S = unpack(unpack_mean(replies[0], 10_000, 3).frame, FP32, 4)
        assert mean_S.tolist() == pytest.approx([1.0, math.sqrt(2), math.sqrt(2), 1.0])

    play(scenario)


COARSE = make_codec("sign-b8")


def means_of(
    num_rounds: int, *, keep_rest: bool, every_second_aborted: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the means that members used over some rounds of one reducer, and the sum of the exact ones."""
    used_S, exact_S = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)

    async def main() -> None:
        a_round = Round()
        host = a_round.peers[HOST]
        for member in MEMBERS:
            a_round.roster.observe(Presence(member, "run", 1, State.SYNCING, 0, 0, ""), 0.0)
        wire = Wire((4,), FP32, COARSE, keep_rest=keep_rest)
        reducer = Reducer(host.transport, host.clock, a_round.roster, wire, [a_round.answers], TIMING)
        await reducer.start()
        for serial in range(num_rounds):
            participants = to_wire(Participants(KEY, MEMBERS[0], serial, "base", MEMBERS))
            values = {member: torch.randn(4, generator=generator) for member in MEMBERS}
            shards = {m: to_wire(Shard(participants, 0, 1.0, pack(FP32, value_S))) for m, value_S in values.items()}
            replies = await asyncio.gather(*(a_round.send(member, shard) for member, shard in shards.items()))
            mixed = not (every_second_aborted and serial % 2)
            await reducer.settle(participants, mixed=mixed)
            if mixed:
                used_S.add_(unpack(unpack_mean(replies[0], 10_000, 3).frame, COARSE, 4))
                exact_S.add_(torch.stack(list(values.values())).mean(0))

    run(main(), until_s=200.0)
    return used_S, exact_S


@pytest.mark.parametrize("every_second_aborted", [False, True])
def test_rests_of_means_are_brought_again(every_second_aborted: bool) -> None:
    """What is missing from the sum of all means stays what one mean leaves out; without rests it adds up."""
    used_S, exact_S = means_of(200, keep_rest=True, every_second_aborted=every_second_aborted)
    dropped_S, _ = means_of(200, keep_rest=False, every_second_aborted=every_second_aborted)
    assert float((used_S - exact_S).abs().max()) < 3.0
    assert float((dropped_S - exact_S).abs().max()) > float((used_S - exact_S).abs().max())
