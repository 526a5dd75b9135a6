"""A pipeline in the simulator: production processes on simulated machines, and who counted what.

The model is a chain of linear blocks between a scale and a squared error, so small that a batch takes no real time.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from decentral.codecs.codec import make_codec
from decentral.engine.options import Outcome, RunOptions
from decentral.engine.pipeline_process import PipelineProcess, PipelineProcessOptions, PipelineProcessParts
from decentral.engine.reunion import Known
from decentral.errors import DataError, IncapableError
from decentral.monitor.events import BatchCounted, Event, Recut, StagePlaced, StageRecovered, Stopped
from decentral.monitor.journal import MemoryJournal
from decentral.outer.diloco import DiLoCo
from decentral.pipeline.cut import cut
from decentral.pipeline.options import PipelineOptions
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import Stored, span_of
from decentral.ports.model_blocks import ModelBlocks
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.tape import FaultTape
from decentral.sim.world import Machine, SimPeer, World, peer_id
from decentral.state.worker_state import WorkerState, Written
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

    def __init__(self, seed: int, charge: Callable[[], None] = lambda: None) -> None:
        self._seed = seed
        self._charge = charge

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        self._charge()
        return self._pair(1 + slot, batch, index)

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        return self._pair(0, 0, index)

    def _pair(self, *key: int) -> tuple[Tensor, Tensor]:
        seed = hash((self._seed, *key)) % (1 << 62)
        x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(seed))
        return x, x.roll(1, dims=1)


def tiny_blocks(
    num_blocks: int,
    charge: Callable[[], None] = lambda: None,
    seed: int = 0,
    *,
    charge_draw: Callable[[], None] = lambda: None,
) -> ModelBlocks:
    """The model; ``charge`` is called in a block's forward pass, ``charge_draw`` when a micro-batch is drawn."""
    return ModelBlocks(
        num_blocks=num_blocks,
        activation_shape=(BATCH, WIDTH),
        num_tokens=BATCH,
        embedding=Scale,
        block=lambda number: Layer(1000 * seed + number, charge),
        output=lambda embedding: Error(),
        optimizer=lambda named: torch.optim.AdamW(named.values(), lr=0.01),
        learning_rate=lambda step: 0.01,
        clip_norm=1.0,
        data=lambda: Source(seed, charge_draw),
        check=lambda num_blocks, is_head, device: None,
    )


class MemoryStore:
    """Checkpoints in memory, three of each stage; survives its worker, as a disk does.

    Args:
        path: see ``ModelBlocks``.
    """

    def __init__(self, path: str = "blocks") -> None:
        self._path = path
        self.saved: dict[int, list[WorkerState]] = {}
        """By stage, the newest first."""
        self._kept: list[WorkerState] = []
        """Those of them that are kept for others."""

    def stored(self) -> list[Stored]:
        return [
            self._entry(state)
            for states in self.saved.values()
            for number, state in enumerate(states)
            if all(state.step < newer.step for newer in states[:number])
        ]

    def verify(self) -> None:
        pass

    def load(self, one: Stored) -> WorkerState:
        return next(state for states in self.saved.values() for state in states if self._entry(state) == one)

    def save(self, stage: int, state: WorkerState, *, own: bool = True) -> Written:
        before = [other for other in self.saved.get(stage, ()) if other.step != state.step]
        self.saved[stage] = [state, *before][:3]
        there = [each for states in self.saved.values() for each in states]
        self._kept = [each for each in (*self._kept, *([] if own else [state])) if any(each is one for one in there)]
        return Written("memory", 0)

    def _entry(self, state: WorkerState) -> Stored:
        own = not any(state is kept for kept in self._kept)
        return Stored(*span_of(state.anchors, self._path), state.step, state.digest, own)


