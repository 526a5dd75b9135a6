"""What a spare does while it waits: it keeps the stages on its disk, in case neighbours are lost together.

It knows nobody's place; who has something to take stops it, as whom it waits for may be the one that is lost.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable

from decentral.engine.options import Outcome
from decentral.engine.takeover import Store, Takeover
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.handover import values_of
from decentral.pipeline.holders import Holders
from decentral.pipeline.options import PipelineOptions
from decentral.ports.clock import Clock
from decentral.state.download import Download
from decentral.tensors.layout import Layout


class SpareDisk:
    """Saves all stages as they are now, again and again.

    Args:
        options: of the pipeline.
        clock: for the time and the thread.
        holders: who holds what.
        takeover: fetches weights.
        store: the disk.
        build: a stage whose weights are to be filled; ``None`` if this worker cannot have it.
        saved: called when all has been saved that could be had.
    """

    def __init__(
        self,
        options: PipelineOptions,
        clock: Clock,
        holders: Holders,
        takeover: Takeover,
        store: Store,
        build: Callable[[int], Awaitable[HeadCompute | StageCompute | None]],
        saved: Callable[[], None],
    ) -> None:
        self._options = options
        self._clock = clock
        self._holders = holders
        self._takeover = takeover
        self._store = store
        self._build = build
        self._saved = saved
        self._saved_at = clock.monotonic()
        self._saving: asyncio.Task[None] | None = None

    def look(self, *, idle: bool) -> None:
        """Begin if it is time and the worker is ``idle``."""
        if self._saving is not None and self._saving.done():
            self._saving.result()
            self._saving = None
        now, every_s = self._clock.monotonic(), self._options.checkpoint_s
        if every_s and idle and self._saving is None and now - self._saved_at >= every_s:
            self._saved_at = now
            self._saving = asyncio.create_task(self._save())

    async def stop(self) -> None:
        """Leave it where it stands."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
            self._saving = None

    async def _save(self) -> None:
        for stage in range(self._options.num_stages + 1):
            if not self._holders.of(stage):
                continue
            compute = await self._build(stage)
            if compute is None:
                continue
            download = await self._takeover.live(stage, compute)
            if isinstance(download, Download):
                weights = Layout.of(compute.parameters()).scatter(values_of(download), 0)
                step = max((p.metrics.step for p in self._holders.present()), default=0)
                outcome = Outcome(False, step // self._options.inner_steps, 0, download.snapshot.name, weights)
                await self._clock.run(functools.partial(self._store.save, stage, outcome))
        self._saved()
