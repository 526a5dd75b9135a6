"""Pushes to a server: what workers hold, what is counted and how often, and who keeps when a server is lost."""

import asyncio
from typing import Any

import pytest
import torch

from decentral.codecs.frame import framed_nbytes, pack
from decentral.errors import CallRefused
from decentral.exchange.api import Aborted, Reason
from decentral.exchange.server import server as server_module
from decentral.exchange.server.messages import Kind, Push, Reply
from decentral.exchange.server.options import ServerOptions
from decentral.exchange.server.server import PUSH
from decentral.sim.transport import MemoryTransport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.presence import Presence, State
from decentral.types import PeerId
from tests.unit.exchange.server.crew import FP32, Crew, N, anchor_of, plain, play

LIMIT = 1 << 20


async def send(crew: Crew, sender: PeerId, request: bytes) -> Any:
    """Push any bytes to the first server by hand."""
    transport = crew.world.peers[sender].transport
    return from_wire(
        Reply, await transport.call(crew.peers[0], PUSH, request, timeout_s=9.0, max_reply_bytes=LIMIT), LIMIT
    )


# -- pushes -----------------------------------------------------------------------------------------------------------


def test_each_push_moves_the_anchor_at_once() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        assert anchor_of(await crew.push(b, 1.0)) == [-1.0] * N
        assert anchor_of(await crew.push(c, 2.0)) == [-3.0] * N, "it has b's work too"
        assert anchor_of(await crew.push(a, 4.0)) == [-7.0] * N, "the server is a worker as any other"
        assert anchor_of(await crew.push(b, 0.5)) == [-7.5] * N
        assert crew.servers() == [a], "the most senior one"

    play(scenario)


def test_steps_by_delayed_nesterov_over_all_workers() -> None:
    """The check vector, from 0 instead of 1: with two workers the momentum changes with every second arrival."""

    async def scenario(crew: Crew) -> None:
        seen = [anchor_of(await crew.push(crew.peers[turn % 2], delta))[0] for turn, delta in enumerate(deltas)]
        assert seen == pytest.approx([-0.175, -0.1995, -0.2345, -0.55055], abs=1e-6)

    deltas = [0.5, -0.2, 0.1, 0.3]
    play(scenario, 2, server=ServerOptions(lr=0.7, momentum=0.9))


@pytest.mark.parametrize(("dylu", "skipped"), [(True, (5, 0, 0)), (False, (3, 3, 3))])
def test_a_worker_that_is_half_as_fast_takes_half_the_steps_if_that_is_wanted(
    dylu: bool, skipped: tuple[int, ...]
) -> None:
    """Of 10 steps; its donor was 3 ahead. The last one does not know its pace yet."""

    async def scenario(crew: Crew) -> None:
        exchange = crew.exchanges[crew.peers[0]]
        assert not exchange.has_common_anchor
        asked = [exchange.steps_to_skip(10, 3, own_s, lambda: [1.0, 2.0]) for own_s in (2.0, 1.0, 0.0)]
        assert tuple(asked) == skipped

    play(scenario, server=plain(dylu=dylu))


def test_a_worker_far_behind_goes_on_in_the_round_of_the_others() -> None:
    async def scenario(crew: Crew) -> None:
        a, *others = crew.peers
        for other in others:
            record = Presence(other, "run", 9, State.TRAINING, 5, 0, "", 1.0)
            crew.rosters[a].observe(record, asyncio.get_running_loop().time())
        assert crew.exchanges[a].onward().round == 5
        crew.exchanges[a].progress.resume([4])
        assert crew.exchanges[a].onward().round is None

    play(scenario)


def test_a_listener_moves_nothing() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        await crew.push(a, 1.0)
        verdict = await crew.push(b, 9.0, weight=0.0)
        assert anchor_of(verdict) == [-1.0] * N
        assert verdict.sent_N is None

    play(scenario)


def test_a_worker_alone_keeps_everything_itself() -> None:
    async def scenario(crew: Crew) -> None:
        assert anchor_of(await crew.push(crew.peers[0], 0.3)) == [torch.tensor(-0.3).item()] * N

    play(scenario, 1, codec="int4-b8")


def test_fragments_have_their_own_anchors() -> None:
    async def scenario(crew: Crew) -> None:
        _, b, _ = crew.peers
        assert anchor_of(await crew.push(b, 1.0, fragment=1)) == [-1.0] * N
        assert anchor_of(await crew.push(b, 2.0, fragment=0)) == [-2.0] * N

    play(scenario, num_fragments=2)


# -- what workers hold ------------------------------------------------------------------------------------------------


