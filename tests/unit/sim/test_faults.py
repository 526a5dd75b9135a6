"""A world of toy machines under a tape of faults."""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import structs

from decentral.errors import TransportError
from decentral.sim.faults import Fault, Kind, Plan, draw, from_json, to_json
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.tape import FaultTape
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
        Fault(Kind.KILL, 5.0, (1,)),
        Fault(Kind.START, 15.0, (1,)),
        Fault(Kind.PAUSE, 20.0, (2,), 8.0),
        Fault(Kind.CUT, 30.0, (0, 3), 6.0),
        Fault(Kind.LOSS, 40.0, (), 5.0, 0.5),
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
    faults = (
        Fault(Kind.KILL, 5.0, (99,)),
        Fault(Kind.START, 6.0, (0,)),
        Fault(Kind.LOSS, 7.0, (), 1.0, 0.0),
        Fault(Kind.PAUSE, 8.0, (99,), 1.0),
        Fault(Kind.CUT, 9.0, (99,), 1.0),
    )
    tape, _ = run(play(1, faults, log), until_s=200.0)
    assert tape.fired() == ()
    assert tape.unfired() == faults


def test_a_fault_that_was_not_reached_has_not_fired() -> None:
    async def main() -> FaultTape:
        world = World(0)
        tape = FaultTape([Fault(Kind.KILL, 1.0, (0,)), Fault(Kind.KILL, 50.0, (1,))])
        for one in PEERS:
            world.start(one, gossip(10.0))
        playing = asyncio.create_task(tape.play(world, gossip(10.0)))
        await world.ended()
        playing.cancel()
        return tape

    tape = run(main(), until_s=100.0)
    assert tape.unfired() == (Fault(Kind.KILL, 50.0, (1,)),)
    assert not tape.exhausted()


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.LOSS, Kind.PAUSE])
def test_overlapping_spells_are_refused(kind: Kind) -> None:
    machines = () if kind is Kind.LOSS else (0,)
    first, second = (Fault(kind, at_s, machines, 5.0) for at_s in (4.0, 1.0))
    with pytest.raises(ValueError, match="begins before the end"):
        FaultTape([first, second])
    FaultTape([first, structs.replace(second, at_s=9.0)])


# -- every kind, by itself ---------------------------------------------------------------------------------------------


async def asked(target: int, *faults: Fault, at_s: float) -> tuple[str, str, World]:
    """What two others hear at a moment: machine 0 of ``target``, and ``target`` of machine 0."""
    world = World(1)
    main = gossip(60.0)
    for one in PEERS:
        world.start(one, main)
    playing = asyncio.create_task(FaultTape(faults).play(world, main))
    await asyncio.sleep(at_s)
    heard = []
    for a, b in ((0, target), (target, 0)):
        try:
            await world.peers[PEERS[a]].transport.call(PEERS[b], "tick", b"?", timeout_s=5.0, max_reply_bytes=10)
            heard.append("ok")
        except TransportError as err:
            heard.append(type(err).__name__)
    await playing
    return heard[0], heard[1], world


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        (Kind.CUT, "PeerUnreachable", "PeerUnreachable"),
        (Kind.DEAF, "PeerUnreachable", "CallTimeout"),  # Its request arrives, the reply does not.
        (Kind.MUTE, "CallTimeout", "PeerUnreachable"),
        (Kind.HALF_OPEN, "CallTimeout", "ok"),
    ],
)
def test_who_hears_whom(kind: Kind, theirs: str, ours: str) -> None:
    fault = Fault(kind, 5.0, (2,), 20.0)
    *heard, world = run(asked(2, fault, at_s=6.0), until_s=100.0)
    assert heard == [theirs, ours]
    assert world.network.felt[kind] > 0


def test_two_cuts_end_each_for_itself() -> None:
    cuts = Fault(Kind.CUT, 5.0, (2,), 20.0), Fault(Kind.MUTE, 6.0, (3,), 3.0)
    *heard, _ = run(asked(2, *cuts, at_s=10.0), until_s=100.0)
    assert heard == ["PeerUnreachable", "PeerUnreachable"]
    *heard, _ = run(asked(3, *cuts, at_s=10.0), until_s=100.0)
    assert heard == ["ok", "ok"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.SLOW, 5.0, (2,), 20.0, 10.0),
        Fault(Kind.SLOW_DONOR, 5.0, (2,), 20.0, 10.0),
        Fault(Kind.DUPLICATE, 5.0, (), 20.0, 0.5),
        Fault(Kind.REORDER, 5.0, (), 20.0, 0.5),
    ],
)
def test_what_makes_messages_late_or_more_is_felt_while_it_lasts(fault: Fault) -> None:
    log: list[str] = []
    tape, world = run(play(1, (fault,), log), until_s=300.0)
    assert tape.exhausted()
    assert not world.failures
    if fault.kind is Kind.SLOW:
        assert any(row.split()[3] == "CallTimeout" for row in log if PEERS[2] in row.split()[1:3])
    assert not any(world.network.limits.values())


