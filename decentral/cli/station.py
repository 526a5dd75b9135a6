"""A worker of a pipeline, put together from configuration, adapters and the engine. Imports torch."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from decentral.adapters.clock import RealClock
from decentral.adapters.node import Node
from decentral.cli.config import SwarmConfig, WorkerConfig
from decentral.cli.logs import LogJournal
from decentral.cli.pipeline import stages_asked
from decentral.cli.run_options import pipeline_options, stage_options
from decentral.cli.stages import blocks_of
from decentral.cli.store import StageFiles
from decentral.engine.options import Outcome
from decentral.engine.station import Station, StationOptions, StationParts
from decentral.monitor.journal import FanOut, Journal, JsonLinesJournal
from decentral.swarm.timing import Timing


def make_station(
    node: Node,
    swarm: SwarmConfig,
    own: WorkerConfig,
    run_id: str,
    clock: RealClock,
    lines: JsonLinesJournal,
    told: LogJournal,
) -> tuple[Station, Callable[[Mapping[int, Outcome]], None]]:
    """A station on an open node, and what saves the stages that it held to the end.

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
    options = StationOptions(
        run_id=run_id,
        config=swarm.to_json().encode(),
        pipeline=pipeline_options(swarm, blocks.num_blocks),
        of_stage=functools.partial(stage_options, swarm, run_id),
        timing=Timing(**swarm.timing.model_dump()),
    )
    parts = StationParts(
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

    return Station(options, parts), save
