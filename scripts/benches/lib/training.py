"""Real training on a simulated network: production workers with the configuration's own task.

Only the network and its time are simulated, so that a run depends on nothing but its settings. Knows nothing of what a
bench looks for.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from msgspec.structs import asdict
from torch import Tensor

from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load
from decentral.engine.options import Outcome, Parts
from decentral.engine.worker import Worker
from decentral.monitor.events import Event, RoundMixed
from decentral.monitor.journal import event_name
from decentral.ports.trainer import StepReport, Trainer
from decentral.run.options import run_options
from decentral.run.tasks import build_trainer
from decentral.sim.local_steps import LocalSteps
from decentral.sim.loop import run, virtual_loop
from decentral.sim.network import Conditions
from decentral.sim.scenario import Meddle, all_honest
from decentral.sim.trainer import Charged
from decentral.sim.world import SimPeer, World, peer_id
from decentral.types import PeerId

#: Told a worker's number and its parameters after every outer step.
Watch = Callable[[int, Mapping[str, Tensor]], None]
#: Makes the trainer with this stream of data.
Make = Callable[[SwarmConfig, int], Trainer]
#: What happens to a swarm, each at its virtual time, ascending.
Changes = Iterable[tuple[float, Callable[[], None]]]


STEP_S = 0.1
#: Between the starts of two workers; all wait for the last one before their first step.
START_S = 0.5


class Timed(Charged):
    """A trainer whose steps take virtual time, and that says when it is given other parameters.

    Args:
        inner: the real one.
        charge: told the virtual seconds of every stretch.
        loaded: told the parameters that a stretch was followed by.
        step_s: virtual seconds of an inner step.
    """

    def __init__(
        self,
        inner: Trainer,
        charge: Callable[[float], None],
        loaded: Callable[[Mapping[str, Tensor]], None],
        step_s: float,
    ) -> None:
        super().__init__(inner, charge, step_s)
        self._loaded = loaded
        self.tokens = 0
        """Trained on so far."""

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take the steps and charge their time."""
        report = super().train_steps(first_step, count)
        self.tokens += report.tokens
        return report

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named parameters; what is loaded before the first step is no outer step's."""
        super().load(parameters)
        if self.tokens:
            self._loaded(parameters)


@dataclass
class Member:
    """One worker from its start to its end."""

    trainer: Timed
    events: list[tuple[float, Event]] = field(default_factory=list)
    """With the virtual time at which they were recorded."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome | None = None

    def record(self, event: Event) -> None:
        """Keep an event; see ``Journal``."""
        self.events.append((virtual_loop().time(), event))

    def mixed(self) -> list[RoundMixed]:
        """Its rounds."""
        return [event for _, event in self.events if isinstance(event, RoundMixed)]

    def sent_a_round(self) -> float:
        """Bytes, on average over the rounds but the first."""
        mixed = self.mixed()
        return (mixed[-1].sent_bytes - mixed[0].sent_bytes) / max(1, mixed[-1].round - mixed[0].round)


def made_by_task(swarm: SwarmConfig, stream: int) -> Trainer:
    """The configuration's own."""
    return build_trainer(swarm, WorkerConfig(), stream)


def unwatched(worker: int, parameters: Mapping[str, Tensor]) -> None:
    """Nobody is told."""


def drawn_ids(seed: int) -> Callable[[int], PeerId]:
    """Ids that differ from seed to seed, so that what is drawn by them differs too: pairs, and who reduces what."""

    def drawn(number: int) -> PeerId:
        return PeerId(f"sim-{hashlib.blake2b(f'{seed} {number}'.encode(), digest_size=4).hexdigest()}")

    return drawn