def test_a_clock_jumps_and_a_disk_refuses_what_it_cannot_take_and_survives_a_crash() -> None:
    async def saver(peer: SimPeer) -> None:
        refused = 0
        while peer.clock.monotonic() < 30.0:
            try:
                peer.disk.save("step", peer.clock.monotonic())
            except OSError as err:
                refused = err.errno
            log.append((peer.clock.monotonic(), peer.clock.wall() - peer.clock.monotonic(), refused))
            await asyncio.sleep(1.0)

    async def main() -> FaultTape:
        world = World(0)
        tape = FaultTape(
            [
                Fault(Kind.CLOCK, 2.5, (0,), amount=-3600.0),
                Fault(Kind.DISK_FULL, 4.5, (0,), 2.0),
                Fault(Kind.READ_ONLY, 8.5, (0,), 2.0),
                Fault(Kind.KILL, 14.5, (0,)),
                Fault(Kind.TORN, 15.5, (0,)),
                Fault(Kind.START, 20.5, (0,)),
                Fault(Kind.KILL, 22.5, (0,)),
            ]
        )
        world.start(PEERS[0], saver)
        await tape.play(world, saver)
        assert world.disk(PEERS[0]).load("step") == 22.0 - 0.5
        assert world.disk(PEERS[0]).damage()
        assert world.disk(PEERS[0]).load("step") == 20.5, "the newest two are spoilt or gone"
        assert world.disk(PEERS[0]).names() == {"step"}
        world.disk(PEERS[0]).wipe()
        assert world.disk(PEERS[0]).load("step") is None
        return tape

    log: list[tuple[float, float, int]] = []
    tape = run(main(), until_s=100.0)
    assert tape.exhausted()
    walls = {time_s: offset_s for time_s, offset_s, _ in log}
    assert walls[2.0] - walls[3.0] == 3600.0
    refusals = {time_s: error for time_s, _, error in log}
    assert (refusals[4.0], refusals[5.0], refusals[9.0]) == (0, errno.ENOSPC, errno.EROFS)


def test_a_machine_may_come_back_with_nothing() -> None:
    async def main() -> None:
        world = World(0)
        world.disk(PEERS[0]).save("step", 1)
        main = gossip(10.0)
        await FaultTape([Fault(Kind.START_EMPTY, 1.0, (0,))]).play(world, main)
        assert world.is_running(PEERS[0])
        assert not world.disk(PEERS[0]).names()
        await world.ended()

    run(main(), until_s=100.0)


# -- scripts -----------------------------------------------------------------------------------------------------------

EVERYTHING = {
    kind: 1
    for kind in Kind
    if kind is not Kind.START  # follows a kill
}


@pytest.mark.parametrize("seed", range(5))
def test_a_script_of_everything_is_drawn_written_and_read(seed: int) -> None:
    plan = Plan(5.0, 50.0, num={**EVERYTHING, Kind.KILL: 4}, num_deaths=2)
    drawn = draw(seed, range(6), plan)
    assert {fault.kind for fault in drawn} == set(Kind)
    assert from_json(to_json(drawn)) == drawn
    assert sum(fault.machines == tuple(range(6)) for fault in drawn if fault.kind is Kind.KILL) == 2
    tape, _ = run(play(seed, drawn, []), until_s=300.0)
    assert tape.faults == drawn


def test_no_faults_are_a_script() -> None:
    assert from_json(to_json(())) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"kind": "flood", "at_s": 1}]', "flood"),
        ('[{"kind": "kill", "at_s": 1, "victim": 3}]', "victim"),
        ('[{"kind": "kill", "at_s": -1, "machines": [0]}]', "negative"),
        ('[{"kind": "kill", "at_s": 1, "machines": [0], "for_s": 2}]', "has no length"),
        ('[{"kind": "pause", "at_s": 1, "machines": [0]}]', "needs a length"),
        ('[{"kind": "kill", "at_s": 1}]', "needs machines"),
        ('[{"kind": "loss", "at_s": 1, "machines": [0], "for_s": 1}]', "whole network"),
        ('[{"kind": "loss", "at_s": 1, "for_s": 1, "amount": 2}]', "probability"),
        ('[{"kind": "slow", "at_s": 1, "machines": [0], "for_s": 1}]', "rate"),
        ('[{"kind": "kill", "at_s": 1, "machines": [0, 0]}]', "each once"),
        ('[{"kind": "kill", "at_s": 1, "machines": [0], "amount": 1}]', "no amount"),
    ],
)
def test_what_is_no_script_is_refused_with_words(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_json(text)


def test_more_disks_than_starts_cannot_be_spoilt() -> None:
    with pytest.raises(ValueError, match="2 disks to spoil, and 1 starts"):
        draw(0, range(4), Plan(0.0, 10.0, num={Kind.KILL: 1, Kind.TORN: 1, Kind.FLIPPED: 1}))


@pytest.mark.parametrize("seed", range(5))
def test_drawn_schedules_fire_completely_and_differ_by_seed(seed: int) -> None:
    plan = Plan(begin_s=5.0, end_s=50.0, num={Kind.KILL: 2, Kind.PAUSE: 2, Kind.CUT: 2}, loss=0.05)
    faults = draw(seed, range(6), plan)
    assert faults == draw(seed, range(6), plan) != draw(seed + 1, range(6), plan)
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
    plan = Plan(begin_s=5.0, end_s=50.0, num={Kind.KILL: 2, Kind.PAUSE: 2, Kind.CUT: 2}, loss=0.05)
    log: list[str] = []
    _, world = run(play(seed, draw(seed, range(6), plan), log), until_s=200.0)
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
