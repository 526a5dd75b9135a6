"""Checkpoints of a run's stages on the disks of all who are there: read here, or fetched from whoever has one.

What is asked for is cut to what is wanted before it travels. Which checkpoints make a stage is not decided here.
"""

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from decentral.engine.recut import blocks_of
from decentral.errors import CallTimeout, ConfigError, FrameError, TransportError
from decentral.pipeline.parcels import Parcels
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.scoped import Scoped
from decentral.pipeline.stored import Part, Span, Stored
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.state.worker_state import WorkerState, Written
from decentral.swarm.message import Message, from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.types import Count, PeerId, short_id

_SCOPE: Final = "disk"
#: Who has a checkpoint reads it first, which may last longer than a call: it is asked so often.
_TRIES: Final = 8
_PAUSE_S: Final = 1.0


class _Wanted(Message, frozen=True):
    what: ClassVar[str] = "question for a checkpoint"
    of: Stored
    first: Count
    stop: Count
    """Of its blocks only [first, stop) are wanted; none of a head's."""


class Store(Protocol):
    """What this worker has on disk of the run's stages. Read and written on any thread."""

    def stored(self) -> Sequence[Stored]:
        """Checkpoints, of each stage the newest first; those that turned out to be damaged are not among them."""
        ...

    def verify(self) -> None:
        """Read all of them and leave out those that are damaged. Must not raise."""
        ...

    def load(self, one: Stored) -> WorkerState:
        """One of them.

        Raises:
            OSError: it is damaged, or there is none.
            ConfigError: another release wrote it.
        """
        ...

    def save(self, stage: int, state: WorkerState, *, own: bool = True) -> Written | None:
        """Write a checkpoint of a stage, the own one's or one that is kept for its holder. Must not raise.

        Returns:
            ``None`` if it could not be written.
        """
        ...


class Disks:
    """One member's part.

    Args:
        transport: to the others.
        store: what this member has.
        cut: of the run.
        timing: bounds of calls.
        clock: for its threads.
    """

    def __init__(self, transport: Transport, store: Store, cut: CutInForce, timing: Timing, clock: Clock) -> None:
        self._me = transport.peer_id
        self._store = store
        self._cut = cut
        self._clock = clock
        self._parcels = Parcels(Scoped(transport, _SCOPE), clock, timing, self._give)

    async def start(self) -> None:
        """Begin to answer."""
        await self._parcels.start()

    def look(self) -> None:
        """Now and then: forget what nobody asks for any more."""
        self._parcels.look()

    async def state(self, part: Part, wanted: Span, max_bytes: int) -> WorkerState | str:
        """Of a checkpoint at least what it has of the wanted blocks; in words why it cannot be had.

        From the own disk if it is there, else from the first that gives it, if it has no more than so many bytes.
        """
        problems: list[str] = []
        for peer in sorted(part.peers, key=lambda peer: peer != self._me):
            try:
                if peer == self._me:
                    return await self._clock.run_on_disk(lambda: self._store.load(part.stored))
                return await self._fetch(peer, part.stored, wanted, max_bytes)
            except (OSError, ConfigError, TransportError, FrameError) as err:
                problems.append(str(err))
        return f"the checkpoint at step {part.stored.step} cannot be had: {'; '.join(problems)}"

    async def _fetch(self, peer: PeerId, stored: Stored, wanted: Span, max_bytes: int) -> WorkerState:
        question = to_wire(_Wanted(stored, max(wanted[0], stored.first), min(wanted[1], stored.stop)))
        for _ in range(_TRIES):
            try:
                state = await self._parcels.fetch(peer, question, max_bytes)
            except CallTimeout as err:
                problem: TransportError = err
                await asyncio.sleep(_PAUSE_S)
                continue
            if state is None:
                raise FrameError(f"{short_id(peer)} has it no more")
            return state
        raise problem

    async def _give(self, key: bytes) -> WorkerState | None:
        """What another member wants of a checkpoint here; ``None`` if there is no such one."""
        wanted = from_wire(_Wanted, key)
        if wanted.of not in self._store.stored():
            return None
        try:
            state = await self._clock.run_on_disk(lambda: self._store.load(wanted.of))
        except (OSError, ConfigError):
            return None
        return await self._clock.run_aside(lambda: blocks_of(state, self._cut, wanted.first, wanted.stop))
