"""What a spare does while it waits: it keeps the stages on its disk, in case neighbours are lost together.

It knows nobody's place; who has something to take stops it, as whom it waits for may be the one that is lost.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable

from decentral.engine.disks import Store
from decentral.engine.options import Every
from decentral.engine.takeover import Takeover
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.handover import values_of
from decentral.pipeline.holders import Holders
from decentral.pipeline.options import PipelineOptions
from decentral.pipeline.placement import CutInForce
from decentral.ports.clock import Clock
from decentral.state.download.downloader import Download
from decentral.state.worker_state import WorkerState
from decentral.tensors.layout import Layout


class SpareDisk:
    """Keeps what the holders of all stages have saved: their weights, at steps that are common to all stages.

    Args:
        options: of the pipeline.
        cut: the stages there are.
        every: how often.
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
        cut: CutInForce,
        every: Every,
        clock: Clock,
        holders: Holders,
        takeover: Takeover,
        store: Store,
        build: Callable[[int], Awaitable[HeadCompute | StageCompute | None]],
        saved: Callable[[], None],
    ) -> None:
        self._options = options
        self._cut = cut
        self._every = every
        self._clock = clock
        self._holders = holders
        self._takeover = takeover
        self._store = store
        self._build = build
        self._saved = saved
        self._saved_at = clock.monotonic()
        self._saved_step = 0
        self._saving: asyncio.Task[None] | None = None

    def look(self, *, idle: bool) -> None:
        """Begin if it is time and the worker is ``idle``."""
        if self._saving is not None and self._saving.done():
            self._saving.result()
            self._saving = None
        now, step = self._clock.monotonic(), max((p.metrics.step for p in self._holders.present()), default=0)
        by_steps = self._every.steps > 0 and step // self._every.steps > self._saved_step // self._every.steps
        if idle and self._saving is None and (by_steps or now - self._saved_at >= self._every.seconds):
            self._saved_at, self._saved_step = now, step
            self._saving = asyncio.create_task(self._save())

    async def stop(self) -> None:
        """Leave it where it stands."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
            self._saving = None

    async def _save(self) -> None:
        for stage in range(self._cut.num_stages + 1):
            if not self._holders.of(stage):
                continue
            number, compute = self._cut.number, await self._build(stage)
            if compute is None:
                continue
            download = await self._takeover.saved(stage, compute)
            if self._cut.number != number:  # these may be other blocks of the same shapes
                break
            step = download.head.step if isinstance(download, Download) else 0
            if isinstance(download, Download) and not self._has(stage, step, download.snapshot.name):
                state = self._weights(download, Layout.of(compute.parameters()))
                await self._clock.run_on_disk(functools.partial(self._store.save, stage, state))
        self._saved()

    def _has(self, stage: int, step: int, digest: str) -> bool:
        span = self._cut.span(stage)
        stored = [one for one in self._store.stored() if (one.span, one.step) == (span, step)]
        return any(one.full or one.digest == digest for one in stored)

    def _weights(self, download: Download, layout: Layout) -> WorkerState:
        """What was fetched: a state that has weights and nothing else."""
        step = download.head.step
        return WorkerState(
            step=step,
            round=step // self._options.inner_steps,
            tokens=0,
            digest=download.snapshot.name,
            closed=False,
            anchors=layout.scatter(values_of(download), 0),
            outer={},
            own={},
            facts={},
            trainer={},
        )
