"""A few production workers on the simulator, watched closely: what each journal says, and who sent what to whom."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from decentral.codecs.codec import make_codec
from decentral.engine.options import Outcome, Parts, RunOptions
from decentral.engine.worker import Worker
from decentral.exchange.allreduce.messages import Shard, unpack_participants
from decentral.exchange.allreduce.reducer import SHARD
from decentral.monitor.events import RoundMixed, StretchDone
from decentral.monitor.journal import MemoryJournal
from decentral.outer.diloco import DiLoCo
from decentral.ports.trainer import InnerLoop, Trainer
from decentral.ports.transport import Handler, Traffic
from decentral.schedule.every import Every
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault
from decentral.sim.local_steps import LocalSteps
from decentral.sim.loop import run
from decentral.sim.network import Conditions
from decentral.sim.tape import FaultTape
from decentral.sim.trainer import ToyProblem
from decentral.sim.transport import MemoryTransport
from decentral.sim.world import Machine, SimPeer, World, peer_id
from decentral.state.worker_state import WorkerState
from decentral.swarm.message import from_wire
from decentral.swarm.presence import Presence
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

E = TypeVar("E")
INNER_STEPS = 10
STEP_S = 0.1
RULE = DiLoCo(lr=0.7, momentum=0.5)
PROBLEM = ToyProblem(seed=5, num_workers=3)
FOUNDER, SECOND, THIRD = PEERS = tuple(peer_id(number) for number in range(3))


@dataclass(frozen=True)
class Plan:
    """Who takes part, and what happens to them."""

    rounds: int = 4
    starts: Mapping[PeerId, float] = field(default_factory=lambda: {FOUNDER: 0.0, SECOND: 0.3, THIRD: 0.3})
    """When each machine starts, seconds."""
    step_s: Mapping[PeerId, float] = field(default_factory=dict)
    """Of those that are not ordinary."""
    stops: Mapping[PeerId, float] = field(default_factory=dict)
    """When whom is asked to stop."""
    trainers: Mapping[PeerId, Callable[[SimPeer], Trainer]] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    machines: Mapping[PeerId, Machine] = field(default_factory=dict)
    latencies: Mapping[tuple[PeerId, PeerId], float] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of ``RunOptions``, in place of the ordinary ones."""
    looks: Sequence[float] = ()
    """When to look at the records that the founder has of all workers."""
    inner: Callable[[SimPeer, Trainer], InnerLoop] = lambda peer, trainer: LocalSteps(trainer, peer.clock)
    """What takes the trainers' steps."""
    beside: Callable[[Worker], Coroutine[Any, Any, None]] | None = None
    """What goes on beside each worker, from its first step to its end."""
    restored: Mapping[PeerId, WorkerState] = field(default_factory=dict)
    """What workers are given of their earlier lives; the founder resumes from it."""


@dataclass
class Seen:
    """What became of it."""

    journals: dict[PeerId, MemoryJournal] = field(default_factory=dict)
    outcomes: dict[PeerId, Outcome] = field(default_factory=dict)
    ended_s: dict[PeerId, float] = field(default_factory=dict)
    """When they ended."""
    states: dict[PeerId, WorkerState] = field(default_factory=dict)
    """Of those that ended by themselves."""
    errors: dict[PeerId, Exception] = field(default_factory=dict)
    weights: dict[tuple[SyncKey, PeerId], float] = field(default_factory=dict)
    """What each member brought to each round, by the messages that reached a reducer."""
    frames: dict[tuple[SyncKey, PeerId], bytes] = field(default_factory=dict)
    """The values in them."""
    messages: list[tuple[float, str, str, str]] = field(default_factory=list)
    """Time, sender, receiver and method or ``reply`` of every message on the network."""
    records: list[dict[PeerId, Presence]] = field(default_factory=list)
    """What the founder knew of whom, at each look."""
    unfired: tuple[Fault, ...] = ()

    def of(self, kind: type[E], peer: PeerId) -> list[E]:
        """The events of a kind in a worker's journal."""
        return [event for event in self.journals[peer].events if isinstance(event, kind)]

    def mixed(self, peer: PeerId) -> dict[int, RoundMixed]:
        """The rounds that a worker mixed."""
        return {event.round: event for event in self.of(RoundMixed, peer)}

    def tokens(self, peer: PeerId) -> dict[int, int]:
        """Tokens of a worker's stretch in each round."""
        return {event.round: event.tokens for event in self.of(StretchDone, peer)}


