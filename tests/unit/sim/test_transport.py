import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from decentral.errors import CallRefused, CallTimeout, PeerUnreachable, TransportError
from decentral.ports.transport import Traffic
from decentral.sim.faults import Kind
from decentral.sim.loop import run, virtual_loop
from decentral.sim.network import FRAME_BYTES, Conditions, Line
from decentral.sim.world import Machine, SimPeer, World, peer_id
from decentral.types import PeerId

A, B, C = peer_id(0), peer_id(1), peer_id(2)


def play(
    scenario: Callable[[World], Coroutine[Any, Any, None]],
    conditions: Conditions | None = None,
    machines: dict[PeerId, Machine] | None = None,
) -> None:
    async def main() -> None:
        await scenario(World(0, conditions or Conditions(latency_s=0.05), machines=machines))

    run(main(), until_s=10_000.0)


async def echo(sender: PeerId, request: bytes) -> bytes:
    return request


async def slow(sender: PeerId, request: bytes) -> bytes:
    await asyncio.sleep(2.0)
    return request


async def serving(world: World, *ids: PeerId) -> list[SimPeer]:
    peers = [world.add(one) for one in ids]
    for peer in peers:
        await peer.transport.serve("echo", echo, max_request_bytes=1 << 30)
        await peer.transport.serve("slow", slow, max_request_bytes=1 << 30)
    return peers


async def ask(
    peer: SimPeer, target: PeerId, request: bytes = b"hello", method: str = "echo", timeout_s: float = 10.0
) -> bytes:
    return await peer.transport.call(target, method, request, timeout_s=timeout_s, max_reply_bytes=1 << 30)


def now_s() -> float:
    return virtual_loop().time()


async def failure(call: Coroutine[Any, Any, bytes]) -> tuple[object, object]:
    """How and when a call fails."""
    with pytest.raises(TransportError) as caught:
        await call
    return type(caught.value), now_s()


def test_an_idle_call_takes_the_round_trip() -> None:
    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        assert await ask(a, B) == b"hello"
        assert now_s() == pytest.approx(0.1)

    play(scenario)


def test_two_regions_may_have_a_latency_of_their_own() -> None:
    async def scenario(world: World) -> None:
        a, b, _ = await serving(world, A, B, C)
        await ask(a, C)
        assert now_s() == pytest.approx(0.1)
        await ask(b, A)
        assert now_s() == pytest.approx(1.1)

    conditions = Conditions(latency_s=0.05, between={frozenset(("north", "south")): 0.5})
    play(scenario, conditions, {A: Machine(region="north"), B: Machine(region="south")})


def test_the_slower_line_of_two_decides() -> None:
    size = 1_000_000 + FRAME_BYTES

    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        await ask(a, B, bytes(1_000_000))
        there = max(size / 2e6, size / 1e6)
        back = max(size / 4e6, size / 8e6)
        assert now_s() == pytest.approx(0.1 + there + back, abs=1e-9)

    play(scenario, machines={A: Machine(Line(2e6, 8e6)), B: Machine(Line(4e6, 1e6))})


def test_an_uplink_sends_one_message_after_the_other() -> None:
    size = 1_000_000 + FRAME_BYTES

    async def scenario(world: World) -> None:
        arrivals: list[float] = []

        async def note(sender: PeerId, request: bytes) -> bytes:
            arrivals.append(now_s())
            return b""

        a = world.add(A)
        for other in (B, C):
            await world.add(other).transport.serve("echo", note, max_request_bytes=1 << 30)
        await asyncio.gather(ask(a, B, bytes(1_000_000)), ask(a, C, bytes(1_000_000)))
        assert arrivals == pytest.approx([0.05 + size / 1e6, 0.05 + 2 * size / 1e6], abs=1e-9)

    play(scenario, machines={A: Machine(Line(up_bytes_per_s=1e6))})


def test_a_downlink_takes_one_message_after_the_other_and_no_slow_sender_blocks_it() -> None:
    async def scenario(world: World) -> None:
        arrivals: dict[PeerId, float] = {}

        async def note(sender: PeerId, request: bytes) -> bytes:
            arrivals[sender] = now_s()
            return b""

        slow_one, fast = world.add(A), world.add(B)
        await world.add(C).transport.serve("echo", note, max_request_bytes=1 << 30)
        await asyncio.gather(
            ask(slow_one, C, bytes(1_000_000 - FRAME_BYTES)),
            ask(fast, C, bytes(1_000_000 - FRAME_BYTES)),
        )
        # The fast sender's bytes take the downlink for a second; the slow one's need it only in their last second.
        assert arrivals == pytest.approx({B: 0.05 + 1.0, A: 0.05 + 5.0}, abs=1e-9)

    play(scenario, machines={A: Machine(Line(up_bytes_per_s=2e5)), C: Machine(Line(down_bytes_per_s=1e6))})