class Watched(MemoryJournal):
    """Tells of its events too."""

    def __init__(self, watch: Callable[[Event], None]) -> None:
        super().__init__()
        self._watch = watch

    def record(self, event: Event) -> None:
        super().record(event)
        self._watch(event)


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
    blocks_per_stage: int = 1
    healing: Any = "auto"
    routing: Any = "permutation"
    checkpoint_s: float = 0.0
    protect: int = 0
    block_s: float = 0.02
    """Virtual seconds of a block's forward pass."""
    slower: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Machines that take so many times as long from some second on."""
    moves: bool = False
    """Whether the cut changes."""
    room: Mapping[int, int] = field(default_factory=dict)
    """Blocks that machines can hold, those that have not room for all."""
    clip_norm: float = 1.0
    wanted: Mapping[int, Any] = field(default_factory=dict)
    """Of machines that insist on something; the spares come last."""
    without_data: frozenset[int] = frozenset()
    """Machines that have nothing to train on."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of ``RunOptions``."""
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    """Of ``PipelineOptions``."""
    draw_s: Mapping[int, float] = field(default_factory=dict)
    """Virtual seconds in which some machines draw a micro-batch, as heads."""
    leaves: Mapping[int, float] = field(default_factory=dict)
    """When machines are asked to stop."""
    late: frozenset[int] = frozenset()
    """Machines that only a fault starts."""
    intruder: Callable[[SimPeer], Coroutine[Any, Any, None]] | None = None
    """What runs on one more machine, that is no member."""
    conditions: Conditions = field(default_factory=Conditions)
    machine: Machine = field(default_factory=Machine)
    """Each of them."""
    model: Callable[[Callable[[float], None]], ModelBlocks] | None = None
    """Told how to charge virtual seconds; in the place of ``tiny_blocks``."""
    watch: Callable[[Event], None] = lambda event: None
    """Told every event when it is recorded."""
    starts: Mapping[int, float] = field(default_factory=dict)
    """Seconds between the start of a machine and that of the next one."""
    resumes: bool = False
    """Whether a machine that starts once more goes on with what is on its disk; else it joins those who are there."""
    stages_later: int = 0
    """Into how many stages the model is cut for machines that start once more; 0 for as many as before."""
    until_s: float = 3000.0

    @property
    def num_machines(self) -> int:
        return (self.num_stages + 1) * self.num_replicas + self.num_spares

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(peer_id(number) for number in range(self.num_machines))


@dataclass
class Life:
    """A worker from its start to its end."""

    peer: PeerId
    began_at_s: float
    journals: list[MemoryJournal] = field(default_factory=list)
    """Of its process and of its stages."""
    over: bool = False
    """It ended as a worker should: it was not struck."""

    def events(self, kind: type[Any]) -> list[Any]:
        return [event for journal in self.journals for event in journal.events if isinstance(event, kind)]


@dataclass
class PipelineRecord:
    """What became of it."""

    world: World
    lives: list[Life] = field(default_factory=list)
    processes: dict[PeerId, list[PipelineProcess]] = field(default_factory=dict)
    outcomes: dict[PeerId, Mapping[int, Outcome]] = field(default_factory=dict)
    stores: dict[PeerId, MemoryStore] = field(default_factory=dict)
    ended_at_s: float = 0.0

    def events(self, kind: type[Any]) -> list[tuple[PeerId, Any]]:
        return [(life.peer, event) for life in self.lives for event in life.events(kind)]

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


def miscounts(scenario: PipelineScenario, record: PipelineRecord) -> list[str]:
    """What was not counted exactly once at every stage, in words; empty as it should be.

    Two things are right and no miscounts. A replica takes its share with it if its head is struck as well before it has
    told another one: nobody is left who knows of it. And who was struck in the last batch that it counted, before its
    confirmation had reached the head, has counted in vain what was then counted by who came in its place. Its weights
    are gone. So are those of a replica that gave its stage up for one that was lost, while that batch was committed.
    """
    heads = set(record.counted(0))
    wrong = []
    for slot in sorted({slot for slot, _, _ in heads}):
        numbers = sorted({batch for other, batch, _ in heads if other == slot})
        if numbers != list(range(len(numbers))):
            wrong.append(f"batches of slot {slot} are {numbers}")
    for stage in range(max(map(len, _spans(scenario, record))) + 1):
        counters: dict[tuple[int, int, int], list[bool]] = {
            key: [] for key in heads if stage <= len(_spans(scenario, record, key[1])[-1])
        }
        for life in record.lives:
            for journal in life.journals:
                events = [event for event in journal.events if isinstance(event, BatchCounted) and event.stage == stage]
                last = {event.slot: max(e.batch for e in events if e.slot == event.slot) for event in events}
                left = not life.over or any(event.reason != "run is done" for event in stops(journal))
                for event in events:
                    in_vain = left and event.batch == last[event.slot]
                    for index in event.indices:
                        counters.setdefault((event.slot, event.batch, index), []).append(in_vain)
        for key, found in sorted(counters.items()):
            taken_along = not found and _both_struck(record, stage, *key[:2])
            if (not found and not taken_along) or found.count(False) > 1:
                wrong.append(f"stage {stage} counted {key} {len(found)} times")
            if key not in heads:
                wrong.append(f"stage {stage} counted {key}, and no head")
    return wrong


