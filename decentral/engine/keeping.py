"""Checkpoints of others' stages on this worker's disk, in case that their holders are lost together with their disks.

A spare keeps those of all stages while it waits, a holder those of the stages that come after its own if it protects
others. Which these are is not decided here. Who has something to take stops it: the one it waits for may be lost.
"""

import asyncio
import functools
import logging
import math
from collections.abc import Callable, Collection

from msgspec.structs import replace

from decentral.engine.agreement import Agreement
from decentral.engine.disks import Disks, Store
from decentral.pipeline.holders import Holders
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import Part, Stored
from decentral.ports.clock import Clock
from decentral.schedule.every import Every
from decentral.state.worker_state import WorkerState

_log = logging.getLogger(__name__)
#: Between two questions whether holders have saved something newer, at most.
_LOOK_S = 5.0
#: Of the time, so much at most goes into fetching.
_SHARE = 0.1


class Keeping:
    """Keeps what the holders of some stages have saved: all of it, at steps that are common to all stages.

    Args:
        every: how often they are saved, if at all.
        max_bytes: a larger state is not kept.
        cut: the stages there are.
        clock: for the time and the thread.
        holders: who holds what.
        agreement: knows what they have saved.
        disks: fetches it.
        store: the own disk.
        saved: called when all has been kept that could be had.
    """

    def __init__(
        self,
        every: Every,
        max_bytes: int,
        cut: CutInForce,
        clock: Clock,
        holders: Holders,
        agreement: Agreement,
        disks: Disks,
        store: Store,
        saved: Callable[[], None],
    ) -> None:
        self._is_wanted = every.steps > 0 or math.isfinite(every.seconds)
        self._look_s = min(every.seconds, _LOOK_S)
        self._max_bytes = max_bytes
        self._cut = cut
        self._clock = clock
        self._holders = holders
        self._agreement = agreement
        self._disks = disks
        self._store = store
        self._saved = saved
        self._looked_at = clock.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._told: set[int] = set()
        """Stages that could not be kept, which was said."""

    def look(self, stages: Collection[int]) -> None:
        """Begin if it is time and there is something to keep."""
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = None
        now = self._clock.monotonic()
        if self._is_wanted and stages and self._task is None and now - self._looked_at >= self._look_s:
            self._looked_at = now
            self._task = asyncio.create_task(self._keep(sorted(stages)))

    async def stop(self) -> None:
        """Leave it where it stands."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep(self, stages: Collection[int]) -> None:
        number = self._cut.number
        found = {stage: await self._agreement.saved(self._cut.span(stage), self._holders.of(stage)) for stage in stages}
        found = {stage: parts for stage, parts in found.items() if parts}
        steps = [{part.stored.step for part in parts} for parts in found.values()]
        step, began = max(set.intersection(*steps), default=None) if steps else None, self._clock.monotonic()
        for stage, parts in found.items():
            part = max((p for p in parts if step in (None, p.stored.step)), key=lambda p: p.stored)
            if self._cut.number != number:  # these are other blocks by now
                return
            if not self._has(part):
                await self._fetch(stage, part)
        self._saved()
        await asyncio.sleep((self._clock.monotonic() - began) * (1 / _SHARE - 1))

    async def _fetch(self, stage: int, part: Part) -> None:
        state = await self._disks.state(part, part.stored.span, self._max_bytes)
        if isinstance(state, WorkerState) and self._is_it(state, part):
            await self._clock.run_on_disk(functools.partial(self._store.save, stage, state, own=False))
        elif stage not in self._told:
            self._told.add(stage)
            why = state if isinstance(state, str) else "what came is another state"
            _log.warning("stage %d is not kept here for its holder: %s", stage, why)

    def _has(self, part: Part) -> bool:
        return any(replace(one, own=True) == part.stored for one in self._store.stored())

    def _is_it(self, state: WorkerState, part: Part) -> bool:
        return Stored(*self._cut.span_of(state.anchors), state.step, state.digest, True) == part.stored
