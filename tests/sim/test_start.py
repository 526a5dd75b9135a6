"""The first step of a run."""

from decentral.monitor.events import RoundMixed, StretchDone
from decentral.sim.scenario import Scenario, simulate


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
