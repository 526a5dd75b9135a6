"""A machine that is lost altogether comes back elsewhere: its inner optimizer was in the memory of others."""

from dataclasses import replace
from typing import TypeVar

import pytest

from decentral.engine import protection
from decentral.monitor.events import Event, Protected, Resumed, StretchDone, TookUp
from decentral.schedule.every import Every
from decentral.sim.faults import Fault, Kind
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.world import peer_id
from scripts.benches.lib.checkers import check

E = TypeVar("E", bound=Event)
LOST, NEWCOMER = 1, 3
SWARM = Scenario(
    3, 4, rounds=30, latest=1, momentum=0.5, save_every=Every(seconds=2.0), protect=1, together=True, num_values=24
)


def told(record: Record, kind: type[E], number: int) -> list[E]:
    return [event for life in record.journals[peer_id(number)] for event in life.events if isinstance(event, kind)]


def lose_one(scenario: Scenario) -> Record:
    """One machine dies for good, and later another one comes that has nothing."""
    tape = FaultTape([Fault(Kind.KILL, 9.0, (LOST,)), Fault(Kind.START, 17.0, (NEWCOMER,))])
    return simulate(scenario, tape)


@pytest.mark.parametrize("protect", [1, 2])
def test_a_newcomer_goes_on_with_what_a_lost_worker_alone_had(protect: int) -> None:
    record = lose_one(replace(SWARM, protect=protect))
    given = told(record, Protected, LOST)
    assert given
    assert all(len(event.guards) == protect for event in given)
    (taken,) = told(record, TookUp, NEWCOMER)
    assert (taken.owner, taken.step, taken.problem) == (peer_id(LOST), given[-1].step, "")
    assert not check(SWARM, replace_lost(record), tolerance=0.5)


def test_whoever_does_not_ask_for_it_gives_and_takes_nothing() -> None:
    record = lose_one(replace(SWARM, protect=0))
    assert not told(record, Protected, LOST)
    assert not told(record, TookUp, NEWCOMER)


def test_one_that_has_a_state_of_its_own_takes_up_nobody_elses() -> None:
    tape = FaultTape([Fault(Kind.KILL, 9.0, (LOST,)), Fault(Kind.START, 17.0, (LOST,))])
    record = simulate(replace(SWARM, num_workers=3, latest=0), tape)
    assert told(record, Resumed, LOST)
    assert not told(record, TookUp, LOST)


def test_what_cannot_be_used_is_as_if_it_were_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def packed(trainer: object) -> bytes:
        return b"no state of any trainer"

    monkeypatch.setattr(protection, "_packed", packed)
    record = lose_one(SWARM)
    (taken,) = told(record, TookUp, NEWCOMER)
    assert "cannot be used" in taken.problem
    assert not check(SWARM, replace_lost(record), tolerance=0.5)


def test_what_is_in_memory_dies_with_all_workers_and_the_disks_that_are_left_go_on() -> None:
    """All die, and one machine is lost for good: its place is taken by one that begins with what the others saved."""
    everybody = (0, LOST, 2)
    tape = FaultTape(
        [Fault(Kind.KILL, 9.0, everybody), Fault(Kind.START, 12.0, (0, 2)), Fault(Kind.START, 17.0, (NEWCOMER,))]
    )
    record = simulate(replace(SWARM, patient=True), tape)
    saved = max(back.state.step for back in record.comebacks)
    assert told(record, Protected, LOST)
    assert not told(record, TookUp, NEWCOMER)
    assert [len(told(record, Resumed, number)) for number in (0, 2)] == [1, 1]
    assert 0 < saved < told(record, StretchDone, NEWCOMER)[0].step
    assert not check(SWARM, replace_lost(record), tolerance=0.5)


def test_of_a_run_whose_machines_are_all_lost_nothing_is_left() -> None:
    """Whoever comes then founds it anew: what workers keep for each other is on their own machines too."""
    tape = FaultTape([Fault(Kind.KILL, 9.0, (0, LOST, 2)), Fault(Kind.START, 12.0, (NEWCOMER,))])
    record = simulate(replace(SWARM, patient=True), tape)
    assert all(told(record, Protected, number) for number in (0, LOST, 2))
    assert record.comebacks == []
    assert not told(record, Resumed, NEWCOMER) + told(record, TookUp, NEWCOMER)
    assert told(record, StretchDone, NEWCOMER)[0].step == SWARM.plan.inner_steps
    assert record.outcomes[peer_id(NEWCOMER)].done


def replace_lost(record: Record) -> Record:
    """Those who are alive at the end; nobody expects the lost one to finish."""
    record.journals.pop(peer_id(LOST))
    return record
