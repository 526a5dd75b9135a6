"""Who cannot hold a stage says so, and another one takes it."""

import pytest

from decentral.monitor.events import StagePlaced
from decentral.sim.faults import Fault, Kind
from decentral.sim.tape import FaultTape
from tests.sim.pipelines import PipelineScenario, simulate_pipeline


@pytest.mark.slow
def test_a_spare_without_data_leaves_the_head_to_another_and_is_of_use_elsewhere() -> None:
    # Of the two spares, 5 is appointed to the head first.
    scenario = PipelineScenario(rounds=40, num_spares=2, without_data=frozenset({5}))
    head, _, second, *_, without, having = scenario.peers
    tape = FaultTape([Fault(Kind.KILL, 6.0, (0,)), Fault(Kind.KILL, 12.0, (2,))])
    record = simulate_pipeline(scenario, tape)
    assert tape.unfired() == ()
    assert record.processes[without][0].membership.own.unfit == "0"
    placed = {event.stage: peer for peer, event in record.events(StagePlaced) if peer in (without, having)}
    assert placed == {0: having, 2: without}
    assert set(record.outcomes) == set(scenario.peers) - {head, second}
    assert all(outcome.done for outcomes in record.outcomes.values() for outcome in outcomes.values())