def _spans(scenario: PipelineScenario, record: PipelineRecord, batch: float = math.inf) -> list[Any]:
    """The cuts that there were by the time of a batch of the only head, if they change; else stages without blocks."""
    if not scenario.moves:
        return [range(scenario.num_stages)]
    return [event.spans for _, event in record.events(Recut) if not event.problem and event.step <= batch]


def _both_struck(record: PipelineRecord, stage: int, slot: int, batch: int) -> bool:
    """Whether a head of the slot and a replica of the stage were, the replica before it counted a batch."""
    lives = [life for life in record.lives if not life.over]
    held = [(life, event) for life in lives for event in life.events(StagePlaced)]
    counted = {
        id(life): max((e.batch for e in life.events(BatchCounted) if (e.stage, e.slot) == (stage, slot)), default=-1)
        for life in lives
    }
    head = any((event.stage, event.slot) == (0, slot) for _, event in held)
    return head and any(event.stage == stage and batch - 1 <= counted[id(life)] + 1 <= batch for life, event in held)


def stops(journal: MemoryJournal) -> list[Stopped]:
    return [event for event in journal.events if isinstance(event, Stopped)]


def unfinished(scenario: PipelineScenario, record: PipelineRecord) -> list[str]:
    """Which machines that were never struck did not end with all steps done, in words."""
    last = {life.peer: life for life in record.lives}
    return [
        f"{peer} ended with {dict(record.outcomes.get(peer, {}))}"
        for number, peer in enumerate(scenario.peers)
        if peer in last and last[peer].over and number not in scenario.leaves
        if not all(outcome.done for outcome in record.outcomes[peer].values())
    ]


def simulate_pipeline(scenario: PipelineScenario, tape: FaultTape | None = None) -> PipelineRecord:
    """Play a scenario to its end."""
    return run(_play(scenario, tape), until_s=scenario.until_s)


async def _play(scenario: PipelineScenario, tape: FaultTape | None) -> PipelineRecord:
    world = World(scenario.seed, scenario.conditions, machines=dict.fromkeys(scenario.peers, scenario.machine))
    record = PipelineRecord(world)

    async def main(peer: SimPeer) -> None:
        loop = asyncio.get_running_loop()
        life = Life(peer.peer_id, loop.time())
        record.lives.append(life)
        stop = asyncio.Event()
        leaves_at = scenario.leaves.get(scenario.peers.index(peer.peer_id))
        if leaves_at is not None:
            loop.call_at(leaves_at, stop.set)
        process = _process(scenario, peer, record, life)
        record.processes.setdefault(peer.peer_id, []).append(process)
        others = [other for other in scenario.peers if other != peer.peer_id and world.is_running(other)]
        again = scenario.resumes and len(record.processes[peer.peer_id]) > 1
        if again:
            known = [other for other in scenario.peers if other != peer.peer_id]
            await process.resume(Known(lambda: known, lambda other: _is_there(world, other)))
        elif len(record.lives) == 1:
            await process.found()
        elif others:
            await process.join(others[:2])
        if again or len(record.lives) == 1 or others:
            record.outcomes[peer.peer_id] = await process.run(stop)
        life.over = True

    for number, peer in enumerate(scenario.peers):
        if number not in scenario.late:
            world.start(peer, main)
            await asyncio.sleep(scenario.starts.get(number, 0.5))
    if scenario.intruder is not None:
        world.start(peer_id(scenario.num_machines), scenario.intruder)
    if tape is not None:
        await tape.play(world, main)
    await world.ended()
    record.ended_at_s = asyncio.get_running_loop().time()
    return record


