"""Plays a script of faults on a simulated world and keeps book.

A fault has *fired* when it had an effect: a machine that was alive went down, a cut blocked something, a spell of loss
lost something. A test asserts ``tape.unfired() == ()``; otherwise it would pass on faults that never were.
"""

import asyncio
import errno
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from decentral.sim.faults import DAMAGE, ISLANDS, WEATHER, Fault, Kind, script
from decentral.sim.loop import virtual_loop
from decentral.sim.network import Line
from decentral.sim.world import Main, World, peer_id

_ERRORS = {Kind.DISK_FULL: errno.ENOSPC, Kind.READ_ONLY: errno.EROFS}


class FaultTape:
    """Plays faults on a world. Everything that a script can say can be done here.

    Args:
        faults: in any order; machine ``n`` is ``peer_id(n)``.

    Raises:
        ValueError: see ``faults.script``.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = script(faults)
        self._fired: list[Fault] = []

    async def play(self, world: World, main: Main) -> None:
        """Strike each fault at its time and return after the end of the last one.

        Args:
            world: whom to strike.
            main: what runs on machines that a fault starts; it finds on its disk what there is.
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
        if fault.kind in WEATHER:
            effect = await _weather(fault, world)
        elif fault.kind in ISLANDS:
            effect = await _cut_off(fault, world)
        elif fault.for_s:
            effect = any(await asyncio.gather(*(_spell(fault, number, world) for number in fault.machines)))
        else:
            struck = [_moment(fault, number, world, main) for number in fault.machines]
            effect = any(struck)
        if effect:
            self._fired.append(fault)


def _moment(fault: Fault, number: int, world: World, main: Main) -> bool:
    """Strike one machine; whether it had an effect."""
    peer = peer_id(number)
    alive = world.is_running(peer)
    if fault.kind is Kind.KILL and alive:
        world.crash(peer)
    elif fault.kind in (Kind.START, Kind.START_EMPTY) and not alive:
        if fault.kind is Kind.START_EMPTY:
            world.disk(peer).wipe()
        world.start(peer, main)
        return True
    elif fault.kind is Kind.CLOCK and alive:
        world.peers[peer].clock.skew_s += fault.amount
    elif fault.kind in DAMAGE:
        return world.disk(peer).damage()
    return alive and fault.kind not in (Kind.START, Kind.START_EMPTY)


async def _spell(fault: Fault, number: int, world: World) -> bool:
    """Strike one machine, last, end; whether it had an effect."""
    peer, network = peer_id(number), world.network
    if fault.kind is Kind.PAUSE:
        return await _pause(fault, number, world)
    if fault.kind in _ERRORS:
        disk = world.disk(peer)
        refused = disk.num_refused
        disk.errors.append(_ERRORS[fault.kind])
        await asyncio.sleep(fault.for_s)
        disk.errors.remove(_ERRORS[fault.kind])
        return disk.num_refused > refused
    before = network.felt[fault.kind]
    if fault.kind is Kind.HALF_OPEN:
        network.silent.add(peer)
        await asyncio.sleep(fault.for_s)
        network.silent.remove(peer)
    else:
        down = fault.amount if fault.kind is Kind.SLOW else math.inf
        limit = fault.kind, Line(fault.amount, down)
        network.limits[peer].append(limit)
        await asyncio.sleep(fault.for_s)
        network.limits[peer].remove(limit)
    return network.felt[fault.kind] > before


async def _pause(fault: Fault, number: int, world: World) -> bool:
    """As by SIGSTOP and SIGCONT."""
    peer = peer_id(number)
    if not world.is_running(peer):
        return False
    paused = world.peers[peer]
    world.network.pause(peer)
    await asyncio.sleep(fault.for_s)
    if not paused.transport.gone:
        world.network.resume(peer)
    return True


async def _cut_off(fault: Fault, world: World) -> bool:
    """Cut an island off, in both directions or one of them."""
    before = world.network.felt[fault.kind]
    cut = world.network.partition(map(peer_id, fault.machines), fault.kind)
    await asyncio.sleep(fault.for_s)
    world.network.heal(cut)
    return world.network.felt[fault.kind] > before


async def _weather(fault: Fault, world: World) -> bool:
    """Messages get lost, or arrive twice, or late."""
    network, field = world.network, fault.kind.value
    before, usual = network.felt[fault.kind], getattr(network.conditions, field)
    changes: dict[str, Any] = {field: fault.amount}
    network.conditions = replace(network.conditions, **changes)
    await asyncio.sleep(fault.for_s)
    network.conditions = replace(network.conditions, **{field: usual})
    return network.felt[fault.kind] > before
