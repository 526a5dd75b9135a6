"""A pipeline of sleeping blocks in virtual time: production processes on the simulated network, without noise.

It knows what a batch takes, not what is asked of it.
"""

from dataclasses import dataclass
from typing import Any

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import framed_nbytes
from decentral.monitor.events import BatchCounted, Event
from decentral.sim.loop import virtual_loop
from decentral.sim.network import Conditions, Line
from decentral.sim.world import Machine
from scripts.benches.lib.sleeping import SleepSettings, make_blocks
from tests.sim.pipelines import PipelineScenario, simulate_pipeline


@dataclass(frozen=True)
class Case:
    """A pipeline and its links."""

    microbatches: int = 8
    in_flight: int = 0
    codec: str = "bf16"
    healing: Any = "checkfree"
    stages: int = 4
    bits_per_s: float = 100e6
    delay_s: float = 0.025
    """One way between any two."""
    sequences: int = 4
    context: int = 256
    width: int = 256
    forward_s: float = 0.05
    backward_s: float = 0.1
    batches: int = 5
    """That are measured, after ``warm``."""
    warm: int = 2

    @property
    def busy_s(self) -> float:
        """That a stage computes in a batch."""
        return self.microbatches * (self.forward_s + self.backward_s)

    def model(self) -> SleepSettings:
        """Its blocks, one for each stage."""
        return SleepSettings(self.stages, self.sequences, self.context, self.width, self.forward_s, self.backward_s)


def predicted_s(case: Case) -> float:
    """Seconds a batch by the formula of docs/algorithms/pipeline.md."""
    passes_s = case.forward_s + case.backward_s
    numel = case.sequences * case.context * case.width
    packet_s = 8 * framed_nbytes(make_codec(case.codec), numel) / case.bits_per_s
    path_s = case.stages * passes_s + 2 * (case.stages + 1) * (case.delay_s + packet_s)
    window = case.in_flight or case.microbatches
    return path_s + (case.microbatches - 1) * max(passes_s, 2 * packet_s, path_s / window)


def simulate(case: Case) -> dict[str, float]:
    """Seconds a batch, and the share of them in which a stage computes."""
    times: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, BatchCounted) and event.stage == 0:
            times.append(virtual_loop().time())

    pipeline = {"codec": make_codec(case.codec), "in_flight": case.in_flight}
    scenario = PipelineScenario(
        num_stages=case.stages,
        num_spares=0,
        rounds=1,
        inner_steps=case.warm + case.batches,
        num_microbatches=case.microbatches,
        healing=case.healing,
        pipeline=pipeline,
        wanted={number: (number,) for number in range(case.stages + 1)},
        conditions=Conditions(latency_s=case.delay_s),
        machine=Machine(Line(case.bits_per_s / 8, case.bits_per_s / 8)),
        model=lambda charge: make_blocks(case.model(), charge, 0),
        watch=watch,
    )
    simulate_pipeline(scenario)
    measured = times[case.warm - 1 :]
    wall_s = (measured[-1] - measured[0]) / (len(measured) - 1)
    return {"batch_s": wall_s, "utilisation": case.busy_s / wall_s}
