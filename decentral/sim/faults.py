"""Faults as data: a schedule that is written down or drawn from a seed, and a tape that plays it and keeps book.

A fault has *fired* when it had an effect: a machine that was alive went down, a partition blocked something, a spell
of loss lost something. A test asserts ``tape.unfired() == ()``; otherwise it would pass on faults that never were.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from decentral.sim.loop import virtual_loop
from decentral.sim.world import Main, World
from decentral.types import PeerId


class Fault(Protocol):
    """Something that happens to a world at ``at_s`` seconds of virtual time."""

    @property
    def at_s(self) -> float:
        """When it begins."""
        ...

    async def strike(self, world: World, main: Main) -> bool:
        """Begin, last, end. Returns whether it had an effect."""
        ...


@dataclass(frozen=True, slots=True)
class Crash:
    """A machine dies, as by ``kill -9``."""

    at_s: float
    peer: PeerId

    async def strike(self, world: World, main: Main) -> bool:
        """See :class:`Fault`."""
        alive = world.is_running(self.peer)
        if alive:
            world.crash(self.peer)
        return alive


@dataclass(frozen=True, slots=True)
class Start:
    """A machine comes (back) to life: a late joiner, or a restart after a crash."""

    at_s: float
    peer: PeerId

    async def strike(self, world: World, main: Main) -> bool:
        """See :class:`Fault`."""
        alive = world.is_running(self.peer)
        if not alive:
            world.start(self.peer, main)
        return not alive


@dataclass(frozen=True, slots=True)
class Pause:
    """A machine stops for a while, as by SIGSTOP and SIGCONT."""

    at_s: float
    peer: PeerId
    for_s: float

    async def strike(self, world: World, main: Main) -> bool:
        """See :class:`Fault`."""
        if not world.is_running(self.peer):
            return False
        paused = world.peers[self.peer]
        world.network.pause(self.peer)
        await asyncio.sleep(self.for_s)
        if not paused.transport.gone:
            world.network.resume(self.peer)
        return True


@dataclass(frozen=True, slots=True)
class Partition:
    """For a while the peers of an island and the others cannot talk to each other."""

    at_s: float
    island: tuple[PeerId, ...]
    for_s: float

    async def strike(self, world: World, main: Main) -> bool:
        """See :class:`Fault`."""
        before = world.network.num_cut
        world.network.partition(self.island)
        await asyncio.sleep(self.for_s)
        world.network.heal()
        return world.network.num_cut > before


@dataclass(frozen=True, slots=True)
class Loss:
    """For a while messages get lost with probability ``rate``."""

    at_s: float
    rate: float
    for_s: float

    async def strike(self, world: World, main: Main) -> bool:
        """See :class:`Fault`."""
        network = world.network
        before, usual = network.num_lost, network.conditions.loss
        network.conditions = replace(network.conditions, loss=self.rate)
        await asyncio.sleep(self.for_s)
        network.conditions = replace(network.conditions, loss=usual)
        return network.num_lost > before


class FaultTape:
    """Plays a schedule of faults on a world.

    Args:
        faults: in any order. Partitions must not overlap each other, nor spells of loss: the end of one would end
            the other.

    Raises:
        ValueError: two of them do.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: fault.at_s))
        self._fired: list[Fault] = []
        for kind in (Partition, Loss):
            spells = [fault for fault in self.faults if isinstance(fault, kind)]
            for first, second in pairwise(spells):
                if second.at_s < first.at_s + first.for_s:
                    raise ValueError(f"{second} begins before the end of {first}")

    async def play(self, world: World, main: Main) -> None:
        """Strike each fault at its time and return after the end of the last one.

        Args:
            world: whom to strike.
            main: what runs on machines that a fault starts.
        """
        async with asyncio.TaskGroup() as group:
            for fault in self.faults:
                group.create_task(self._strike(fault, world, main), name=repr(fault))

    def fired(self) -> tuple[Fault, ...]:
        """Faults that had an effect and are over, in the order of their ends."""
        return tuple(self._fired)

    def unfired(self) -> tuple[Fault, ...]:
        """Faults that have had no effect (yet): a test that means to survive them must find none."""
        return tuple(fault for fault in self.faults if fault not in self._fired)

    def exhausted(self) -> bool:
        """Whether every fault fired."""
        return not self.unfired()

    async def _strike(self, fault: Fault, world: World, main: Main) -> None:
        await asyncio.sleep(max(0.0, fault.at_s - virtual_loop().time()))
        if await fault.strike(world, main):
            self._fired.append(fault)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many faults to draw, and how long they last."""

    begin_s: float
    """No fault before this, ..."""
    end_s: float
    """... and all are over by this."""
    num_crashes: int = 0
    """Crashes, each followed by a restart."""
    num_pauses: int = 0
    num_partitions: int = 0
    loss: float = 0.0
    """Probability of loss from ``begin_s`` to ``end_s``."""


def draw(seed: int, peers: Sequence[PeerId], plan: Plan) -> tuple[Fault, ...]:
    """A schedule drawn from ``seed``: crashes and pauses hit different peers, partitions cut off a minority.

    Raises:
        ValueError: there are fewer peers than crashes and pauses.
    """
    dice = random.Random(f"faults {seed}")
    length_s = plan.end_s - plan.begin_s
    faults: list[Fault] = []
    victims = dice.sample(sorted(peers), plan.num_crashes + plan.num_pauses)
    for number, victim in enumerate(victims):
        at_s = plan.begin_s + length_s * dice.uniform(0.0, 0.5)
        for_s = length_s * dice.uniform(0.1, 0.5)
        if number < plan.num_crashes:
            faults += [Crash(at_s, victim), Start(at_s + for_s, victim)]
        else:
            faults.append(Pause(at_s, victim, for_s))
    for number in range(plan.num_partitions):
        slot_s = length_s / plan.num_partitions
        at_s = plan.begin_s + slot_s * (number + dice.uniform(0.0, 0.25))
        island = dice.sample(sorted(peers), dice.randint(1, max(1, (len(peers) - 1) // 2)))
        faults.append(Partition(at_s, tuple(sorted(island)), slot_s * dice.uniform(0.25, 0.75)))
    if plan.loss:
        faults.append(Loss(plan.begin_s, plan.loss, length_s))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))