class Play:
    """A swarm from its start to its end, on one thread.

    Args:
        swarm: its configuration, with nothing left open.
        step_s: virtual seconds of an inner step.
        watch: see ``Watch``.
        make: see ``Make``.
        meddle: see ``Meddle``.
        ids: of the workers, by number.
        conditions: of the network.
    """

    def __init__(
        self,
        swarm: SwarmConfig,
        step_s: float = STEP_S,
        watch: Watch = unwatched,
        make: Make = made_by_task,
        meddle: Meddle = all_honest,
        ids: Callable[[int], PeerId] = peer_id,
        conditions: Conditions | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self.swarm = swarm
        self.seed = swarm.run.seed
        self.members: dict[PeerId, Member] = {}
        """All who ever lived."""
        self.probe = make(swarm, 0)
        """A trainer that takes no part, to validate with."""
        self.seconds = 0.0
        """That it took."""
        self._step_s = step_s
        self._watch = watch
        self._make = make
        self._meddle = meddle
        self._ids = ids
        self._conditions = conditions
        self._options = run_options(swarm, f"bench-{self.seed}", self.probe.parameters())

    def run(self, then: Callable[[], Changes] = tuple) -> None:
        """Start as many workers as the run waits for, one after the other, and play until all have ended.

        Args:
            then: asked what is to happen when all are started.
        """
        began = time.perf_counter()
        run(self._play(then), until_s=1e7)
        self.seconds = time.perf_counter() - began

    async def _play(self, then: Callable[[], Changes]) -> None:
        self._world = World(self.seed, self._conditions)
        for number in range(self.swarm.run.min_workers):
            self.start(number)
            await asyncio.sleep(START_S)
        for at_s, change in then():
            await asyncio.sleep(max(0.0, at_s - virtual_loop().time()))
            change()
        await self._world.ended()

    def start(self, number: int) -> None:
        """One more worker, which joins those that are there."""
        self._world.start(self._ids(number), lambda peer: self._main(number, peer))

    def leave(self, number: int) -> None:
        """Have a worker leave in order."""
        self.members[self._ids(number)].stop.set()

    def crash(self, number: int) -> None:
        """End a worker at once."""
        self._world.crash(self._ids(number))

    async def _main(self, number: int, peer: SimPeer) -> None:
        alive = [other for other in self.members if self._world.is_running(other)]
        inner = self._make(self.swarm, 1000 * (self.seed + 1) + number)
        trainer = Timed(inner, peer.clock.charge, lambda parameters: self._watch(number, parameters), self._step_s)
        member = self.members[peer.peer_id] = Member(trainer)
        ports = (peer.transport, peer.directory, peer.clock, peer.identity)
        parts = Parts(*ports, trainer, LocalSteps(trainer, peer.clock), member)
        worker = Worker(self._options, parts)
        self._meddle(number, worker, peer)
        await (worker.join(alive[-2:]) if alive else worker.found())
        member.outcome = await worker.run(member.stop)

    @property
    def outcomes(self) -> dict[PeerId, Outcome]:
        """Of those who took part to the last round."""
        return {peer: m.outcome for peer, m in self.members.items() if m.outcome is not None and m.outcome.done}

    @property
    def journals(self) -> dict[str, list[dict[str, Any]]]:
        """The events of all who ever lived, by peer, with names and fields as a journal has them."""
        return {
            peer: [{"event": event_name(event), **asdict(event)} for _, event in member.events]
            for peer, member in self.members.items()
        }

    @property
    def tokens(self) -> int:
        """That the swarm trained on, those included whose work was lost."""
        return sum(member.trainer.tokens for member in self.members.values())

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Validation loss of weights, nats per token."""
        self.probe.load(weights)
        return self.probe.validate()


def configured(settings: Sequence[str], *, seed: int, workers: int) -> SwarmConfig:
    """The configuration of a run whose validation is the bench's.

    Args:
        settings: ``key=value`` of the configuration.
        seed: of weights and data.
        workers: all there from the first step.
    """
    stated = [*settings, f"run.seed={seed}", f"run.min_workers={workers}", "eval_every_rounds=1000000"]
    return resolve(load(None, stated).swarm)


def with_rounds(swarm: SwarmConfig, rounds: int) -> SwarmConfig:
    """The same for a run of so many rounds."""
    return swarm.model_copy(update={"run": swarm.run.model_copy(update={"rounds": rounds})})
