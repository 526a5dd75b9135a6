"""A spare that saves a stage from a worker that hangs does not wait for it when that stage is its to take."""

from decentral.monitor.events import StagePlaced
from decentral.pipeline.recovery import Source
from decentral.sim.faults import Fault, Kind
from decentral.sim.tape import FaultTape
from tests.sim.pipelines import PipelineScenario, simulate_pipeline


def test_a_stage_that_hangs_is_taken_before_it_wakes() -> None:
    scenario = PipelineScenario(rounds=20, checkpoint_s=1.0)
    spare = scenario.peers[-1]
    tape = FaultTape([Fault(Kind.PAUSE, 8.0, (3,), 10.0)])
    record = simulate_pipeline(scenario, tape)
    assert tape.unfired() == ()
    assert [(event.stage, event.source) for peer, event in record.events(StagePlaced) if peer == spare] == [
        (3, Source.BLEND)
    ]
