"""Workers whose swarm was stopped come back at any time and in any order: who is there, before one goes on alone.

Each serves the state that it has from disk, dials those whom it knew, and waits a while for them. Either it meets a
swarm that runs, and joins it; or only others that come back like itself, with whom it agrees on the newest state; or
nobody, and goes on with its own. Whoever is missed here is met later, and the next round decides.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from decentral.engine.background import Background
from decentral.engine.membership import Membership
from decentral.ports.clock import Clock
from decentral.swarm.presence import ACTIVE, State
from decentral.types import PeerId

#: Machines that were switched on together are up within this time, as a rule.
_WAIT_S = 30.0
#: Between two attempts to reach one of whom nothing is heard, as long as the run goes on.
_SEEK_S = 30.0
#: States of those who are in a swarm that runs, or has just finished.
_RUNNING = ACTIVE | {State.STALLED, State.CATCHING_UP, State.REPAIRING, State.DONE}


@dataclass(frozen=True, slots=True)
class Known:
    """Those whom a worker knew before it was stopped."""

    peers: Callable[[], Sequence[PeerId]]
    """As far as they are known by now; those heard of last first."""
    dial: Callable[[PeerId], Awaitable[bool]]
    """Makes a peer one that can be called; whether it is there and of this run."""


@dataclass(frozen=True, slots=True)
class Found:
    """Who is there."""

    members: list[PeerId]
    """Of a swarm that runs, those furthest in the run first."""
    returning: list[PeerId]
    """Others that come back with a state of their own."""


class Reunion:
    """See the module.

    Args:
        known: whom to look for.
        membership: runs beside; its own record says that this worker comes back, and how far it was.
        clock: for the wait.
        beat_s: between two attempts to reach somebody.
        explain: told what is waited for; of an empty text that there is nothing any more.
    """

    def __init__(
        self, known: Known, membership: Membership, clock: Clock, beat_s: float, explain: Callable[[str], None]
    ) -> None:
        self._known = known
        self._membership = membership
        self._clock = clock
        self._beat_s = beat_s
        self._explain = explain

    async def found(self) -> Found:
        """Wait until all whom this worker knew are there, or a swarm runs, or a while has passed."""
        until = self._clock.monotonic() + _WAIT_S
        async with Background() as beside:
            for peer in self._known.peers():
                beside.begin(self._seek(peer))
            while True:
                others = self._membership.live_others()
                running = [each for each in others if each.state in _RUNNING]
                returning = [each for each in others if each.state is State.JOINING and each.digest]
                # One that is behind this worker's own state came back alone with less: it is the one to repair.
                ahead = [each for each in running if each.round >= self._membership.own.round]
                missing = set(self._known.peers()) - {each.peer for each in (*running, *returning)}
                if ahead or not missing or self._clock.monotonic() >= until:
                    self._explain("")
                    ahead.sort(key=lambda presence: -presence.round)
                    return Found([each.peer for each in ahead], [each.peer for each in returning])
                self._explain(f"comes back, and waits for {len(missing)} more of those it knew")
                await asyncio.sleep(self._beat_s / 4)

    async def _seek(self, peer: PeerId) -> None:
        """Try to reach a peer until it is heard of."""
        while not self._membership.roster.is_live(peer, self._clock.monotonic()):
            if await self._known.dial(peer):
                await self._membership.tell(peer)
            await asyncio.sleep(self._beat_s)


async def seek_absent(known: Known, membership: Membership, clock: Clock, found: Callable[[PeerId], None]) -> None:
    """For ever: try to reach one after the other of those of whom nothing is heard, so that parts of a swarm meet.

    What comes of a meeting is not decided here: they tell each other who they are, and the next round does the rest.
    """
    turn = itertools.count()
    while True:
        await asyncio.sleep(_SEEK_S)
        live = {presence.peer for presence in membership.roster.live(clock.monotonic())}
        absent = [peer for peer in known.peers() if peer not in live]
        if absent and await known.dial(peer := absent[next(turn) % len(absent)]):
            found(peer)
            await membership.tell(peer)
