"""The stage of a process whose cut changes: stopped for a move, begun again with other blocks, given up.

Implements ``engine.mover.Holdings``. When any of this happens is the mover's to say.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Protocol

from decentral.engine.agreement import Agreement
from decentral.engine.background import Background
from decentral.engine.builder import Builder
from decentral.engine.pipeline_process_options import PipelineProcessParts
from decentral.engine.stage_worker import StageWorker
from decentral.engine.takeover import Brought, Standing, Takeover
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.position import Position
from decentral.pipeline.recovery import Recovery, Source
from decentral.pipeline.stored import Span
from decentral.state.worker_state import WorkerState


class Begin(Protocol):
    """Runs a stage whose weights are here."""

    async def __call__(
        self, stage: int, compute: HeadCompute | StageCompute, brought: Brought, standing: Standing, began: float
    ) -> None:
        """See ``PipelineProcess``."""
        ...


class MovedStage:
    """That of one process.

    Args:
        stage_workers: what the process holds, by stage.
        parts: of the process.
        builder: builds blocks.
        agreement: knows who has what on disk.
        takeover: fetches that.
        background: of the process.
        begin: runs a stage.
        give_up: leaves stages in order.
    """

    def __init__(
        self,
        stage_workers: MutableMapping[int, StageWorker],
        parts: PipelineProcessParts,
        builder: Builder,
        agreement: Agreement,
        takeover: Takeover,
        background: Background,
        begin: Begin,
        give_up: Callable[[Mapping[int, StageWorker]], Awaitable[None]],
    ) -> None:
        self.frozen: set[int] = set()
        """What stands still for a move: for others this process holds it all the same."""
        self._stage_workers = stage_workers
        self._parts = parts
        self._builder = builder
        self._agreement = agreement
        self._takeover = takeover
        self._background = background
        self._begin = begin
        self._give_up = give_up

    async def freeze(self) -> WorkerState | None:
        """See ``Holdings``."""
        stage = max(self._stage_workers, default=0)
        if not stage:
            return None
        self.frozen.add(stage)
        return await self._stage_workers.pop(stage).freeze()

    def build(self, first: int, stop: int) -> StageCompute:
        """See ``Holdings``."""
        return self._builder.blocks(first, stop)

    async def recall(self, compute: StageCompute, span: Span, step: int) -> Brought | str:
        """See ``Holdings``."""
        at_hand = await self._agreement.at_hand(span, step)
        if at_hand.age != 0:
            return f"nobody has a checkpoint of the blocks {span[0]} to {span[1] - 1} at step {step}"
        return await self._takeover.saved(compute, at_hand)

    async def begin(self, stage: int, compute: StageCompute, state: WorkerState | None, step: int) -> None:
        """See ``Holdings``. It is saved at once: what was saved before has other blocks."""
        began, every = self._parts.clock.monotonic(), self._parts.save_every
        self.frozen.clear()
        brought = Brought(Recovery(Source.INITIAL), ())
        if state is not None:
            position = Position.of(state.trainer.get("state", {}))
            brought = Brought(Recovery(Source.MOVED), (), state=state, position=position)
            if every.steps or math.isfinite(every.seconds):
                store, clock = self._parts.store, self._parts.clock
                self._background.begin(clock.run_on_disk(lambda: store.save(stage, state)))
        await self._begin(stage, compute, brought, Standing(step), began)

    async def drop(self) -> None:
        """See ``Holdings``."""
        self.frozen.clear()
        await self._give_up({stage: held for stage, held in self._stage_workers.items() if stage})
