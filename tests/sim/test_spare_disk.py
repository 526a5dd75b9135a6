"""What is kept for others on a disk: by a spare, which waits for nobody that hangs, and by the holder of a stage."""

import pytest

from decentral.monitor.events import Resumed, StagePlaced
from decentral.pipeline.recovery import Source
from decentral.sim.faults import Fault, Kind
from decentral.sim.tape import FaultTape
from tests.sim.pipelines import PipelineScenario, miscounts, simulate_pipeline, unfinished


@pytest.mark.slow
def test_a_stage_that_hangs_is_taken_before_it_wakes() -> None:
    scenario = PipelineScenario(rounds=20, checkpoint_s=1.0)
    spare = scenario.peers[-1]
    tape = FaultTape([Fault(Kind.PAUSE, 20.0, (3,), 10.0)])
    record = simulate_pipeline(scenario, tape)
    assert tape.unfired() == ()
    assert [(event.stage, event.source) for peer, event in record.events(StagePlaced) if peer == spare] == [
        (3, Source.CHECKPOINT)
    ]


def test_a_lost_stage_comes_from_the_holder_that_protects_it_with_its_optimizer() -> None:
    """To a machine that had nothing, when nobody waits and no average is taken."""
    changes = {"num_spares": 1, "wanted": {5: ()}, "late": frozenset({5})}
    scenario = PipelineScenario(rounds=8, checkpoint_s=1.0, protect=1, **changes)
    tape = FaultTape([Fault(Kind.KILL, 9.0, (2,)), Fault(Kind.START, 9.5, (5,))])
    record = simulate_pipeline(scenario, tape)
    assert (tape.unfired(), unfinished(scenario, record), miscounts(scenario, record)) == ((), [], [])
    (recovered,) = record.recovered()
    assert (recovered.stage, recovered.source, recovered.donors) == (2, Source.CHECKPOINT, (scenario.peers[1],))
    ((peer, resumed),) = record.events(Resumed)
    assert (peer, resumed.step) == (scenario.peers[5], recovered.step), "the run has not gone back for it"
    assert "inner optimizer and data position" in resumed.kept
    # The head is the neighbour of the last stage, which has no other.
    kept = {
        int(peer[-4:]): {one.span for one in store.stored() if not one.own} for peer, store in record.stores.items()
    }
    assert kept[4] == {(0, 0)}
    assert kept[0] == {(0, 1)}