def noise(seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(N, generator=torch.Generator().manual_seed(seed))


def test_a_coarse_codec_does_not_add_up() -> None:
    """The server knows what each worker holds to the bit, so what one answer leaves out is in the next."""

    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        for turn in range(30):
            for number, peer in enumerate((b, c)):
                await crew.push(peer, noise(100 * number + turn))
                told = crew.exchanges[a]._server._kept[0].holders[peer][1]
                assert torch.equal(told, crew.anchors[peer, 0]), "to the bit"
        for peer in (b, c):  # listens until nothing changes any more
            for _ in range(12):
                await crew.push(peer, 0.0, weight=0.0)
            assert torch.allclose(crew.anchors[peer, 0], crew.kept(a), atol=1e-4)

    play(scenario, codec="int4-b8")


def kinds_of_answers(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """The kinds of all answers to pushes from here on."""
    seen: list[Kind] = []
    call = MemoryTransport.call

    async def spy(self: MemoryTransport, peer: PeerId, method: str, request: bytes, **limits: Any) -> bytes:
        answer = await call(self, peer, method, request, **limits)
        if method == PUSH:
            seen.append(from_wire(Reply, answer, LIMIT).kind)
        return answer

    monkeypatch.setattr(MemoryTransport, "call", spy)
    return seen


def test_full_values_for_strangers_and_changes_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = kinds_of_answers(monkeypatch)

    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        for turn in range(3):
            await crew.push(b, noise(turn))
        assert seen == [Kind.CHANGE] * 3, "all began with the same anchor"
        await crew.push(c, noise(7))
        assert seen[3:] == [Kind.CHANGE], "which the server itself still holds"
        await crew.push(a, noise(8))
        for donor in (a, b):
            crew.anchors[c, 0] = crew.anchors[donor, 0].clone()  # as a newcomer does
            await crew.push(c, noise(9))
        assert seen[4:] == [Kind.CHANGE] * 2, "the server knows it by its content"
        crew.anchors[c, 0] = noise(10)
        await crew.push(c, noise(11))
        assert seen[6:] == [Kind.VALUES]

    play(scenario, codec="int4-b8")


def test_whoever_is_forgotten_gets_full_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_MAX_HELD_BYTES", 0)
    monkeypatch.setattr(server_module, "_MIN_HOLDERS", 2)
    seen = kinds_of_answers(monkeypatch)

    async def scenario(crew: Crew) -> None:
        a, b, c, d = crew.peers
        await crew.push(a, noise(9))
        for turn, peer in enumerate((b, c, d, d, b)):
            await crew.push(peer, noise(turn))
        assert seen == [Kind.VALUES, Kind.VALUES, Kind.VALUES, Kind.CHANGE, Kind.VALUES]

    play(scenario, 4, codec="int4-b8")


def test_the_dead_are_forgotten() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        await crew.push(b, noise(1))
        crew.rosters[a].bury(b)
        await crew.push(c, noise(2))
        assert set(crew.exchanges[a]._server._kept[0].holders) == {a, c}

    play(scenario, codec="int4-b8")


def test_answers_are_as_long_as_the_codec_says() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        await crew.push(b, noise(1))
        before = crew.world.peers[b].transport.traffic().received_bytes
        await crew.push(b, noise(2))
        received = crew.world.peers[b].transport.traffic().received_bytes - before
        assert received < framed_nbytes(crew.wire.mean_codec, N) + 120
        assert crew.servers() == [a]

    play(scenario, codec="int4-b8")


# -- counted once -----------------------------------------------------------------------------------------------------


def test_a_push_sent_again_counts_once() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        crew.lose_answers(b, 3)
        assert anchor_of(await crew.push(b, 1.0)) == [-1.0] * N
        assert torch.equal(crew.kept(a), torch.full((N,), -1.0))

    play(scenario)


@pytest.mark.parametrize("codec", ["fp32", "int4-b8"])
def test_what_was_counted_is_left_out_of_a_later_push(codec: str) -> None:
    """All answers are lost, the worker trains on, and its next pseudo-gradient contains the old one."""

    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        crew.lose_answers(b, 4)
        lost = await crew.push(b, 1.0)
        assert isinstance(lost.outcome, Aborted)
        assert (lost.outcome.reason, lost.sent_N) == (Reason.ALONE, None)
        await crew.push(c, 10.0)
        verdict = await crew.push(b, 3.0)
        assert crew.kept(a).tolist() == pytest.approx([-13.0] * N, rel=0.02)
        assert verdict.sent_N is not None
        assert verdict.sent_N.tolist() == pytest.approx([3.0] * N, rel=0.02), "both pushes, for error feedback"

    play(scenario, codec=codec)


def test_what_was_not_counted_is_not_left_out() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        await crew.push(b, 0.5)
        crew.lose_answers(b, 4, before=True)
        assert isinstance((await crew.push(b, 1.0)).outcome, Aborted)
        await crew.push(b, 3.0)
        assert torch.equal(crew.kept(a), torch.full((N,), -3.5))

    play(scenario)


def test_lost_twice_in_a_row() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        for value in (1.0, 3.0):
            crew.lose_answers(b, 4)
            assert isinstance((await crew.push(b, value)).outcome, Aborted)
        await crew.push(b, 7.0)
        assert torch.equal(crew.kept(a), torch.full((N,), -7.0))

    play(scenario)


def test_after_a_reset_nothing_is_left_out() -> None:
    """The local work is gone, so what was counted of it is no part of what comes next."""

    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        crew.lose_answers(b, 4)
        await crew.push(b, 1.0)
        assert (await crew.push(b, 0.0, weight=0.0)).sent_N is None
        await crew.push(b, 2.0)
        assert torch.equal(crew.kept(a), torch.full((N,), -3.0))

    play(scenario)


# -- who keeps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["fp32", "int8-b8"])
def test_the_next_one_goes_on_from_the_highest_version(codec: str) -> None:
    async def scenario(crew: Crew) -> None:
        a, b, c, d = crew.peers
        await crew.push(b, 1.0)
        await crew.push(d, 2.0)
        await crew.push(c, 4.0)  # holds the most
        crew.crash(a)
        verdict = await crew.push(d, 8.0)
        assert crew.servers() == [b], "the most senior of the living"
        assert anchor_of(verdict) == pytest.approx([-15.0] * N, rel=0.02)

    play(scenario, 4, codec=codec)


def test_the_server_dies_after_it_counted_and_its_answer_is_lost() -> None:
    """Another worker's answer came through, and says what is in the anchor: so the push is not counted again."""

    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        crew.lose_answers(c, 1)
        pushing = crew.go(c, crew.push(c, 1.0))
        await asyncio.sleep(0.1)  # c has lost its answer and pauses
        await crew.push(b, 2.0)
        crew.crash(a)
        verdict = await pushing
        assert crew.servers() == [b]
        assert anchor_of(verdict) == [-3.0] * N
        assert anchor_of(await crew.push(b, 0.0, weight=0.0)) == [-3.0] * N

    play(scenario)


def test_a_worker_that_becomes_the_server_does_not_count_itself_twice() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        crew.lose_answers(b, 1)
        pushing = crew.go(b, crew.push(b, 1.0))
        await asyncio.sleep(0.1)
        await crew.push(c, 2.0)
        crew.crash(a)
        assert anchor_of(await pushing) == [-3.0] * N
        assert crew.servers() == [b]

    play(scenario)


def test_one_server_after_another() -> None:
    async def scenario(crew: Crew) -> None:
        for dead, peer in enumerate(crew.peers[:-1]):
            await crew.push(crew.peers[-1], 1.0)
            assert crew.servers() == [peer]
            crew.crash(peer)
            assert torch.equal(crew.anchors[crew.peers[-1], 0], torch.full((N,), -1.0 - dead))
        assert anchor_of(await crew.push(crew.peers[-1], 1.0)) == [-5.0] * N

    play(scenario, 5)


def test_a_living_server_stays_although_a_more_senior_one_comes() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, c = crew.peers
        crew.rosters[b].bury(a)
        crew.rosters[c].bury(a)
        await crew.push(c, 1.0)  # asks b, who asks everybody and hears that nobody keeps it
        assert crew.servers() == [b]
        for peer in (b, c):
            crew.know(peer, [a], seq=2)
        await crew.push(a, 2.0)
        assert crew.servers() == [b]
        assert torch.equal(crew.kept(b), torch.full((N,), -3.0))

    play(scenario)


def test_whom_one_worker_could_not_reach_is_asked_before_somebody_takes_over() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        await crew.push(a, 1.0)
        crew.rosters[b].bury(a)  # so b is the first of those it knows to live
        assert anchor_of(await crew.push(b, 2.0)) == [-3.0] * N
        assert crew.servers() == [a]

    play(scenario)


def test_a_server_that_retires_in_the_middle_of_a_push_has_not_counted_it() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        await crew.push(a, 1.0)
        server = crew.exchanges[a]._server
        run_aside = crew.world.peers[a].clock.run_aside

        async def run_aside_while_another_takes_over(work: Any) -> Any:
            server.retire(0)
            return await run_aside(work)

        crew.world.peers[a].clock.run_aside = run_aside_while_another_takes_over  # type: ignore[method-assign]
        answer = await send(crew, b, to_wire(Push(0, "base", pack(FP32, torch.ones(N)))))
        assert answer.kind is Kind.ELSEWHERE

    play(scenario)


def test_of_two_servers_the_one_with_less_retires() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, c, d = crew.peers
        await crew.push(a, 1.0)
        crew.world.network.partition([c, d])
        await crew.push(c, 2.0)
        await crew.push(d, 2.0)
        assert crew.servers() == [a, c]
        await crew.push(b, 1.0)
        await crew.push(b, 1.0)
        await crew.push(b, 1.0)
        crew.world.network.heal()
        for peer in (c, d):
            crew.know(peer, [a, b], seq=2)
        await asyncio.sleep(5.0)
        assert crew.servers() == [a]
        # Whoever followed the other one brings what it has done since.
        assert anchor_of(await crew.push(d, 10.0)) == [-14.0] * N

    play(scenario, 4)


def test_the_senior_server_retires_too_if_it_has_less() -> None:
    async def scenario(crew: Crew) -> None:
        a, _, c, d = crew.peers
        await crew.push(a, 1.0)
        crew.world.network.partition([a])
        for peer in (d, c, d):
            await crew.push(peer, 2.0)
        (second,) = [peer for peer in crew.servers() if peer != a]
        crew.world.network.heal()
        for peer in crew.peers[1:]:
            crew.know(peer, [a], seq=2)
        await asyncio.sleep(5.0)
        assert crew.servers() == [second]
        await crew.push(a, 10.0)
        assert crew.servers() == [second]

    play(scenario, 4)


def test_nobody_to_push_to_keeps_the_work() -> None:
    """The others cannot be reached, and who takes over by itself has no anchor of its own yet."""

    async def scenario(crew: Crew) -> None:
        _, b = crew.peers
        crew.exchanges[b]._anchor = lambda fragment: None
        crew.exchanges[b]._succession._copy = lambda fragment: None
        crew.crash(crew.peers[0])
        verdict = await crew.push(b, 1.0)
        assert isinstance(verdict.outcome, Aborted)
        assert verdict.outcome.reason is Reason.ALONE

    play(scenario, 2)


# -- who sends nonsense -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (b"", "malformed push"),
        (to_wire(Push(1, "base", pack(FP32, torch.ones(N)))), "fragment 1, allowed are 0 to 0"),
        (to_wire(Push(0, "base", pack(FP32, torch.ones(N + 1)))), "numel"),
        (to_wire(Push(0, "base", b"frame")), "frame length"),
        (to_wire(Push(0, "base", pack(FP32, torch.full((N,), 3e38)))), "no anchor survives"),
    ],
)
def test_nonsense_is_refused_and_moves_nothing(request_: bytes, why: str) -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        await crew.push(a, torch.full((N,), 1e38))
        before = crew.kept(a)
        with pytest.raises(CallRefused, match=why):
            await send(crew, b, request_)
        assert crew.kept(a) is before
        assert anchor_of(await crew.push(b, 0.0, weight=0.0)) == before.tolist()

    play(scenario, server=plain(lr=1.0))


