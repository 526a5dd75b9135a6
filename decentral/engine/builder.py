"""Stages made: their modules as the run began with them, and what runs around weights that are in place.

Who holds what, and where weights come from, is not known here.
"""

import functools
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Any

from torch import Tensor

from decentral.engine.move_lead import MoveLead
from decentral.engine.mover import Mover
from decentral.engine.options import Parts
from decentral.engine.pipeline_process_options import PipelineProcessOptions, PipelineProcessParts
from decentral.engine.stage_worker import FirstStep, StageWorker
from decentral.engine.takeover import Brought, Standing
from decentral.errors import IncapableError
from decentral.monitor.events import StageRecovered
from decentral.monitor.journal import Journal
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.courier import Courier
from decentral.pipeline.handover import KeptHeads, LiveWeights, shapes_signature
from decentral.pipeline.head import HeadLoop
from decentral.pipeline.holders import Holders
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.position import POSITION, Position
from decentral.pipeline.recovery import Source
from decentral.pipeline.scoped import Scoped
from decentral.pipeline.stage import StageLoop
from decentral.tensors.layout import Layout

#: Sources after which the learning rate of a stage is raised.
_HEALED = frozenset({Source.BLEND, Source.COPY})


class Builder:
    """Builds what one worker holds.

    Args:
        options: equal on all workers.
        parts: this worker's own.
        cut: the stages there are.
        mover: this process's part in moves of blocks; ``None`` in a run whose cut is fixed.
        holders: who lives.
        courier: to the other hops.
    """

    def __init__(
        self,
        options: PipelineProcessOptions,
        parts: PipelineProcessParts,
        cut: CutInForce,
        mover: Mover | None,
        holders: Holders,
        courier: Courier,
    ) -> None:
        self._options = options
        self._pipeline = options.pipeline
        self._parts = parts
        self._cut = cut
        self._mover = mover
        self._holders = holders
        self._courier = courier

    def compute(self, stage: int, held: Set[int]) -> HeadCompute | StageCompute:
        """A stage as the run began with it, beside those that are held; on the clock's thread.

        Raises:
            IncapableError: this machine cannot hold it as well.
            ConfigError: the task refuses to build it.
        """
        parts, spans = self._parts, self._cut.spans
        all_held = held | {stage}
        num_blocks = sum(stop - first for first, stop in (spans[k - 1] for k in all_held if k))
        parts.blocks.check(num_blocks, 0 in all_held, parts.device)
        if stage == 0:
            return HeadCompute(parts.blocks, parts.device)
        return StageCompute(parts.blocks, *spans[stage - 1], parts.device)

    def blocks(self, first: int, stop: int) -> StageCompute:
        """Some blocks as the run began with them, beside nothing else; on the clock's thread. Raises as ``compute``."""
        self._parts.blocks.check(stop - first, False, self._parts.device)
        return StageCompute(self._parts.blocks, first, stop, self._parts.device)

    def room(self) -> int:
        """How many blocks this machine can hold, beside nothing else; on the clock's thread."""
        blocks, device = self._parts.blocks, self._parts.device
        for count in range(1, blocks.num_blocks + 1):
            try:
                blocks.check(count, False, device)
            except IncapableError:
                return count - 1
        return blocks.num_blocks

    async def stage_worker(
        self,
        stage: int,
        compute: HeadCompute | StageCompute,
        brought: Brought,
        slot: int,
        standing: Standing,
        *,
        began_at: float,
        tell: Callable[[StageRecovered], None],
    ) -> StageWorker:
        """A worker around weights that are in place.

        Args:
            stage: 0 is the head.
            compute: with the weights.
            brought: where they came from.
            slot: of a head.
            standing: how far the run is.
            began_at: when this worker began to take the stage.
            tell: hears of the first step after a recovery.

        Raises:
            DataError: a head has no data.
        """
        parts, source, span = self._parts, brought.recovery.source, self._cut.span(stage)
        journal, scope = parts.stage_journal(stage), Scoped(parts.transport, str(stage))
        if (position := brought.position) is None:
            healed_at = standing.step if source in _HEALED else None
            position = Position(slot=slot, batch=standing.batch + 1, healed_at=healed_at)
        loop = await self._loop(compute, stage, position, journal)
        recovered = None
        if source not in (Source.INITIAL, Source.REPLICA, Source.MOVED) and not brought.together:
            recovered = functools.partial(_recovered, stage, brought, standing.loss)
        worker_parts = Parts(
            transport=scope,
            directory=parts.directory,
            clock=parts.clock,
            identity=parts.identity,
            model=StageModel(compute, loop),
            inner=FirstStep(loop, parts.clock, journal, recovered, began_at, tell),
            journal=journal,
            restored=brought.state,
            save=functools.partial(parts.store.save, stage),
            save_every=replace(parts.save_every, together=True),
            device=parts.device,
        )
        options = self._options.of_stage(stage, compute.parameters())
        if self._cut.number:  # who held other blocks as this stage before is no member of its swarm
            options = replace(options, run_id=f"{options.run_id}/cut {self._cut.number}")
        weights = LiveWeights(scope, compute, parts.clock)
        kept = await self._kept(stage, loop, scope)

        def is_saved() -> bool:
            return any(one.span == span for one in parts.store.stored())

        return StageWorker(stage, loop, options, worker_parts, weights, kept, is_saved)

    async def _kept(self, stage: int, loop: HeadLoop | StageLoop, scope: Scoped) -> KeptHeads | None:
        """What keeps copies of heads, at their neighbours."""
        if not self._pipeline.swap or not isinstance(loop, StageLoop) or stage not in (1, self._cut.num_stages):
            return None
        head = await self._parts.clock.run(lambda: HeadCompute(self._parts.blocks).parameters())
        numel, signature = Layout.of(head).numel(0), shapes_signature(head)
        return KeptHeads(scope, numel, signature, loop.committed, self._holders.is_head, self._parts.clock)

    async def _loop(
        self,
        compute: HeadCompute | StageCompute,
        stage: int,
        position: Position,
        journal: Journal,
    ) -> HeadLoop | StageLoop:
        parts, pipeline = self._parts, self._pipeline
        if isinstance(compute, HeadCompute):
            return HeadLoop(
                compute,
                parts.blocks,
                await parts.clock.run(parts.blocks.data),
                slot=position.slot,
                batch=position.batch,
                options=pipeline,
                cut=self._cut,
                moves=self._moves(journal),
                courier=self._courier,
                holders=self._holders,
                clock=parts.clock,
                journal=journal,
            )
        return StageLoop(
            stage,
            compute,
            parts.blocks,
            courier=self._courier,
            holders=self._holders,
            clock=parts.clock,
            journal=journal,
            patience_s=self._options.timing.min_patience_s,
            boost=(pipeline.lr_boost, pipeline.lr_boost_steps),
            position=position,
        )

    def _moves(self, journal: Journal) -> MoveLead | None:
        """What a head leads to other cuts, if there are to be any."""
        if self._mover is None:
            return None
        parts, num_blocks = self._parts, self._parts.blocks.num_blocks
        return MoveLead(
            self._mover,
            parts.transport,
            parts.clock,
            self._options.timing,
            self._holders,
            self._cut,
            num_blocks,
            self._pipeline.min_machines,
            journal,
        )


class StageModel:
    """Implements ``ports.trainer.Model`` and ``Stateful``: a stage, and where its loop is in the run's data.

    Args:
        compute: its weights and their optimizer.
        loop: begins where it is told when it is made, not by ``load_state_dict``.
    """

    def __init__(self, compute: HeadCompute | StageCompute, loop: HeadLoop | StageLoop) -> None:
        self._compute = compute
        self._loop = loop

    def parameters(self) -> Mapping[str, Tensor]:
        """See ``Model``."""
        return self._compute.parameters()

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """See ``Model``."""
        self._compute.load(parameters)

    def validate(self) -> float:
        """See ``Model``."""
        return self._compute.validate()

    def state_dict(self) -> Mapping[str, Any]:
        """See ``Stateful``."""
        return {**self._compute.state_dict(), POSITION: self._loop.position().to_plain()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Stateful``."""
        self._compute.load_state_dict(state)


def _recovered(
    stage: int, brought: Brought, loss_before: float, step: int, loss_after: float, seconds: float
) -> StageRecovered:
    """The event of a recovery, once all of it is known."""
    return StageRecovered(stage, brought.recovery.source, brought.donors, step, loss_before, loss_after, seconds)
