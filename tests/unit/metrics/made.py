"""Reports of made swarms, one without a pipeline, one with, that have a value for every metric there is."""

from decentral.monitor.report import RunFacts, StatusReport
from decentral.monitor.status import summarize
from decentral.swarm.presence import Metrics, Presence, State
from decentral.types import PeerId

OWN = PeerId("QmOwnOwn")


def told(step: int = 120, *, num_stages: int = 0) -> StatusReport:
    run = RunFacts("demo-1a2b", "noloco", "int8-b128", 40, 1, "0.1.0", "c0", gossip=True, num_stages=num_stages)
    full = Metrics(
        step=step, tokens=5000, loss=2.5, val_loss=2.25, spread=0.01, sent_bytes=900, dp_bytes=1800, microbatch_s=0.1
    )
    records = [
        (Presence(OWN, run.run_id, 2, State.TRAINING, 7, 0, "", metrics=full, holds="0,1"), 0.5),
        (Presence(PeerId("QmOther"), run.run_id, 2, State.TRAINING, 7, 0, "", holds="2"), 0.5),
        (Presence(PeerId("QmGone"), run.run_id, 2, State.TRAINING, 7, 0, ""), 60.0),
    ]
    return summarize(run, records, ttl_s=6.0)