async def _is_there(world: World, peer: PeerId) -> bool:
    return world.is_running(peer)


def play(
    *faults: Fault, unfired: int = 0, counted_once: bool = True, **settings: Any
) -> tuple[PipelineScenario, PipelineRecord]:
    """Play a scenario: everybody who is there at the end has done all steps, and every micro-batch is counted once.

    Args:
        faults: of which so many as ``unfired`` may have no effect.
        counted_once: whether that is to be so.
        settings: of the scenario.
    """
    scenario = PipelineScenario(**settings)
    tape = FaultTape(faults)
    record = simulate_pipeline(scenario, tape)
    assert len(tape.unfired()) <= unfired, f"{tape.unfired()} had no effect"
    assert unfinished(scenario, record) == []
    assert not counted_once or miscounts(scenario, record) == []
    return scenario, record


def _no_data() -> Source:
    raise DataError("there is no data here")


def _process(scenario: PipelineScenario, peer: SimPeer, record: PipelineRecord, life: Life) -> PipelineProcess:
    number = scenario.peers.index(peer.peer_id)

    def journal(stage: int = -1) -> MemoryJournal:
        life.journals.append(Watched(scenario.watch))
        return life.journals[-1]

    num_blocks, again = scenario.num_stages * scenario.blocks_per_stage, peer.peer_id in record.processes
    later = scenario.stages_later if again or number in scenario.late else 0
    made = cut(num_blocks, later or scenario.num_stages, "checkpoint" if scenario.moves else scenario.healing)
    fp32 = make_codec("fp32")
    timing = Timing()
    pipeline = PipelineOptions(
        spans=() if scenario.moves else made.spans,
        healing=made.healing,
        codec=fp32,
        seed=scenario.seed,
        num_microbatches=scenario.num_microbatches,
        num_replicas=scenario.num_replicas,
        routing=scenario.routing,
        inner_steps=scenario.inner_steps,
        eval_every_rounds=2,
    )
    pipeline = replace(pipeline, **scenario.pipeline)
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
        stages = replace(ordinary, run_id=f"sim/{stage}", **scenario.options)
        # A head has no layers to deal out to fragments.
        plan = stages.plan
        return stages if stage else replace(stages, plan=SyncPlan(plan.inner_steps, 1, plan.delay_steps))

    options = PipelineProcessOptions("sim", b"{}", pipeline, of_stage, timing)
    spare = "spare" if number >= scenario.num_machines - scenario.num_spares else ()
    if scenario.model is not None:
        blocks = scenario.model(peer.clock.charge)
    else:
        factor, from_s = scenario.slower.get(number, (1.0, 0.0))

        def charge() -> None:
            is_slow = asyncio.get_running_loop().time() >= from_s
            peer.clock.charge(scenario.block_s * (factor if is_slow else 1.0))

        blocks = tiny_blocks(
            num_blocks,
            charge,
            scenario.seed,
            charge_draw=lambda: peer.clock.charge(scenario.draw_s.get(number, 0.0)),
        )
    room = scenario.room.get(number, num_blocks)

    def check(count: int, is_head: bool, device: str) -> None:
        if count > room:
            raise IncapableError(f"{count} blocks do not fit", hint="")

    blocks = replace(blocks, check=check)
    if scenario.model is None:
        blocks = replace(blocks, clip_norm=scenario.clip_norm)
    if number in scenario.without_data:
        blocks = replace(blocks, data=_no_data)
    parts = PipelineProcessParts(
        transport=peer.transport,
        directory=peer.directory,
        clock=peer.clock,
        identity=peer.identity,
        journal=journal(),
        stage_journal=journal,
        blocks=blocks,
        store=record.stores.setdefault(peer.peer_id, MemoryStore(blocks.path)),
        cut=CutInForce(pipeline.spans, num_blocks, blocks.path),
        save_every=Every(scenario.checkpoint_s or math.inf),
        protect=scenario.protect,
        wanted=scenario.wanted.get(number, spare),
    )
    return PipelineProcess(options, parts)
