"""What a task says of its blocks, and whether they can be cut as the configuration wants. Imports torch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from decentral.config.resolve import import_task
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError
from decentral.pipeline.cut import Cut, check_equal, cut
from decentral.pipeline.stored import HEAD, span_of
from decentral.ports.model_blocks import ModelBlocks
from decentral.run.options import seat_of


def blocks_of(swarm: SwarmConfig, own: WorkerConfig, *, founding: bool = False) -> ModelBlocks:
    """The task's model as blocks; nothing of it is built yet, and no data is read.

    Args:
        swarm: resolved, with a pipeline.
        own: what this machine has of its own: its device, its data.
        founding: whether nobody has the run's weights yet.

    Raises:
        ConfigError: the task has no blocks, or its batch cannot be split into so many micro-batches.
        MismatchError: this machine's weights are not those that the run began with.
    """
    module, _ = import_task(swarm.task.factory)
    make = getattr(module, "blocks", None)
    if make is None:
        raise ConfigError(
            f"pipeline.stages is {swarm.pipeline.stages}, but the task {swarm.task.factory} cannot be cut: "
            f"{module.__name__} has no function blocks.",
            hint="Leave --stages out, or give the task its blocks: docs/tasks.md says how.",
        )
    # The windows of a batch go by its slot, so that a successor draws the same: there is no stream of a worker's own.
    seat = seat_of(swarm, own, stream_seed=0, founding=founding)
    blocks: ModelBlocks = make(swarm.task.settings, seat, swarm.pipeline.microbatches)
    return blocks


def cut_of(swarm: SwarmConfig, num_blocks: int) -> Cut:
    """Which blocks each stage has, if the cut does not change, and how a lost one comes back.

    Raises:
        ConfigError: so many blocks cannot be cut like that.
    """
    if swarm.pipeline.stages == "auto":  # any block may be a stage by itself
        return Cut(tuple((block, block + 1) for block in range(num_blocks)), "checkpoint")
    return cut(num_blocks, swarm.pipeline.stages, swarm.pipeline.recovery)


def settled(swarm: SwarmConfig, own: WorkerConfig) -> Mapping[str, Any]:
    """What is still open in a pipeline's configuration, by key, after all was checked that one machine can check.

    Args:
        swarm: resolved; without a pipeline nothing is open.
        own: as in ``blocks_of``.

    Raises:
        ConfigError: see ``blocks_of`` and ``cut_of``; or stages are to heal from each other, and differ.
    """
    if not swarm.pipeline.stages:
        return {}
    blocks = blocks_of(swarm, own, founding=True)
    made = cut_of(swarm, blocks.num_blocks)
    healing = made.healing
    if healing != "checkpoint":
        try:
            check_equal(
                [[shape for number in range(*span) for shape in _shapes(blocks, number)] for span in made.spans]
            )
        except ConfigError:
            if swarm.pipeline.recovery != "auto":
                raise
            healing = "checkpoint"
    found = {f"task.settings.{key}": value for key, value in blocks.settings().items()}
    return {"pipeline.recovery": healing, **found}


def _shapes(blocks: ModelBlocks, number: int) -> list[tuple[int, ...]]:
    """Those of a block's parameters; none of one that cannot be made without memory for it: who heals it finds out."""
    try:
        with torch.device("meta"):
            return [tuple(parameter.shape) for parameter in blocks.block(number).parameters()]
    except RuntimeError:
        return []


def parts_of(swarm: SwarmConfig, own: WorkerConfig, parameters: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """What is synchronised by itself: the parameters of the head and of each stage, or those of the whole model.

    Args:
        swarm: resolved.
        own: as in ``blocks_of``.
        parameters: of the whole model, named as ``ModelBlocks`` says.

    Raises:
        ConfigError: see ``blocks_of`` and ``cut_of``.
    """
    if not swarm.pipeline.stages:
        return [parameters]
    blocks = blocks_of(swarm, own)
    spans = cut_of(swarm, blocks.num_blocks).spans
    parts: list[dict[str, Tensor]] = [{} for _ in range(len(spans) + 1)]
    stage_of = {block: stage for stage, span in enumerate(spans, 1) for block in range(*span)}
    for name, value in parameters.items():
        span = span_of([name], blocks.path)
        parts[0 if span == HEAD else stage_of[span[0]]][name] = value
    return list(parts)