def test_traffic_is_payload_and_framing_of_both_messages() -> None:
    async def scenario(world: World) -> None:
        a, b = await serving(world, A, B)
        await ask(a, B, bytes(1000))
        await ask(a, A, bytes(5000))
        each = 1000 + FRAME_BYTES
        assert a.transport.traffic() == b.transport.traffic() == Traffic(each, each)
        with pytest.raises(CallRefused):
            await ask(a, B, bytes(1000), method="nonsense")
        assert a.transport.traffic() == Traffic(2 * each, each + FRAME_BYTES)

    play(scenario)


def test_jitter_keeps_the_mean_and_spreads() -> None:
    async def scenario(world: World) -> None:
        draws = [world.network.latency_s(A, B) for _ in range(20_000)]
        assert sum(draws) / len(draws) == pytest.approx(0.05, rel=0.02)
        assert sorted(draws)[len(draws) // 2] == pytest.approx(0.05 * 0.8825, rel=0.02)  # exp(-0.5 ** 2 / 2)
        assert min(draws) < 0.02 < 0.1 < max(draws)

    play(scenario, Conditions(latency_s=0.05, jitter=0.5))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_share_of_failed_calls_is_that_of_lost_requests_and_replies(seed: int) -> None:
    num_calls, loss = 2000, 0.05

    async def main() -> tuple[int, int]:
        world = World(seed, Conditions(loss=loss))
        a, b = await serving(world, A, B)
        await b.transport.serve("echo", echo, max_request_bytes=10, max_concurrent=num_calls)
        replies = await asyncio.gather(*(ask(a, B, timeout_s=1.0) for _ in range(num_calls)), return_exceptions=True)
        failed = [reply for reply in replies if reply != b"hello"]
        assert all(isinstance(reply, CallTimeout) for reply in failed)
        assert now_s() == pytest.approx(1.0)
        return len(failed), world.network.felt[Kind.LOSS]

    num_failed, num_lost = run(main(), until_s=10.0)
    expected = num_calls * (1 - (1 - loss) ** 2)
    assert num_failed == num_lost
    assert abs(num_failed - expected) < 4 * (expected * (1 - loss) ** 2) ** 0.5


def test_a_partition_is_noticed_after_the_dial_gives_up_and_ends_when_healed() -> None:
    async def scenario(world: World) -> None:
        a, _, c = await serving(world, A, B, C)
        world.network.partition([A, C])
        assert await failure(ask(a, B)) == (PeerUnreachable, 3.0)
        assert await ask(c, A) == b"hello"
        assert await failure(ask(a, B, timeout_s=1.0)) == (CallTimeout, pytest.approx(4.1))
        world.network.heal()
        assert await ask(a, B) == b"hello"
        assert world.network.felt[Kind.CUT] == 2

    play(scenario)


def test_a_message_under_way_does_not_cross_a_new_partition() -> None:
    async def scenario(world: World) -> None:
        a, b = await serving(world, A, B)
        call = asyncio.create_task(ask(a, B, timeout_s=2.0))
        await asyncio.sleep(0.02)
        world.network.partition([A])
        assert await failure(ask_task(call)) == (CallTimeout, 2.0)
        assert b.transport.traffic() == Traffic()

    play(scenario)


async def ask_task(task: "asyncio.Task[bytes]") -> bytes:
    return await task


def test_nobody_there_is_known_after_a_round_trip() -> None:
    async def scenario(world: World) -> None:
        (a,) = await serving(world, A)
        assert await failure(ask(a, B)) == (PeerUnreachable, pytest.approx(0.1))
        assert a.transport.traffic() == Traffic()

    play(scenario)


@pytest.mark.parametrize(
    ("crash_s", "kind"),
    [(0.02, PeerUnreachable), (1.0, CallTimeout)],
    ids=["before the request arrives", "while the handler works"],
)
def test_a_crash_breaks_calls_in_flight_early(crash_s: float, kind: type[TransportError]) -> None:
    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        call = asyncio.create_task(ask(a, B, method="slow"))
        await asyncio.sleep(crash_s)
        world.crash(B)
        assert await failure(ask_task(call)) == (kind, pytest.approx(crash_s + 0.05))
        assert await failure(ask(a, B)) == (PeerUnreachable, pytest.approx(crash_s + 0.15))

    play(scenario)


def test_a_reply_that_left_before_the_crash_arrives() -> None:
    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        call = asyncio.create_task(ask(a, B))
        await asyncio.sleep(0.06)
        world.crash(B)
        assert await call == b"hello"

    play(scenario)


def test_a_reply_half_sent_at_the_crash_does_not() -> None:
    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        call = asyncio.create_task(ask(a, B, bytes(1_000_000)))
        await asyncio.sleep(0.5)
        world.crash(B)
        assert await failure(ask_task(call)) == (CallTimeout, pytest.approx(0.55))

    play(scenario, machines={B: Machine(Line(up_bytes_per_s=1e6))})


def test_a_request_half_sent_at_the_crash_of_its_sender_is_never_handled() -> None:
    async def scenario(world: World) -> None:
        heard: list[int] = []

        async def hear(sender: PeerId, request: bytes) -> bytes:
            heard.append(len(request))
            return b""

        a, b = await serving(world, A, B)
        await b.transport.serve("hear", hear, max_request_bytes=1 << 30)
        calls = [asyncio.create_task(ask(a, B, bytes(size), method="hear")) for size in (100_000, 1_000_000)]
        await asyncio.sleep(0.5)
        world.crash(A)
        await asyncio.sleep(5.0)
        assert heard == [100_000]
        assert not calls[1].done() or calls[1].exception() is not None

    play(scenario, machines={A: Machine(Line(up_bytes_per_s=1e6))})


def test_calls_that_are_over_leave_nothing_behind() -> None:
    async def scenario(world: World) -> None:
        a, b = await serving(world, A, B)
        for _ in range(1000):
            await ask(a, B, timeout_s=9000.0)
        assert len(virtual_loop()._timers) < 600
        assert (a.transport._outgoing, b.transport._serving, b.transport.in_flight) == ({}, {}, {})

    play(scenario)


def test_a_crashed_peer_comes_back_under_its_id_with_nothing_of_its_past() -> None:
    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        with pytest.raises(ValueError, match="already"):
            world.add(B)
        world.crash(B)
        back = world.add(B)
        with pytest.raises(CallRefused, match="not served"):
            await ask(a, B)
        await back.transport.serve("echo", echo, max_request_bytes=100)
        assert await ask(a, B) == b"hello"

    play(scenario)


def test_a_paused_peer_answers_late_and_its_callers_time_out() -> None:
    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        world.network.pause(B)
        patient = asyncio.create_task(ask(a, B, timeout_s=60.0))
        assert await failure(ask(a, B, timeout_s=5.0)) == (CallTimeout, 5.0)
        await asyncio.sleep(15.0)
        world.network.resume(B)
        assert await patient == b"hello"
        assert now_s() == pytest.approx(20.05)

    play(scenario)


def test_a_handler_is_stopped_by_a_pause_at_any_point() -> None:
    async def scenario(world: World) -> None:
        a, _ = await serving(world, A, B)
        call = asyncio.create_task(ask(a, B, method="slow", timeout_s=60.0))
        await asyncio.sleep(1.0)
        world.network.pause(B)
        await asyncio.sleep(9.0)
        world.network.resume(B)
        await call
        assert now_s() == pytest.approx(10.05)

    play(scenario)


def test_closing_fails_calls_in_flight_on_both_ends_and_cancels_handlers() -> None:
    async def scenario(world: World) -> None:
        a, b = await serving(world, A, B)
        ended: list[float] = []

        async def held(sender: PeerId, request: bytes) -> bytes:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(now_s())
            return b""

        await a.transport.serve("held", held, max_request_bytes=10)
        await b.transport.serve("held", held, max_request_bytes=10)
        into = asyncio.create_task(ask(a, B, method="held"))
        out = asyncio.create_task(ask(b, A, method="held"))
        await asyncio.sleep(1.0)
        await b.transport.close()
        await b.transport.close()
        assert ended == [1.0]
        assert await failure(ask_task(out)) == (CallTimeout, 1.0)
        assert await failure(ask_task(into)) == (CallTimeout, pytest.approx(1.05))
        assert (await failure(ask(b, A)))[0] is PeerUnreachable

    play(scenario)


def test_too_much_at_once_is_refused_and_places_are_given_back() -> None:
    async def scenario(world: World) -> None:
        a, b = await serving(world, A, B)
        await b.transport.serve("two", slow, max_request_bytes=10, max_concurrent=2)
        replies = await asyncio.gather(*(ask(a, B, method="two") for _ in range(5)), return_exceptions=True)
        assert [type(reply) for reply in replies] == [bytes, bytes, CallRefused, CallRefused, CallRefused]
        assert await ask(a, B, method="two") == b"hello"

    play(scenario)


def test_a_run_is_a_function_of_its_seed() -> None:
    async def main(seed: int) -> str:
        world = World(seed, Conditions(jitter=0.5, loss=0.1))
        peers = await serving(world, *(peer_id(number) for number in range(8)))
        calls = [
            ask(peer, peer_id((number + hop) % 8), bytes(100 * hop), timeout_s=1.0)
            for number, peer in enumerate(peers)
            for hop in range(1, 8)
        ]
        await asyncio.gather(*calls, return_exceptions=True)
        return world.network.trace.digest()

    first, again, other = (run(main(seed), until_s=100.0) for seed in (7, 7, 8))
    assert first == again != other