def test_an_unknown_worker_is_not_counted() -> None:
    async def scenario(crew: Crew) -> None:
        a, _, c = crew.peers
        await crew.push(a, 1.0)
        verdict = await crew.push(c, 1.0)
        assert isinstance(verdict.outcome, Aborted)
        assert "not heard of yet" in verdict.outcome.detail
        assert torch.equal(crew.kept(a), torch.full((N,), -1.0))
        crew.know(a, [c])
        assert anchor_of(await crew.push(c, 1.0)) == [-2.0] * N

    play(scenario, strangers=(2,))


def test_a_server_that_answers_nonsense_changes_nothing() -> None:
    async def scenario(crew: Crew) -> None:
        a, b, _ = crew.peers
        await crew.push(a, 1.0)
        for nonsense in (b"", pack(FP32, torch.ones(N)), bytes(9)):

            async def lie(sender: PeerId, request: bytes, answer: bytes = nonsense) -> bytes:
                return answer

            await crew.world.peers[a].transport.serve(PUSH, lie, max_request_bytes=LIMIT)
            verdict = await crew.push(b, 1.0)
            assert isinstance(verdict.outcome, Aborted)
            crew.know(b, [a], seq=2 + len(nonsense))

    play(scenario)


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"momentum": 1.0}, {"every": -1}, {"share": 2.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|at least one"):
        plain(**bad)
