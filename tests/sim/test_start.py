"""The first step of a run, the first after a pause, and the first after a partition."""

import pytest

from decentral.monitor.events import Joined, Repaired, RoundMixed, StretchDone
from decentral.sim.faults import Fault, Kind
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.tape import FaultTape
from scripts.benches.lib.checkers import agreement, reunion


def test_the_first_step_waits_for_the_workers_asked_for() -> None:
    scenario = Scenario(1, 3, rounds=3, min_workers=3)
    record = simulate(scenario)
    for peer in scenario.peers:
        events = record.journals[peer][0].events
        assert next(e for e in events if isinstance(e, StretchDone)).step == scenario.plan.inner_steps
        assert [e.members for e in events if isinstance(e, RoundMixed)] == [scenario.peers] * 3


def test_it_does_not_wait_for_ever() -> None:
    scenario = Scenario(1, 2, rounds=3, min_workers=3)
    record = simulate(scenario)
    assert 120 < record.ended_at_s < 240
    assert all(outcome.done for outcome in record.outcomes.values())


@pytest.mark.parametrize("at_s", [8.05, 8.35, 8.65])
def test_a_worker_that_was_stopped_does_not_take_the_others_for_dead(at_s: float) -> None:
    scenario = Scenario(1, 3, rounds=40, min_workers=3)
    sleeper = scenario.peers[2]
    tape = FaultTape([Fault(Kind.PAUSE, at_s, (2,), 20.0)])
    record = simulate(scenario, tape)
    assert tape.exhausted()
    assert [*agreement(record), *reunion(scenario, record)] == []
    mixed = [e for e in record.journals[sleeper][0].events if isinstance(e, RoundMixed)]
    assert all(len(event.members) > 1 for event in mixed), "it mixed alone"


def test_a_worker_that_went_ahead_while_cut_off_comes_back() -> None:
    scenario = Scenario(1, 4, rounds=40, min_workers=4, paces={3: 0.3})
    lonely = scenario.peers[3]
    tape = FaultTape([Fault(Kind.CUT, 8.0, (3,), 15.0)])
    record = simulate(scenario, tape)
    assert tape.exhausted()
    assert [*agreement(record), *reunion(scenario, record)] == []
    events = record.journals[lonely][0].events
    ahead = max(e.round for e in events if isinstance(e, RoundMixed) and e.members == (lonely,))
    repaired = next(e for e in events if isinstance(e, Repaired))
    assert (repaired.reason, repaired.round < ahead) == ("out-of-sync", True)
    assert [e.members for e in events if isinstance(e, RoundMixed)][-1] == scenario.peers


def test_workers_that_begin_together_need_nobody_to_hand_over_the_state() -> None:
    """The first round already has all of them, the second life of one joins as anybody does."""
    scenario = Scenario(1, 32, rounds=12, min_workers=32, together=True)
    tape = FaultTape([Fault(Kind.KILL, 8.0, (5,)), Fault(Kind.START, 10.0, (5,))])
    record = simulate(scenario, tape)
    assert tape.exhausted()
    events = {peer: [e for life in lives for e in life.events] for peer, lives in record.journals.items()}
    assert {e.members for seen in events.values() for e in seen if isinstance(e, RoundMixed) and e.round == 0} == {
        scenario.peers
    }
    assert [peer for peer, seen in events.items() if any(isinstance(e, Joined) for e in seen)] == [scenario.peers[5]]
