"""Swaps at random moments: both sides move towards their mean, nobody waits, liars move nobody far."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack
from decentral.errors import CallRefused
from decentral.exchange.api import Aborted, Base, Contribution, Reason, Verdict
from decentral.exchange.gossip.company import Company
from decentral.exchange.gossip.context import Context
from decentral.exchange.gossip.messages import Anchor
from decentral.exchange.gossip.options import GossipOptions, RandomSwaps
from decentral.exchange.gossip.random_swaps import SWAP, RandomGossip
from decentral.exchange.progress import Progress
from decentral.exchange.wire import Wire
from decentral.outer.rule import Mixed
from decentral.sim.loop import run
from decentral.sim.world import World, peer_id
from decentral.swarm.message import to_wire
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

FP32 = make_codec("fp32")
N = 8
ROUND_S = 10.0
H = 10
GAMMA = 0.5


class Crowd:
    """Workers with anchors and without inner steps."""

    def __init__(self, num: int = 2, *, num_fragments: int = 1, **options: Any) -> None:
        self.world = World(0)
        self.peers = tuple(peer_id(number) for number in range(num))
        self.wire = Wire((N,) * num_fragments, FP32, FP32)
        self.options = replace(GossipOptions(FP32, FP32), **options)
        self.anchors: dict[tuple[PeerId, int], Tensor] = {}
        self.moves: list[tuple[PeerId, int, PeerId, float]] = []
        self.rosters: dict[PeerId, Roster] = {}
        self.gossips: dict[PeerId, RandomGossip] = {}
        for number, peer in enumerate(self.peers):
            self.world.add(peer)
            self.rosters[peer] = Roster(1e9)
            for other in self.peers:
                record = Presence(other, "run", 1, State.TRAINING, 0, 0, "", ROUND_S)
                self.rosters[peer].observe(record, 0.0)
            for fragment in range(num_fragments):
                self.anchors[peer, fragment] = torch.full((N,), 4.0 * number + fragment)

    async def start(self) -> None:
        for peer in self.peers:
            here = self.world.peers[peer]
            numels = self.wire.numels
            company = Company(peer, here.clock, self.rosters[peer], Progress(len(numels)), 2, lambda fragment: 0.0)
            self.gossips[peer] = RandomGossip(
                Context(here.transport, here.clock, company, self.wire, self.options, Timing(), H),
                RandomSwaps(2.0, GAMMA),
                lambda fragment, peer=peer: self.held(peer, fragment),  # type: ignore[misc]
                self.mover(peer),
            )
            await self.gossips[peer].start()

    def held(self, peer: PeerId, fragment: int) -> tuple[str, Tensor] | None:
        anchor_N = self.anchors.get((peer, fragment))
        return None if anchor_N is None else ("base", anchor_N)

    def mover(self, peer: PeerId) -> Callable[[int, Tensor, PeerId, float], Awaitable[None]]:
        async def move(fragment: int, shift_N: Tensor, partner: PeerId, spread: float) -> None:
            self.anchors[peer, fragment] = self.anchors[peer, fragment] + shift_N
            self.moves.append((peer, fragment, partner, spread))

        return move

    async def step(self, peer: PeerId, length: float = 10.0, round_: int = 0, **fields: Any) -> Verdict:
        """An outer step of a worker, of every fragment."""
        for fragment in range(len(self.wire.numels)):
            mine = Contribution(torch.full((N,), length), 1.0, Base("base", torch.zeros(N)), num_inner_steps=H)
            verdict = await self.gossips[peer].mix(SyncKey(round_, fragment), replace(mine, **fields))
        return verdict

    def run(self, *peers: PeerId) -> list["asyncio.Task[None]"]:
        """Let some (all) of them swap by themselves."""
        loop = asyncio.get_running_loop()
        return [
            loop.create_task(self.gossips[peer].run(), context=self.world.peers[peer].transport.context)
            for peer in peers or self.peers
        ]

    def mean(self, fragment: int = 0) -> float:
        return float(torch.stack([self.anchors[peer, fragment].double() for peer in self.peers]).mean())

    def apart(self, fragment: int = 0) -> float:
        values = [float(self.anchors[peer, fragment][0]) for peer in self.peers]
        return max(values) - min(values)

    async def swap(self, sender: PeerId, receiver: PeerId, request: bytes) -> bytes:
        """Send an anchor by hand."""
        transport = self.world.peers[sender].transport
        return await transport.call(receiver, SWAP, request, timeout_s=60.0, max_reply_bytes=10_000)


def play(scenario: Callable[[Crowd], Awaitable[None]], num: int = 2, until_s: float = 1000.0, **kinds: Any) -> None:
    async def main() -> None:
        crowd = Crowd(num, **kinds)
        await crowd.start()
        await scenario(crowd)

    run(main(), until_s=until_s)


def test_the_outer_step_is_taken_alone_and_at_once() -> None:
    async def scenario(crowd: Crowd) -> None:
        me = crowd.peers[0]
        verdict = await crowd.step(me, 3.0)
        assert isinstance(verdict.outcome, Mixed)
        assert (verdict.outcome.members, verdict.outcome.anchor_N) == ((me,), None)
        assert verdict.outcome.delta_N.tolist() == [3.0] * N
        assert verdict.waiting_s == 0.0
        assert asyncio.get_running_loop().time() == 0.0
        assert crowd.gossips[me].progress.rounds() == (1,)
        nothing = await crowd.step(me, 0.0, round_=1, weight=0.0)
        assert isinstance(nothing.outcome, Aborted)
        assert nothing.outcome.reason is Reason.ALONE
        assert crowd.gossips[me].progress.rounds() == (2,)

    play(scenario)


def test_both_move_towards_their_mean() -> None:
    async def scenario(crowd: Crowd) -> None:
        one, other = crowd.peers
        for peer in crowd.peers:
            await crowd.step(peer)
        await crowd.gossips[one]._start(other, 0)
        # By gamma = 0.5 of the way from 0 and from 4 to 2.
        assert crowd.anchors[one, 0].tolist() == [1.0] * N
        assert crowd.anchors[other, 0].tolist() == [3.0] * N
        assert [move[:3] for move in crowd.moves] == [(other, 0, one), (one, 0, other)]
        assert crowd.moves[0][3] == pytest.approx(1.0), "4 apart, 4 long"

    play(scenario)


@pytest.mark.parametrize("codec", ["fp32", "int8-b8", "int4-b8"])
def test_many_swaps_at_once_bring_all_together_and_keep_the_mean(codec: str) -> None:
    async def scenario(crowd: Crowd) -> None:
        for peer in crowd.peers:
            await crowd.step(peer)
        before = crowd.mean()
        tasks = crowd.run()
        await asyncio.sleep(8 * ROUND_S)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(1.0)
        assert crowd.mean() == pytest.approx(before, abs=1e-4)
        assert crowd.apart() < 0.05

    play(scenario, 5, pull_codec=make_codec(codec))


def test_the_rate_is_what_was_asked_for_and_everybody_is_met() -> None:
    async def scenario(crowd: Crowd) -> None:
        for peer in crowd.peers:
            await crowd.step(peer)
        crowd.run()
        rounds = 25
        await asyncio.sleep(rounds * ROUND_S)
        met = Counter((peer, partner) for peer, _, partner, _ in crowd.moves)
        assert len(met) == 6
        # Each of 3 workers starts 2 swaps of each of 2 fragments in a round; both sides of a swap move.
        assert len(crowd.moves) == pytest.approx(2 * 3 * 2 * 2 * rounds, rel=0.2)
        assert Counter(fragment for _, fragment, _, _ in crowd.moves)[0] == pytest.approx(
            len(crowd.moves) / 2, rel=0.15
        )

    play(scenario, 3, num_fragments=2, until_s=2000.0)


def test_before_the_first_outer_step_nobody_swaps_and_nobody_is_blamed() -> None:
    async def scenario(crowd: Crowd) -> None:
        old, new = crowd.peers
        await crowd.step(old)
        crowd.run()
        await asyncio.sleep(5 * ROUND_S)
        assert crowd.moves == []
        assert crowd.rosters[old].is_live(new, 0.0), "who refuses is alive"
        verdict = await crowd.step(old, round_=1)
        assert verdict.met is not None
        assert (verdict.met.unconfirmed, verdict.met.avoided) == ((), ())
        await crowd.step(new)
        await asyncio.sleep(5 * ROUND_S)
        assert crowd.moves

    play(scenario)


def test_as_long_as_there_is_no_pace_and_nobody_else_it_waits() -> None:
    async def scenario(crowd: Crowd) -> None:
        (me,) = crowd.peers
        await crowd.step(me)
        crowd.run()
        await asyncio.sleep(3 * ROUND_S)
        record = Presence(me, "run", 2, State.TRAINING, 0, 0, "", 0.0)
        crowd.rosters[me].observe(record, 0.0)
        await asyncio.sleep(3 * ROUND_S)
        assert crowd.moves == []

    play(scenario, 1)


def test_who_has_no_anchor_yet_refuses() -> None:
    async def scenario(crowd: Crowd) -> None:
        one, other = crowd.peers
        for peer in crowd.peers:
            await crowd.step(peer)
        del crowd.anchors[other, 0]
        await crowd.gossips[one]._start(other, 0)
        await crowd.gossips[other]._start(one, 0)
        assert crowd.moves == []

    play(scenario)


@pytest.mark.parametrize("how", ["crash", "pause"])
def test_who_does_not_answer_is_left_alone_and_the_others_go_on(how: str) -> None:
    async def scenario(crowd: Crowd) -> None:
        for peer in crowd.peers:
            await crowd.step(peer)
        *others, gone = crowd.peers
        if how == "crash":
            crowd.world.crash(gone)
        else:
            crowd.world.network.pause(gone)
        crowd.run(*others)
        await asyncio.sleep(10 * ROUND_S)
        assert not any(roster.is_live(gone, 0.0) for peer, roster in crowd.rosters.items() if peer != gone)
        # 2 workers start 20 swaps each, and lose no more than those that found nobody there.
        assert len(crowd.moves) > 40
        told = [(await crowd.step(peer, round_=1)).met for peer in others]
        assert [met.unconfirmed for met in told if met is not None] == ([(), ()] if how == "crash" else [(gone,)] * 2)
        again = [(await crowd.step(peer, round_=2)).met for peer in others]
        assert [met.unconfirmed for met in again if met is not None] == [(), ()], "told once"

    play(scenario, 3)


def test_a_lost_answer_is_one_sided_and_the_next_swaps_heal_it() -> None:
    async def scenario(crowd: Crowd) -> None:
        one, other = crowd.peers
        for peer in crowd.peers:
            await crowd.step(peer)
        lost = iter((False, True))
        network = crowd.world.network
        usual, network.is_lost = network.is_lost, lambda: next(lost)  # type: ignore[method-assign]
        await crowd.gossips[one]._start(other, 0)
        network.is_lost = usual  # type: ignore[method-assign]
        assert [move[0] for move in crowd.moves] == [other]
        verdict = await crowd.step(one, round_=1)
        assert verdict.met is not None
        assert verdict.met.unconfirmed == (other,)
        for peer, partner in [(one, other), (other, one)] * 5:
            await crowd.gossips[peer]._start(partner, 0)
        assert crowd.apart() < 0.01

    play(scenario)


def far(value: float = 1e9) -> bytes:
    return to_wire(Anchor(0, "base", pack(FP32, torch.full((N,), value))))


def test_a_far_off_peer_moves_nobody_far_and_is_avoided() -> None:
    async def scenario(crowd: Crowd) -> None:
        host, liar = crowd.peers
        await crowd.step(host, 1.0)
        start_N = crowd.anchors[host, 0].clone()
        for _ in range(2):
            await crowd.swap(liar, host, far())
        with pytest.raises(CallRefused, match="no swap now"):
            await crowd.swap(liar, host, far())
        limit = 5.0 * N**0.5
        assert float((crowd.anchors[host, 0] - start_N).norm()) <= 2 * GAMMA * limit / 2 + 1e-3
        verdict = await crowd.step(host, 1.0, round_=1)
        assert verdict.met is not None
        assert [each.peer for each in verdict.met.avoided] == [liar]
        crowd.moves.clear()
        crowd.run(host)
        await asyncio.sleep(3 * ROUND_S)
        assert crowd.moves == [], "nor does it start a swap with it"

    play(scenario)


def test_who_floods_with_swaps_is_served_in_bounds_and_holds_up_nothing_else() -> None:
    """Of each fragment eight at once, and in the long run four times as many as everybody starts, by whomever."""

    async def scenario(crowd: Crowd) -> None:
        host, *liars = crowd.peers
        for peer in crowd.peers:
            await crowd.step(peer, 1.0)
        served: list[float] = []

        async def flood(liar: PeerId) -> None:
            request = far(float(crowd.anchors[host, 0][0]) + 1.0)
            while True:
                try:
                    await crowd.swap(liar, host, request)
                    served.append(asyncio.get_running_loop().time())
                except CallRefused:
                    await asyncio.sleep(0.01)

        floods = [
            asyncio.get_running_loop().create_task(flood(liar), context=crowd.world.peers[liar].transport.context)
            for liar in liars
        ]
        rounds = 5
        await asyncio.sleep(rounds * ROUND_S)
        assert sum(at < 1.0 for at in served) == 8
        assert len(served) == pytest.approx(8 + 4 * 2 * rounds, abs=1)
        for each in floods:
            each.cancel()
        await asyncio.sleep(1.0)
        assert len(crowd.moves) == pytest.approx(len(served), abs=1)
        await crowd.gossips[host]._start(liars[0], 0)
        assert [move[:3] for move in crowd.moves[-2:]] == [(liars[0], 0, host), (host, 0, liars[0])]
        for _ in range(8):
            await crowd.swap(liars[0], host, to_wire(Anchor(1, "base", pack(FP32, torch.ones(N)))))

    play(scenario, 3, num_fragments=2)


@pytest.mark.parametrize(
    "answer",
    [b"", b"noise", pack(FP32, torch.zeros(N))[:-1], pack(make_codec("bf16"), torch.zeros(N))],
    ids=["nothing", "noise", "short", "another codec"],
)
def test_an_answer_that_breaks_a_rule_moves_nobody_and_is_noted(answer: bytes) -> None:
    async def scenario(crowd: Crowd) -> None:
        me, liar = crowd.peers
        await crowd.step(me)

        async def lie(sender: PeerId, request: bytes) -> bytes:
            return answer

        await crowd.world.peers[liar].transport.serve(SWAP, lie, max_request_bytes=10_000)
        for _ in range(2):
            await crowd.gossips[me]._start(liar, 0)
        assert crowd.moves == []
        verdict = await crowd.step(me, round_=1)
        assert verdict.met is not None
        assert [each.peer for each in verdict.met.avoided] == [liar]

    play(scenario)


def test_a_far_off_answer_moves_nobody() -> None:
    async def scenario(crowd: Crowd) -> None:
        me, liar = crowd.peers
        await crowd.step(me, 1.0)

        async def lie(sender: PeerId, request: bytes) -> bytes:
            return pack(FP32, torch.full((N,), 1e30))

        await crowd.world.peers[liar].transport.serve(SWAP, lie, max_request_bytes=10_000)
        await crowd.gossips[me]._start(liar, 0)
        assert not crowd.anchors[me, 0].any()

    play(scenario)


BAD: Mapping[str, tuple[bytes, str]] = {
    "noise": (b"\xff\x00noise", "FrameError"),
    "no such fragment": (to_wire(Anchor(1, "base", pack(FP32, torch.zeros(N)))), "there is no fragment 1"),
    "too few values": (to_wire(Anchor(0, "base", pack(FP32, torch.zeros(N - 1)))), "agreed on 8"),
    "another codec": (to_wire(Anchor(0, "base", pack(make_codec("bf16"), torch.zeros(N)))), "agreed on 'fp32'"),
    "too long": (bytes(10_000), "bytes are taken"),
}


@pytest.mark.parametrize(("request_", "match"), BAD.values(), ids=BAD)
def test_a_bad_request_is_refused_and_harms_nobody(request_: bytes, match: str) -> None:
    async def scenario(crowd: Crowd) -> None:
        one, other = crowd.peers
        for peer in crowd.peers:
            await crowd.step(peer)
        with pytest.raises(CallRefused, match=match):
            await crowd.swap(other, one, request_)
        assert crowd.moves == []
        await crowd.gossips[one]._start(other, 0)
        assert crowd.apart() == 2.0

    play(scenario)
