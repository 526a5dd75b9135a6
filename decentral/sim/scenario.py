"""A whole swarm in the simulator: the production engine on every machine, toy trainers, and what became of them."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from decentral.codecs.codec import make_codec
from decentral.codecs.defaults import default_mean_codec
from decentral.codecs.feedback import Feedback
from decentral.engine.background import Background
from decentral.engine.options import Mixing, Outcome, Parts, RunOptions
from decentral.engine.reunion import Known, seek_absent
from decentral.engine.worker import Worker
from decentral.errors import UnreachableError
from decentral.exchange.allreduce.options import AllReduceOptions
from decentral.exchange.merge import WeightBy
from decentral.monitor.journal import MemoryJournal
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.rule import OuterRule
from decentral.ports.trainer import Trainer
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.sim.local_steps import LocalSteps
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.tape import FaultTape
from decentral.sim.trainer import Charged, ToyProblem
from decentral.sim.world import Machine, SimPeer, World, peer_id
from decentral.state.worker_state import WorkerState, Written
from decentral.swarm.timing import Timing
from decentral.tensors.layout import Pattern
from decentral.types import PeerId

#: How often workers keep their state, unless a scenario says so.
NEVER = Every()
#: All joiners start so long after the founder, when it has something to give.
_FOUNDING_S = 1.0
#: A joiner is given so many addresses of workers that run.
_NUM_ADDRESSES = 2
#: Of memory, for what a worker keeps for others.
_GUARD_BYTES = 1 << 20
#: After so long a worker that found nobody is started again.
_AGAIN_S = 2.0
#: After so long a worker that has nothing and finds nobody begins anew.
_FORLORN_S = 60.0
#: What is on a worker's disk.
_STATE = "state"


#: Told a worker's number, the worker and its machine before it starts; in tests and benches it makes liars of some.
Meddle = Callable[[int, Worker, SimPeer], None]


def all_honest(number: int, worker: Worker, peer: SimPeer) -> None:
    """Every worker is as it is."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated. The same scenario gives the same run."""

    seed: int
    num_workers: int
    rounds: int
    plan: SyncPlan = field(default_factory=lambda: SyncPlan(inner_steps=10))
    auto_delay: bool = False
    auto_groups: bool = False
    mix_alpha: float = 0.0
    eager: Eager | None = None
    pattern: Pattern = "strided"
    min_workers: int = 1
    eval_every_rounds: int = 0
    rolls_back: bool = False
    step_s: float = 0.1
    """Virtual seconds of an inner step."""
    step_sigma: float = 0.0
    """Sigma of a log-normal factor, of mean 1, on the time of inner steps that are taken at once."""
    paces: Mapping[int, float] = field(default_factory=dict)
    """Workers whose steps take so many times as long."""
    codec: str = "fp32"
    mean_codec: str = ""
    """Of means; empty for what goes with ``codec``."""
    feedback: Callable[[int], Feedback] = Feedback
    weight_by: WeightBy = "tokens"
    mixing: Mixing = field(default_factory=AllReduceOptions)
    rule: OuterRule = field(default_factory=lambda: DiLoCo(lr=0.7, momentum=0.5))
    timing: Timing = field(default_factory=Timing)
    conditions: Conditions = field(default_factory=Conditions)
    machines: Mapping[PeerId, Machine] = field(default_factory=dict)
    num_values: int = 24
    num_tensors: int = 3
    """Layers of the model."""
    together: bool = False
    """All found the swarm at once, from the same parameters, instead of joining the first worker one by one."""
    latest: int = 0
    """Workers (the last ones) that are not started with the others; a fault may start them."""
    momentum: float = 0.0
    """See ``ToyProblem``."""
    inner_lr: float = 0.1
    """See ``ToyProblem``."""
    save_every: Every = NEVER
    """How often each worker saves its state; a machine that starts again goes on from the newest on its disk."""
    protect: int = 0
    """So many others keep in memory what a worker alone has."""
    restored: Mapping[PeerId, WorkerState] = field(default_factory=dict)
    """What machines have on their disks of an earlier life."""
    reunited: bool = False
    """Whether workers with a state on their disks look for all others before they go on."""
    patient: bool = False
    """Whether a worker that finds nobody to join is started again until it does, as a service would."""
    meddle: Meddle = all_honest
    build: Callable[[int], Trainer] | None = None
    """Makes what a worker trains, by its number, in place of ``problem``."""
    look_s: float = 1.0
    """See ``Parts``."""

    @cached_property
    def problem(self) -> ToyProblem:
        """What the swarm learns."""
        return ToyProblem(
            self.seed,
            self.num_workers,
            num_values=self.num_values,
            num_tensors=self.num_tensors,
            momentum=self.momentum,
            inner_lr=self.inner_lr,
        )

    @cached_property
    def peers(self) -> tuple[PeerId, ...]:
        """All machines."""
        return tuple(peer_id(i) for i in range(self.num_workers))


