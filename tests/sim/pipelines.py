"""A pipeline in the simulator: production stations on simulated machines, and who counted what.

The model is a chain of linear blocks between a scale and a squared error, so small that a batch takes no real time.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from decentral.codecs.codec import make_codec
from decentral.engine.options import Outcome, RunOptions
from decentral.engine.station import Station, StationOptions, StationParts
from decentral.monitor.events import BatchCounted, StageRecovered
from decentral.monitor.journal import MemoryJournal
from decentral.outer.diloco import DiLoCo
from decentral.pipeline.cut import cut
from decentral.pipeline.options import PipelineOptions
from decentral.ports.blocks import Blocks
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import FaultTape
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.world import SimPeer, World, peer_id
from decentral.swarm.timing import Timing
from decentral.types import PeerId

WIDTH, BATCH = 4, 3


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Layer(nn.Module):
    """A residual layer that takes virtual time."""

    def __init__(self, seed: int, charge: Callable[[], None]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(0.1 * torch.randn(WIDTH, WIDTH, generator=generator))
        self._charge = charge

    def forward(self, x: Tensor) -> Tensor:
        self._charge()
        return x + x @ self.weight.T


class Error(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return (x + self.shift - targets).square().mean()


class Source:
    """Inputs and targets are functions of slot, batch and index; the right answer is a rotation of the input."""

    num_held_out = 2

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        return self._pair(1 + slot, batch, index)

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        return self._pair(0, 0, index)

    def _pair(self, *key: int) -> tuple[Tensor, Tensor]:
        seed = hash((self._seed, *key)) % (1 << 62)
        x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(seed))
        return x, x.roll(1, dims=1)


def tiny_blocks(num_blocks: int, charge: Callable[[], None] = lambda: None, seed: int = 0) -> Blocks:
    return Blocks(
        num_blocks=num_blocks,
        activation_shape=(BATCH, WIDTH),
        num_tokens=BATCH,
        embedding=Scale,
        block=lambda number: Layer(1000 * seed + number, charge),
        output=lambda embedding: Error(),
        optimizer=lambda named: torch.optim.AdamW(named.values(), lr=0.01),
        learning_rate=lambda step: 0.01,
        clip_norm=1.0,
        data=lambda: Source(seed),
        check=lambda num_blocks, is_head, device: None,
    )


class MemoryStore:
    """Checkpoints in memory; survives its worker, as a disk does."""

    def __init__(self) -> None:
        self.saved: dict[int, Outcome] = {}

    def stages(self) -> frozenset[int]:
        return frozenset(self.saved)

    def load(self, stage: int) -> Mapping[str, Tensor]:
        return self.saved[stage].anchors

    def save(self, stage: int, outcome: Outcome) -> None:
        self.saved[stage] = outcome


@dataclass(frozen=True)
class PipelineScenario:
    """What is simulated."""

    seed: int = 0
    num_stages: int = 4
    num_replicas: int = 1
    num_spares: int = 1
    rounds: int = 4
    inner_steps: int = 5
    num_microbatches: int = 4
    healing: Any = "auto"
    routing: Any = "permutation"
    checkpoint_s: float = 0.0
    block_s: float = 0.02
    """Virtual seconds of a block's forward pass."""
    wanted: Mapping[int, Any] = field(default_factory=dict)
    """Of machines that insist on something; the spares come last."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of ``RunOptions``."""
    conditions: Conditions = field(default_factory=Conditions)
    starts: Mapping[int, float] = field(default_factory=dict)
    until_s: float = 3000.0

    @property
    def num_machines(self) -> int:
        return (self.num_stages + 1) * self.num_replicas + self.num_spares

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(peer_id(number) for number in range(self.num_machines))


