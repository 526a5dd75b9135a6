"""Swarms that were stopped as a whole: their workers come back with different states, apart, or much later."""

from dataclasses import replace
from typing import Any

import pytest

from decentral.monitor.events import Event, Joined, PeerSeen, Repaired, Resumed, RoundMixed
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.sim.directory import MemoryDirectory
from decentral.sim.faults import Fault, Kind
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.world import peer_id
from decentral.state.worker_state import WorkerState
from decentral.types import PeerId

#: A round of ten steps takes a second.
DILOCO = SyncPlan(10)
STREAMING = SyncPlan(12, 3, 3)


def swarm(num_workers: int, **settings: Any) -> Scenario:
    usual: dict[str, Any] = {"rounds": 8, "momentum": 0.5, "save_every": Every(steps=1), "min_workers": num_workers}
    return Scenario(3, num_workers, **{**usual, **settings})


def saved(scenario: Scenario, steps: dict[int, int]) -> dict[PeerId, WorkerState]:
    """What each worker had on its disk at a step of its own in an earlier life of the swarm."""
    before = simulate(scenario)
    return {
        peer_id(number): next(state for state in before.states[peer_id(number)] if state.step == step)
        for number, step in steps.items()
    }


def again(scenario: Scenario, states: dict[PeerId, WorkerState], *faults: Fault, **settings: Any) -> Record:
    """The swarm comes back with these states, all at once but for what the faults say."""
    tape = FaultTape(faults)
    changed = replace(scenario, restored=states, reunited=True, together=True, save_every=Every(), **settings)
    record = simulate(changed, tape, until_s=3000.0)
    assert tape.exhausted()
    return record


def events(record: Record, number: int, *kinds: type[Event]) -> list[Any]:
    """Of a worker's last life."""
    return [event for event in record.journals[peer_id(number)][-1].events if isinstance(event, kinds)]


def agreed(record: Record) -> bool:
    return len({outcome.digest for outcome in record.outcomes.values()}) == 1


@pytest.mark.parametrize("plan", [DILOCO, STREAMING])
def test_those_who_come_back_at_once_go_on_from_the_newest_that_one_of_them_has(plan: SyncPlan) -> None:
    scenario = swarm(4, plan=plan)
    states = saved(scenario, {0: 15, 1: 38, 2: 71, 3: 52})
    newest = states[peer_id(2)]
    assert {state.round for state in states.values()} != {newest.round}
    record = again(scenario, states)
    for number in range(4):
        resumed = events(record, number, Resumed)
        assert [event.round for event in resumed] == [newest.round]
        assert bool(events(record, number, Joined)) == (number != 2)
        mixed = events(record, number, RoundMixed)
        assert min(event.round for event in mixed) >= newest.round
        # What its owner had on its way goes on without the others; from then on they are together.
        later = [event for event in mixed if plan is DILOCO or event.round > newest.round + 1]
        assert later
        assert all(set(event.members) == set(scenario.peers) for event in later)
        assert events(record, number, Repaired) == []
    assert agreed(record)
    # Nothing that its owner still had to bring is lost, and work that a round may have counted is left out.
    dropped = {number: events(record, number, Resumed)[0].dropped_steps for number in range(4)}
    assert dropped[2] == 0
    assert events(record, 2, Resumed)[0].work_steps > 0
    assert dropped[0] > 0


def test_a_lone_worker_that_knew_nobody_does_not_wait() -> None:
    scenario = swarm(1)
    states = saved(scenario, {0: 27})
    record = again(scenario, states)
    assert record.ended_at_s < 10.0
    assert events(record, 0, Joined) == []


def test_one_that_was_off_while_the_swarm_went_on_brings_nothing_stale() -> None:
    scenario = swarm(3)
    states = saved(scenario, {0: 44, 1: 44, 2: 13})
    record = again(scenario, states, Fault(Kind.START, 60.0, (2,)), latest=1, rounds=60)
    joined = events(record, 2, Joined)
    assert len(joined) == 1
    assert joined[0].round > 20  # the others waited half a minute for it, and went on
    resumed = events(record, 2, Resumed)[0]
    assert (resumed.step, resumed.work_steps, resumed.round) == (13, 0, joined[0].round)
    assert resumed.dropped_steps == 3
    for number in (0, 1):
        assert events(record, number, Repaired) == []
    assert agreed(record)


@pytest.fixture
def _no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between halves that came back apart: each has a directory of its own."""

    async def publish(*args: object, **kwargs: object) -> bool:
        return False

    async def lookup(*args: object) -> dict[str, bytes]:
        return {}

    monkeypatch.setattr(MemoryDirectory, "publish", publish)
    monkeypatch.setattr(MemoryDirectory, "lookup", lookup)


@pytest.mark.usefixtures("_no_directory")
@pytest.mark.parametrize("plan", [DILOCO, pytest.param(STREAMING, marks=pytest.mark.slow)])
def test_halves_that_came_back_apart_meet_and_the_smaller_one_repairs(plan: SyncPlan) -> None:
    scenario = swarm(5, plan=plan)
    states = saved(scenario, dict.fromkeys(range(5), 44))
    record = again(scenario, states, Fault(Kind.CUT, 0.0, (3, 4), for_s=40.0), rounds=120)
    repaired = {number: events(record, number, Repaired) for number in range(5)}
    assert [bool(repaired[number]) for number in range(5)] == [False, False, False, True, True]
    for number in (3, 4):
        assert all(event.reason in ("out-of-sync", "behind") for event in repaired[number])
        met = events(record, number, PeerSeen)
        assert {event.peer for event in met} >= {peer_id(0), peer_id(1), peer_id(2)}
    assert agreed(record)
    everybody = [event for event in events(record, 0, RoundMixed) if set(event.members) == set(scenario.peers)]
    assert len(everybody) > 30
