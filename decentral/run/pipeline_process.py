"""A worker of a pipeline, put together from configuration, adapters and the engine. Imports torch."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from decentral.adapters.clock import RealClock
from decentral.adapters.node import Node
from decentral.config.pipeline import stages_asked
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.engine.options import Outcome
from decentral.engine.pipeline_process import PipelineProcess, PipelineProcessOptions, PipelineProcessParts
from decentral.monitor.journal import FanOut, Journal, JsonLinesJournal
from decentral.run.logs import LogJournal
from decentral.run.options import pipeline_options, stage_options
from decentral.run.stages import blocks_of
from decentral.run.store import StageFiles
from decentral.swarm.timing import Timing


def make_pipeline_process(
    node: Node,
    swarm: SwarmConfig,
    own: WorkerConfig,
    run_id: str,
    clock: RealClock,
    lines: JsonLinesJournal,
    told: LogJournal,
) -> tuple[PipelineProcess, Callable[[Mapping[int, Outcome]], None]]:
    """The process on an open node, and what saves the stages that it held to the end.

    Args:
        node: open.
        swarm: resolved, with a pipeline.
        own: this machine's configuration.
        run_id: of the run.
        clock: of this process.
        lines: journal of all events, to which those of stages go as well.
        told: the same for the log.
    """
    if node.directory is None:
        raise AssertionError("a worker's node keeps records")

    def of_stage(stage: int) -> Journal:
        return FanOut(lines.of_stage(stage), told.of_stage(stage))

    blocks = blocks_of(swarm, own.device, own.data)
    journal = FanOut(lines, told)
    store = StageFiles(Path(own.out), run_id, swarm.pipeline.stages, journal)
    options = PipelineProcessOptions(
        run_id=run_id,
        config=swarm.to_json().encode(),
        pipeline=pipeline_options(swarm, blocks.num_blocks),
        of_stage=functools.partial(stage_options, swarm, run_id),
        timing=Timing(**swarm.timing.model_dump()),
    )
    parts = PipelineProcessParts(
        transport=node.transport,
        directory=node.directory,
        clock=clock,
        identity=node.identity,
        journal=journal,
        stage_journal=of_stage,
        blocks=blocks,
        store=store,
        wanted=stages_asked(own.stage, swarm.pipeline.stages),
        device=own.device,
    )

    def save(outcomes: Mapping[int, Outcome]) -> None:
        for stage, outcome in outcomes.items():
            store.save(stage, outcome)

    return PipelineProcess(options, parts), save
