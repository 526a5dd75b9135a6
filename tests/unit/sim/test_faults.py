"""A world of toy machines under a tape of faults."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from decentral.errors import TransportError
from decentral.sim.faults import Crash, Fault, FaultTape, Loss, Partition, Pause, Plan, Start, draw
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.world import Main, SimPeer, World, peer_id

PEERS = [peer_id(number) for number in range(6)]


def gossip(until_s: float, log: list[str] | None = None) -> Main:
    """A main that calls the next peer every second and notes what came of it."""

    async def main(peer: SimPeer) -> None:
        async def hear(sender: str, request: bytes) -> bytes:
            return b"yes"

        await peer.transport.serve("tick", hear, max_request_bytes=10)
        turn = PEERS.index(peer.peer_id)
        while peer.clock.monotonic() < until_s:
            turn += 1
            target = PEERS[turn % len(PEERS)]
            try:
                await peer.transport.call(target, "tick", b"?", timeout_s=1.0, max_reply_bytes=10)
                result = "ok"
            except TransportError as err:
                result = type(err).__name__
            if log is not None:
                log.append(f"{peer.clock.monotonic():.6f} {peer.peer_id} {target} {result}")
            await asyncio.sleep(1.0)

    return main


async def play(seed: int, faults: tuple[Fault, ...], log: list[str]) -> tuple[FaultTape, World]:
    world = World(seed, Conditions(jitter=0.2))
    main = gossip(60.0, log)
    for one in PEERS:
        world.start(one, main)
    tape = FaultTape(faults)
    await tape.play(world, main)
    await world.ended()
    return tape, world


def test_every_kind_of_fault_fires_and_is_felt() -> None:
    faults = (
        Crash(5.0, PEERS[1]),
        Start(15.0, PEERS[1]),
        Pause(20.0, PEERS[2], 8.0),
        Partition(30.0, (PEERS[0], PEERS[3]), 6.0),
        Loss(40.0, 0.5, 5.0),
    )
    log: list[str] = []
    tape, world = run(play(1, faults, log), until_s=200.0)
    assert tape.fired() == faults
    assert tape.exhausted()
    assert world.failures == []

    def results(peer: str, start_s: float, stop_s: float) -> list[str]:
        rows = [line.split() for line in log]
        return [row[3] for row in rows if row[1] == peer and start_s < float(row[0]) < stop_s]

    assert results(PEERS[1], 5.1, 15.0) == []
    assert results(PEERS[1], 15.0, 20.0)
    assert results(PEERS[2], 20.1, 28.0) == []
    assert results(PEERS[2], 28.0, 30.0)
    assert "CallTimeout" in results(PEERS[4], 30.0, 37.0)
    assert all(result == "ok" for one in PEERS for result in results(one, 47.0, 60.0))


def test_faults_without_effect_have_not_fired() -> None:
    log: list[str] = []
    ghost = peer_id(99)
    faults = (
        Crash(5.0, ghost),
        Start(6.0, PEERS[0]),
        Loss(7.0, 0.0, 1.0),
        Pause(8.0, ghost, 1.0),
        Partition(9.0, (ghost,), 1.0),
    )
    tape, _ = run(play(1, faults, log), until_s=200.0)
    assert tape.fired() == ()
    assert tape.unfired() == faults


def test_a_fault_that_was_not_reached_has_not_fired() -> None:
    async def main() -> FaultTape:
        world = World(0)
        tape = FaultTape([Crash(1.0, PEERS[0]), Crash(50.0, PEERS[1])])
        for one in PEERS:
            world.start(one, gossip(10.0))
        playing = asyncio.create_task(tape.play(world, gossip(10.0)))
        await world.ended()
        playing.cancel()
        return tape

    tape = run(main(), until_s=100.0)
    assert tape.unfired() == (Crash(50.0, PEERS[1]),)
    assert not tape.exhausted()


@pytest.mark.parametrize("kind", [Partition, Loss])
def test_overlapping_spells_are_refused(kind: type[Partition | Loss]) -> None:
    first, second = (
        Partition(at_s, (PEERS[0],), 5.0) if kind is Partition else Loss(at_s, 0.1, 5.0) for at_s in (4.0, 1.0)
    )
    with pytest.raises(ValueError, match="begins before the end"):
        FaultTape([first, second])


@pytest.mark.parametrize("seed", range(5))
def test_drawn_schedules_fire_completely_and_differ_by_seed(seed: int) -> None:
    plan = Plan(begin_s=5.0, end_s=50.0, num_crashes=2, num_pauses=2, num_partitions=2, loss=0.05)
    faults = draw(seed, PEERS, plan)
    assert faults == draw(seed, PEERS, plan) != draw(seed + 1, PEERS, plan)
    assert all(5.0 <= fault.at_s <= 50.0 for fault in faults)
    tape, _ = run(play(seed, faults, []), until_s=200.0)
    assert tape.unfired() == ()


def test_a_failed_main_fails_the_world_at_once_with_its_seed() -> None:
    async def fail(peer: SimPeer) -> None:
        await asyncio.sleep(1.0)
        raise ValueError(peer.peer_id)

    async def main() -> None:
        world = World(1234)
        world.start(PEERS[0], gossip(1e9))
        world.start(PEERS[1], fail)
        await world.ended()

    with pytest.raises(ExceptionGroup, match="seed 1234") as caught:
        run(main(), until_s=100.0)
    assert str(caught.value.exceptions[0]) == PEERS[1]


def test_a_machine_whose_main_ends_is_gone() -> None:
    async def main() -> None:
        world = World(0)
        short = world.start(PEERS[0], gossip(0.0))
        await world.ended()
        assert short.transport.gone
        assert not world.is_running(PEERS[0])
        world.start(PEERS[0], gossip(0.0))
        await world.ended()

    run(main(), until_s=10.0)


def trace_of(seed: int) -> str:
    plan = Plan(begin_s=5.0, end_s=50.0, num_crashes=2, num_pauses=2, num_partitions=2, loss=0.05)
    log: list[str] = []
    _, world = run(play(seed, draw(seed, PEERS, plan), log), until_s=200.0)
    return f"{world.network.trace.digest()} {hash_free(log)}"


def hash_free(log: list[str]) -> int:
    """A checksum that does not depend on PYTHONHASHSEED."""
    return sum((number + 1) * int.from_bytes(line.encode()) for number, line in enumerate(log)) % (1 << 61)


def test_the_trace_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from tests.unit.sim.test_faults import trace_of; print(trace_of(3))"
    other = {**os.environ, "PYTHONHASHSEED": "4321"}
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code], env=other, cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == trace_of(3) == trace_of(3) != trace_of(4)
