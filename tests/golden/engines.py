"""Production workers on the simulator whose inner steps are given, watched after every one of them."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.engine.options import Parts, RunOptions
from decentral.engine.worker import Worker
from decentral.exchange.allreduce.options import AllReduceOptions
from decentral.monitor.events import Event, RoundMixed
from decentral.monitor.journal import MemoryJournal
from decentral.outer.rule import OuterRule
from decentral.ports.trainer import StepReport
from decentral.schedule.plan import SyncPlan
from decentral.sim.local_steps import LocalSteps
from decentral.sim.loop import run
from decentral.sim.world import SimPeer, World, peer_id

Values = NDArray[np.float64]

#: Local parameters [layers, N] after inner step t of worker i (from 1 and 0), from those before it.
InnerStep = Callable[[int, int, Values], Values]

#: So long that every exchange of the simulated network is over before the next step.
STEP_S = 5.0
#: Of an inner step.
TOKENS = 8


class Watched:
    """A trainer of equal layers that takes the given steps and remembers what became of the parameters."""

    def __init__(self, worker: int, first: Values, step: InnerStep, charge: Callable[[float], None]) -> None:
        self._worker, self._step, self._charge = worker, step, charge
        self._layers = torch.from_numpy(first).float()
        self._taken = 0
        self._before_loads: list[Tensor] = []
        """The parameters before each time that they were loaded, since the last step."""
        self.local: dict[int, Values] = {}
        """After a step and all that was due at it."""
        self.anchors: dict[int, Values] = {}
        """After the last landing at a step."""

    def parameters(self) -> Mapping[str, Tensor]:
        return {f"layers.{number}.weight": values_N for number, values_N in enumerate(self._layers)}

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        self._before_loads.append(self._layers.clone())
        for name, values_N in parameters.items():
            self._layers[int(name.split(".")[1])] = values_N

    def train_steps(self, first_step: int, count: int) -> StepReport:
        assert first_step == self._taken
        for _ in range(count):
            self.watch()
            self._taken += 1
            self._before_loads.clear()
            stepped = self._step(self._taken, self._worker, self._layers.double().numpy())
            self._layers = torch.from_numpy(stepped).float()
        self._charge(STEP_S * count)
        return StepReport(tokens=TOKENS * count, loss=1.0, grad_norm=1.0)

    def validate(self) -> float:
        return 1.0

    def watch(self) -> None:
        """The parameters will not change any more before the next step."""
        if self._taken:
            self.local[self._taken] = self._layers.double().numpy()

    def watch_the_end(self, num_fragments: int) -> None:
        """The run has ended by loading the anchors, fragment by fragment: what were the parameters before that?"""
        self._layers = self._before_loads[-num_fragments]
        self.watch()

    def landed(self, anchors: Mapping[str, Tensor]) -> None:
        self.anchors[self._taken] = np.stack([anchors[name].double().numpy() for name in self.parameters()])


class Landings(MemoryJournal):
    """A journal that has a trainer told of the anchors at every landing."""

    def __init__(self, landed: Callable[[], None]) -> None:
        super().__init__()
        self._landed = landed

    def record(self, event: Event) -> None:
        super().record(event)
        if isinstance(event, RoundMixed):
            self._landed()


@dataclass
class Engines:
    """A swarm of a founder and joiners that begin together."""

    num_workers: int
    rounds: int
    plan: SyncPlan
    rule: OuterRule
    first: Values
    """Initial parameters [layers, N]."""
    step: InnerStep
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of ``RunOptions``, beside the above."""

    def play(self) -> list[Watched]:
        """The whole run; what became of each worker."""
        return run(self._play(), until_s=1e5)

    async def _play(self) -> list[Watched]:
        world, peers, trainers = World(0), [peer_id(number) for number in range(self.num_workers)], []

        async def main(peer: SimPeer) -> None:
            trainer = Watched(peers.index(peer.peer_id), self.first, self.step, peer.clock.charge)
            trainers.append(trainer)
            worker = self._worker(peer, trainer)
            await (worker.found() if peer.peer_id == peers[0] else worker.join(peers[:1]))
            outcome = await worker.run(asyncio.Event())
            assert outcome.done
            trainer.watch_the_end(self.plan.num_fragments)

        for peer in peers:
            world.start(peer, main)
            await asyncio.sleep(0.1)
        await world.ended()
        return trainers

    def _worker(self, peer: SimPeer, trainer: Watched) -> Worker:
        fp32 = make_codec("fp32")
        options = RunOptions(
            "golden",
            b"{}",
            self.rounds,
            self.plan,
            self.rule,
            fp32,
            fp32,
            min_workers=self.num_workers,
            mixing=AllReduceOptions(bound=0.0),  # the references have none, and drawn problems are of unequal workers
        )
        parts = Parts(
            peer.transport,
            peer.directory,
            peer.clock,
            peer.identity,
            trainer,
            LocalSteps(trainer, peer.clock),
            journal=Landings(lambda: trainer.landed(worker.anchors())),
        )
        worker = Worker(replace(options, **self.options), parts)
        return worker