@dataclass
class PipelineRecord:
    """What became of it."""

    world: World
    stations: dict[PeerId, list[Station]] = field(default_factory=dict)
    journals: dict[PeerId, list[MemoryJournal]] = field(default_factory=dict)
    """Of stations and of their stages, all lives of a machine."""
    outcomes: dict[PeerId, Mapping[int, Outcome]] = field(default_factory=dict)
    stores: dict[PeerId, MemoryStore] = field(default_factory=dict)
    ended_at_s: float = 0.0

    def events(self, kind: type[Any]) -> list[tuple[PeerId, Any]]:
        return [
            (peer, event)
            for peer, journals in self.journals.items()
            for journal in journals
            for event in journal.events
            if isinstance(event, kind)
        ]

    def counted(self, stage: int) -> list[tuple[int, int, int]]:
        """(slot, batch, index) as often as it was counted at a stage, by anybody who ever lived."""
        return sorted(
            (event.slot, event.batch, index)
            for _, event in self.events(BatchCounted)
            if event.stage == stage
            for index in event.indices
        )

    def recovered(self) -> list[StageRecovered]:
        return [event for _, event in self.events(StageRecovered)]


def simulate_pipeline(scenario: PipelineScenario, tape: FaultTape | None = None) -> PipelineRecord:
    """Play a scenario to its end."""
    return run(_play(scenario, tape), until_s=scenario.until_s)


async def _play(scenario: PipelineScenario, tape: FaultTape | None) -> PipelineRecord:
    world = World(scenario.seed, scenario.conditions)
    record = PipelineRecord(world)
    first = [True]

    async def main(peer: SimPeer) -> None:
        station = _station(scenario, peer, record)
        record.stations.setdefault(peer.peer_id, []).append(station)
        if first[0]:
            first[0] = False
            await station.found()
        else:
            alive = [other for other in scenario.peers if other != peer.peer_id and world.is_running(other)]
            await station.join(alive[:2])
        record.outcomes[peer.peer_id] = await station.run(asyncio.Event())

    for number, peer in enumerate(scenario.peers):
        world.start(peer, main)
        await asyncio.sleep(scenario.starts.get(number, 0.5))
    if tape is not None:
        await tape.play(world, main)
    await world.ended()
    record.ended_at_s = asyncio.get_running_loop().time()
    return record


def _station(scenario: PipelineScenario, peer: SimPeer, record: PipelineRecord) -> Station:
    number = scenario.peers.index(peer.peer_id)
    journals = record.journals.setdefault(peer.peer_id, [])

    def journal(stage: int = -1) -> MemoryJournal:
        journals.append(MemoryJournal())
        return journals[-1]

    made = cut(scenario.num_stages, scenario.num_stages, scenario.healing)
    fp32 = make_codec("fp32")
    timing = Timing()
    pipeline = PipelineOptions(
        spans=made.spans,
        healing=made.healing,
        codec=fp32,
        seed=scenario.seed,
        num_microbatches=scenario.num_microbatches,
        routing=scenario.routing,
        checkpoint_s=scenario.checkpoint_s,
        inner_steps=scenario.inner_steps,
        eval_every_rounds=2,
    )
    ordinary = RunOptions(
        run_id="",
        config=b"{}",
        rounds=scenario.rounds,
        plan=SyncPlan(scenario.inner_steps),
        rule=DiLoCo(lr=1.0, momentum=0.0),
        codec=fp32,
        mean_codec=fp32,
        min_workers=scenario.num_replicas,
    )

    def of_stage(stage: int, parameters: Sequence[Any] | Mapping[str, Tensor]) -> RunOptions:
        return replace(ordinary, run_id=f"sim/{stage}", **scenario.options)

    options = StationOptions("sim", b"{}", pipeline, of_stage, timing)
    spare = "spare" if number >= scenario.num_machines - scenario.num_spares else ()
    blocks = tiny_blocks(scenario.num_stages, lambda: peer.clock.charge(scenario.block_s), scenario.seed)
    store = record.stores.setdefault(peer.peer_id, MemoryStore())
    parts = StationParts(
        transport=peer.transport,
        directory=peer.directory,
        clock=peer.clock,
        identity=peer.identity,
        journal=journal(),
        stage_journal=journal,
        blocks=blocks,
        store=store,
        wanted=scenario.wanted.get(number, spare),
    )
    return Station(options, parts)
