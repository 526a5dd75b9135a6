"""Checkpoints of a run's stages on the disks of all who are there: read here, or fetched from whoever has one.

What is asked for is cut to what is wanted before it travels. Which checkpoints make a stage is not decided here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Protocol

from torch import Tensor

from decentral.engine.recut import blocks_of
from decentral.errors import CallTimeout, ConfigError, FrameError, TransportError
from decentral.pipeline.parcels import Parcels, most_bytes
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

    def newest(self, span: Span) -> tuple[int, Mapping[str, Tensor]] | None:
        """Step and weights of the newest whole one of just these blocks; ``None`` if there is none. Must not raise."""
        ...

    def save(self, stage: int, state: WorkerState) -> Written | None:
        """Write a checkpoint of a stage; ``None`` if it could not be written. Must not raise."""
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

    def let_go(self) -> None:
        """What others have asked for so far they will not ask for again."""
        self._parcels.let_go()

    async def state(self, part: Part, parameters: Mapping[str, Tensor]) -> WorkerState | str:
        """Of a checkpoint at least what it has of these parameters; in words why it cannot be had.

        From the own disk if it is there, else from the first that gives it.
        """
        problems: list[str] = []
        for peer in sorted(part.peers, key=lambda peer: peer != self._me):
            try:
                if peer == self._me:
                    return await self._clock.run_on_disk(lambda: self._store.load(part.stored))
                return await self._fetch(peer, part.stored, parameters)
            except (OSError, ConfigError, TransportError, FrameError) as err:
                problems.append(str(err))
        return f"the checkpoint at step {part.stored.step} cannot be had: {'; '.join(problems)}"

    async def _fetch(self, peer: PeerId, stored: Stored, parameters: Mapping[str, Tensor]) -> WorkerState:
        first, stop = self._cut.span_of(parameters)
        wanted = _Wanted(stored, max(first, stored.first), min(stop, stored.stop))
        max_bytes = most_bytes(parameters)
        for _ in range(_TRIES):
            try:
                state = await self._parcels.fetch(peer, to_wire(wanted), max_bytes)
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