@dataclass(frozen=True, slots=True)
class Comeback:
    """A worker that found no swarm and brought its own back."""

    at_s: float
    peer: PeerId
    state: WorkerState


@dataclass(slots=True)
class Record:
    """What became of a swarm."""

    world: World
    ended_at_s: float = 0.0
    """Virtual time at which the last worker ended."""
    journals: dict[PeerId, list[MemoryJournal]] = field(default_factory=dict)
    """One for each life of a machine."""
    outcomes: dict[PeerId, Outcome] = field(default_factory=dict)
    """Of those that ended by themselves."""
    states: dict[PeerId, list[WorkerState]] = field(default_factory=dict)
    """What each machine has saved, the newest last, also what was lost since."""
    comebacks: list[Comeback] = field(default_factory=list)
    """Lives that began from a disk while nobody lived, or together with others that did."""


def simulate(scenario: Scenario, tape: FaultTape | None = None, *, until_s: float = 1e6) -> Record:
    """Run a scenario to its end, with faults if a tape is given.

    Raises:
        SimulationError: the swarm hangs, or is not done at the virtual time ``until_s``.
        ExceptionGroup: a worker failed.
    """
    return run(_play(scenario, tape), until_s=until_s)


async def _play(scenario: Scenario, tape: FaultTape | None) -> Record:
    world = World(scenario.seed, scenario.conditions, machines=scenario.machines)
    record = Record(world)
    started = scenario.peers[: scenario.num_workers - scenario.latest]
    founders = set(started if scenario.together else started[:1])
    members: list[SimPeer] = []
    """Machines whose workers were in the swarm; those that run are."""

    async def begin(peer: SimPeer) -> Worker:
        """A worker that is in the swarm."""
        began = peer.clock.monotonic()
        while True:
            journal, saved = MemoryJournal(), peer.disk.load(_STATE)
            record.journals.setdefault(peer.peer_id, []).append(journal)
            worker = _worker(scenario, peer, journal, record)
            others = [other for other in scenario.peers if other != peer.peer_id and world.is_running(other)]
            alive = [other for other in others if not scenario.patient or world.peers[other] in members]
            forlorn = scenario.patient and peer.clock.monotonic() - began > _FORLORN_S
            try:
                if saved is not None and (scenario.reunited or scenario.patient):
                    if not alive:
                        record.comebacks.append(Comeback(peer.clock.monotonic(), peer.peer_id, saved))
                    await worker.resume(_known(scenario, peer))
                elif saved is not None and (not alive or peer.peer_id in founders):
                    founders.discard(peer.peer_id)
                    record.comebacks.append(Comeback(peer.clock.monotonic(), peer.peer_id, saved))
                    await worker.resume()
                elif peer.peer_id in founders or (not alive and forlorn):
                    founders.discard(peer.peer_id)
                    await worker.found()
                else:
                    await worker.join(alive[:_NUM_ADDRESSES])
            except UnreachableError:
                if not scenario.patient:
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                return worker

    async def main(peer: SimPeer) -> None:
        worker = await begin(peer)
        members.append(peer)
        async with Background() as beside:
            if scenario.reunited:
                beside.begin(seek_absent(_known(scenario, peer), worker.membership, peer.clock, lambda _: None))
            record.outcomes[peer.peer_id] = await worker.run(asyncio.Event())

    for peer, state in scenario.restored.items():
        world.disk(peer).save(_STATE, state)
    world.start(started[0], main)
    if not scenario.together:
        await asyncio.sleep(_FOUNDING_S)
    for peer in started[1:]:
        world.start(peer, main)
    if tape is not None:
        await tape.play(world, main)
    await world.ended()
    record.ended_at_s = asyncio.get_running_loop().time()
    return record


