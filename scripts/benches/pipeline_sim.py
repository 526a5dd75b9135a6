"""A pipeline of sleeping blocks in virtual time: production processes on the simulated network, without noise.

It knows what a batch takes, not what is asked of it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import framed_nbytes
from decentral.engine.options import RunOptions
from decentral.engine.pipeline_process import PipelineProcess, PipelineProcessOptions, PipelineProcessParts
from decentral.monitor.events import BatchCounted, Event
from decentral.monitor.journal import MemoryJournal
from decentral.outer.diloco import DiLoCo
from decentral.pipeline.cut import cut
from decentral.pipeline.options import PipelineOptions
from decentral.schedule.plan import SyncPlan
from decentral.sim.loop import run
from decentral.sim.network import Conditions, Line
from decentral.sim.world import Machine, SimPeer, World, peer_id
from decentral.swarm.timing import Timing
from scripts.benches.lib.sleeping import SleepSettings, make_blocks
from tests.sim.pipelines import MemoryStore


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


class _Times:
    """When the head counted its batches."""

    def __init__(self, times: list[float]) -> None:
        self._times = times

    def record(self, event: Event) -> None:
        if isinstance(event, BatchCounted) and event.stage == 0:
            self._times.append(asyncio.get_running_loop().time())


def simulate(case: Case) -> dict[str, float]:
    """Seconds a batch, and the share of them in which a stage computes."""
    return run(_play(case), until_s=3600.0)


async def _play(case: Case) -> dict[str, float]:
    peers = [peer_id(number) for number in range(case.stages + 1)]
    line = Line(case.bits_per_s / 8, case.bits_per_s / 8)
    world = World(0, Conditions(latency_s=case.delay_s), machines={peer: Machine(line) for peer in peers})
    times: list[float] = []

    async def main(peer: SimPeer) -> None:
        number = peers.index(peer.peer_id)
        process = _process(case, peer, number, times)
        await (process.join(peers[:1]) if number else process.found())
        await process.run(asyncio.Event())

    for peer in peers:
        world.start(peer, main)
        await asyncio.sleep(0.5)
    await world.ended()
    measured = times[case.warm - 1 :]
    wall_s = (measured[-1] - measured[0]) / (len(measured) - 1)
    return {"batch_s": wall_s, "utilisation": case.busy_s / wall_s}


def _process(case: Case, peer: SimPeer, number: int, times: list[float]) -> PipelineProcess:
    made = cut(case.stages, case.stages, case.healing)
    codec = make_codec(case.codec)
    num_steps = case.warm + case.batches
    pipeline = PipelineOptions(
        spans=made.spans,
        healing=made.healing,
        codec=codec,
        seed=0,
        num_microbatches=case.microbatches,
        in_flight=case.in_flight,
        checkpoint_s=0.0,
        inner_steps=num_steps,
    )
    exact = make_codec("fp32")
    ordinary = RunOptions(
        run_id="",
        config=b"{}",
        rounds=1,
        plan=SyncPlan(num_steps),
        rule=DiLoCo(lr=1.0, momentum=0.0),
        codec=exact,
        mean_codec=exact,
        min_workers=1,
    )

    def of_stage(stage: int, parameters: Mapping[str, Tensor]) -> RunOptions:
        return replace(ordinary, run_id=f"sim/{stage}")

    parts = PipelineProcessParts(
        transport=peer.transport,
        directory=peer.directory,
        clock=peer.clock,
        identity=peer.identity,
        journal=MemoryJournal(),
        stage_journal=lambda stage: _Times(times),
        blocks=make_blocks(case.model(), peer.clock.charge, 0),
        store=MemoryStore(),
        wanted=(number,),
    )
    return PipelineProcess(PipelineProcessOptions("sim", b"{}", pipeline, of_stage, Timing()), parts)