class Tap:
    """A transport that tells what its peer was sent."""

    def __init__(self, inner: MemoryTransport, seen: Seen) -> None:
        self._inner = inner
        self._seen = seen
        self.peer_id = inner.peer_id

    async def call(self, peer: PeerId, method: str, request: bytes, **limits: Any) -> bytes:
        return await self._inner.call(peer, method, request, **limits)

    async def serve(self, method: str, handler: Handler, **limits: int) -> None:
        async def tapped(sender: PeerId, request: bytes) -> bytes:
            if method == SHARD:
                shard = from_wire(Shard, request, len(request))
                if shard.frame:
                    key = unpack_participants(shard.participants).key
                    self._seen.weights[key, sender], self._seen.frames[key, sender] = shard.weight, shard.frame
            return await handler(sender, request)

        await self._inner.serve(method, tapped, **limits)

    def traffic(self) -> Traffic:
        return self._inner.traffic()

    def by_peer(self) -> Mapping[PeerId, Traffic]:
        return self._inner.by_peer()

    def banned(self) -> tuple[PeerId, ...]:
        return self._inner.banned()

    def is_barred(self, peer: PeerId) -> bool:
        return self._inner.is_barred(peer)

    def bar(self, peer: PeerId) -> None:
        self._inner.bar(peer)

    async def close(self) -> None:
        await self._inner.close()


def simulate(plan: Plan) -> Seen:
    """Play a plan to its end."""
    return run(_play(plan), until_s=2000.0)


async def _play(plan: Plan) -> Seen:
    seen = Seen()
    between = {frozenset[str](pair): latency_s for pair, latency_s in plan.latencies.items()}
    world = World(0, Conditions(between=between), machines=plan.machines)
    world.network.regions.update({peer: peer for pair in plan.latencies for peer in pair})

    async def main(peer: SimPeer) -> None:
        worker = _worker(plan, peer, seen)
        if peer.peer_id == FOUNDER:
            for at_s in plan.looks:
                asyncio.get_running_loop().call_at(at_s, lambda: seen.records.append(_records(worker)))
        stop = asyncio.Event()
        if peer.peer_id in plan.stops:
            asyncio.get_running_loop().call_at(plan.stops[peer.peer_id], stop.set)
        try:
            if peer.peer_id != FOUNDER:
                await worker.join([FOUNDER])
            else:
                await (worker.resume() if FOUNDER in plan.restored else worker.found())
            beside = asyncio.create_task(plan.beside(worker)) if plan.beside else None
            seen.outcomes[peer.peer_id] = await worker.run(stop)
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)
            seen.ended_s[peer.peer_id] = peer.clock.monotonic()
            await worker.keep()
        except Exception as err:
            seen.errors[peer.peer_id] = err

    async def start(peer: PeerId, at_s: float) -> None:
        await asyncio.sleep(at_s)
        world.start(peer, main)

    tape = FaultTape(plan.faults)
    async with asyncio.TaskGroup() as group:
        for peer, at_s in plan.starts.items():
            group.create_task(start(peer, at_s))
        group.create_task(tape.play(world, main))
    await world.ended()
    seen.unfired = tape.unfired()
    pattern = re.compile(r" *([\d.]+)  send (\S+) (\S+) (\S+) \d+")
    found = (pattern.fullmatch(line) for line in world.network.trace.tail(2000).splitlines())
    seen.messages = [(float(m[1]), m[2], m[3], m[4]) for m in found if m]
    return seen


def _worker(plan: Plan, peer: SimPeer, seen: Seen) -> Worker:
    fp32 = make_codec("fp32")
    options = RunOptions(
        run_id="run",
        config=b"{}",
        rounds=plan.rounds,
        plan=SyncPlan(INNER_STEPS),
        rule=RULE,
        codec=fp32,
        mean_codec=fp32,
        timing=plan.timing,
    )
    options = replace(options, **plan.options)
    journal = seen.journals[peer.peer_id] = MemoryJournal()
    make = plan.trainers.get(peer.peer_id, lambda peer: ordinary(peer, plan.step_s.get(peer.peer_id, STEP_S)))
    transport = Tap(peer.transport, seen)
    trainer = make(peer)
    inner = plan.inner(peer, trainer)
    parts = Parts(transport, peer.directory, peer.clock, peer.identity, trainer, inner, journal)

    def save(state: WorkerState) -> None:
        seen.states[peer.peer_id] = state

    parts = replace(parts, restored=plan.restored.get(peer.peer_id), save=save, save_every=Every())
    return Worker(options, parts)


def _records(worker: Worker) -> dict[PeerId, Presence]:
    roster = worker.membership.roster
    found = {peer: roster.get(peer) for peer in PEERS}
    return {peer: presence for peer, presence in found.items() if presence is not None}


def ordinary(peer: SimPeer, step_s: float = STEP_S, *, nan_at_step: int | None = None) -> Trainer:
    """The toy trainer of a machine."""
    number = PEERS.index(peer.peer_id)
    return PROBLEM.trainer(number, peer.clock.charge, step_s=step_s, nan_at_step=nan_at_step)