def _known(scenario: Scenario, peer: SimPeer) -> Known:
    """All others: every machine has a way to every other one, and whether there is anybody the next call tells."""

    async def dial(other: PeerId) -> bool:
        return True

    return Known(lambda: [other for other in scenario.peers if other != peer.peer_id], dial)


def _worker(scenario: Scenario, peer: SimPeer, journal: MemoryJournal, record: Record) -> Worker:
    """The production worker on simulated ports, which goes on from the newest on its disk and saves more."""
    number = scenario.peers.index(peer.peer_id)
    codec = make_codec(scenario.codec)
    options = RunOptions(
        run_id=f"sim-{scenario.seed}",
        config=b"{}",
        rounds=scenario.rounds,
        plan=scenario.plan,
        pattern=scenario.pattern,
        auto_delay=scenario.auto_delay,
        auto_groups=scenario.auto_groups,
        mix_alpha=scenario.mix_alpha,
        eager=scenario.eager,
        min_workers=scenario.min_workers,
        eval_every_rounds=scenario.eval_every_rounds,
        rolls_back=scenario.rolls_back,
        rule=scenario.rule,
        codec=codec,
        mean_codec=make_codec(scenario.mean_codec) if scenario.mean_codec else default_mean_codec(codec),
        feedback=scenario.feedback,
        weight_by=scenario.weight_by,
        mixing=scenario.mixing,
        timing=scenario.timing,
    )
    step_s = scenario.step_s * scenario.paces.get(number, 1.0)
    charge = _charge(scenario, peer)
    trainer: Trainer = (
        Charged(scenario.build(number), charge, step_s)
        if scenario.build is not None
        else scenario.problem.trainer(number, charge, step_s=step_s)
    )
    inner = LocalSteps(trainer, peer.clock)
    parts = Parts(peer.transport, peer.directory, peer.clock, peer.identity, trainer, inner, journal=journal)
    states = record.states.setdefault(peer.peer_id, [])

    def save(state: WorkerState) -> Written | None:
        try:
            peer.disk.save(_STATE, state)
        except OSError:
            return None  # Training goes on.
        states.append(state)
        return Written(_STATE, sum(tensor.nbytes for tensor in (*state.anchors.values(), *state.own.values())))

    restored = peer.disk.load(_STATE)
    parts = replace(parts, protect=scenario.protect, guard_bytes=_GUARD_BYTES, look_s=scenario.look_s)
    worker = Worker(options, replace(parts, restored=restored, save=save, save_every=scenario.save_every))
    scenario.meddle(number, worker, peer)
    return worker


def _charge(scenario: Scenario, peer: SimPeer) -> Callable[[float], None]:
    """The machine's clock, or one whose work takes now more and now less time."""
    sigma = scenario.step_sigma
    if not sigma:
        return peer.clock.charge
    chance = random.Random(f"steps {scenario.seed} {peer.peer_id}")
    return lambda seconds: peer.clock.charge(seconds * chance.lognormvariate(-sigma * sigma / 2, sigma))
