"""A simulated swarm: machines on one network, started, crashed, paused and cut off from each other.

It knows no engine. What runs on a machine is a coroutine of the caller's, given that machine's ports; it ends like
a process does: when it returns or crashes, its place in the network is gone.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from decentral.sim.clock import SimClock
from decentral.sim.directory import MemoryDirectory, SharedDirectory
from decentral.sim.disk import Disk
from decentral.sim.identity import SimIdentity
from decentral.sim.loop import virtual_loop
from decentral.sim.network import Conditions, Line, Network
from decentral.sim.transport import MemoryTransport
from decentral.types import PeerId


@dataclass(frozen=True, slots=True)
class SimPeer:
    """One machine: an implementation of each port, and a disk."""

    peer_id: PeerId
    transport: MemoryTransport
    directory: MemoryDirectory
    clock: SimClock
    identity: SimIdentity
    disk: Disk[Any]
    """As earlier machines of this id left it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is particular about a machine, also after a restart."""

    line: Line = field(default_factory=Line)
    skew_s: float = 0.0
    """By how much its wall clock is wrong."""
    aside_s: float = 0.0
    """What each piece of work aside takes (see ``SimClock``)."""
    region: str = ""
    """Where it is (see ``Conditions.between``)."""


#: What runs on a machine from its start to its end.
Main = Callable[[SimPeer], Coroutine[Any, Any, None]]


def peer_id(number: int) -> PeerId:
    """The id of machine ``number``: ``sim-0007``."""
    return PeerId(f"sim-{number:04d}")


class World:
    """Machines and what connects them. Make it inside ``sim.loop.run``.

    Args:
        seed: of everything random, the generators of this process too; the same seed gives the same run.
        conditions: of the network.
        machines: those that are not ordinary.
        stale_s: how late others see what is published in the directory.
    """

    def __init__(
        self,
        seed: int,
        conditions: Conditions | None = None,
        *,
        machines: Mapping[PeerId, Machine] | None = None,
        stale_s: float = 0.0,
    ) -> None:
        self.seed = seed
        # A worker's state has that of these generators, so a message with it would have another length in every run.
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.network = Network(seed, conditions)
        self.directory = SharedDirectory(self.network, stale_s=stale_s)
        self.peers: dict[PeerId, SimPeer] = {}
        """The latest machine of each id, alive or not."""
        self.failures: list[Exception] = []
        """What mains raised, in order."""
        self._machines = machines or {}
        self._disks: dict[PeerId, Disk[Any]] = {}
        self._running: dict[PeerId, asyncio.Task[None]] = {}
        self._over = asyncio.Event()
        self._over.set()

    def add(self, peer_id: PeerId) -> SimPeer:
        """A machine on which nothing runs yet.

        Args:
            peer_id: new, or that of a machine that crashed or ended.

        Raises:
            ValueError: that machine is alive.
        """
        machine = self._machines.get(peer_id, Machine())
        if machine.region:
            self.network.regions[peer_id] = machine.region
        transport = MemoryTransport(self.network, peer_id, machine.line)
        directory = self.directory.seen_by(transport)
        peer = SimPeer(
            peer_id,
            transport,
            directory,
            SimClock(skew_s=machine.skew_s, aside_s=machine.aside_s),
            SimIdentity(peer_id),
            self.disk(peer_id),
        )
        self.peers[peer_id] = peer
        return peer

    def start(self, peer_id: PeerId, main: Main) -> SimPeer:
        """Add a machine and run ``main`` on it; pausing or crashing the machine stops the task and all it started."""
        peer = self.add(peer_id)
        task = virtual_loop().create_task(main(peer), name=peer_id, context=peer.transport.context)
        self._running[peer_id] = task
        self._over.clear()
        task.add_done_callback(lambda task: self._ended(peer, task))
        return peer

    def disk(self, peer_id: PeerId) -> Disk[Any]:
        """The disk of a machine, whether it runs or not."""
        return self._disks.setdefault(peer_id, Disk())

    def is_running(self, peer_id: PeerId) -> bool:
        """Whether the machine's main has neither ended nor crashed; true for a paused one."""
        return peer_id in self._running

    def crash(self, peer_id: PeerId) -> None:
        """End a machine abruptly. Its tasks stop where they are; their clean-up runs after the simulation."""
        self.network.crash(peer_id)
        self._forget(peer_id)

    async def ended(self) -> None:
        """Wait until no main runs any more or one has failed; crashed ones are not waited for.

        Raises:
            ExceptionGroup: a main raised.
        """
        await self._over.wait()
        if self.failures:
            raise ExceptionGroup(f"failed in the simulation of seed {self.seed}", self.failures)

    def _ended(self, peer: SimPeer, task: asyncio.Task[None]) -> None:
        """A main has returned or raised, as a process exits: its connections break."""
        if peer.transport.gone and self._running.get(peer.peer_id) is not task:
            return  # cancelled after a crash
        self.network.leave(peer.transport)
        self._forget(peer.peer_id)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self.failures.append(error)
            self._over.set()

    def _forget(self, peer_id: PeerId) -> None:
        self._running.pop(peer_id, None)
        if not self._running:
            self._over.set()
