"""A worker of a pipeline, put together from configuration, adapters and the engine. Imports torch."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from decentral.adapters.clock import RealClock
from decentral.config import interval
from decentral.config.pipeline import stages_asked
from decentral.config.resolve import on_machine
from decentral.engine.pipeline_process import PipelineProcess, PipelineProcessOptions, PipelineProcessParts
from decentral.monitor.journal import StagedJournal
from decentral.pipeline.placement import CutInForce
from decentral.run.connection import Connection
from decentral.run.disk import Disk
from decentral.run.options import pipeline_options, stage_options
from decentral.run.stages import blocks_of
from decentral.run.store import StageFiles
from decentral.state.checkpoints.checkpoint import About
from decentral.swarm.timing import Timing

_log = logging.getLogger(__name__)


def make_pipeline_process(
    connection: Connection, clock: RealClock, journal: StagedJournal
) -> tuple[PipelineProcess, Callable[[], None]]:
    """The process on an open node, and what raises ``DiskError`` if something that it held is not on its disk.

    Args:
        connection: of a run with a pipeline.
        clock: of this process.
        journal: of all events, those of stages included.
    """
    node, swarm, own, run_id = connection.node, connection.swarm, connection.own, connection.run_id
    if node.directory is None:
        raise AssertionError("a worker's node keeps records")

    blocks = blocks_of(on_machine(swarm, own), own)
    disk = Disk()
    if swarm.pipeline.stages == "auto":
        _log.info("blocks follow the machines that are there; a stage that is lost comes back from a checkpoint")
    about = About(run_id, swarm.method.name, swarm.run.rounds)
    pipeline = pipeline_options(swarm, blocks.num_blocks)
    cut = CutInForce(pipeline.spans, blocks.num_blocks, blocks.path)
    store = StageFiles(Path(own.out), about, cut, own.keep, disk, clock.wall)
    options = PipelineProcessOptions(
        run_id=run_id,
        config=swarm.to_json().encode(),
        pipeline=pipeline,
        of_stage=functools.partial(stage_options, swarm, run_id),
        timing=Timing(**swarm.timing.model_dump()),
    )
    parts = PipelineProcessParts(
        transport=node.transport,
        directory=node.directory,
        clock=clock,
        identity=node.identity,
        journal=journal,
        stage_journal=journal.of_stage,
        blocks=blocks,
        store=store,
        cut=cut,
        save_every=interval.parse(own.checkpoint_every),
        protect=own.protect,
        guard_bytes=own.guard_bytes,
        note=disk.note,
        wanted=stages_asked(own.stage, swarm.pipeline.stages),
        device=own.device,
    )

    def check_disk() -> None:
        if disk.problem is not None:
            raise disk.problem

    return PipelineProcess(options, parts), check_disk
