"""What a task says of its blocks, and whether they can be cut as the configuration wants. Imports torch."""

from collections.abc import Sequence

from decentral.cli.config import SwarmConfig
from decentral.cli.run_options import seat_of
from decentral.cli.settings import import_task, with_values
from decentral.errors import ConfigError
from decentral.pipeline.cut import Cut, cut
from decentral.ports.blocks import Blocks


def blocks_of(swarm: SwarmConfig, device: str, data: Sequence[str]) -> Blocks:
    """The task's model as blocks; nothing of it is built yet, and no data is read.

    Args:
        swarm: resolved, with a pipeline.
        device: to compute on.
        data: paths of this machine in place of the swarm's; empty for the swarm's.

    Raises:
        ConfigError: the task has no blocks, or its batch cannot be split into so many micro-batches.
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
    blocks: Blocks = make(swarm.task.settings, seat_of(swarm, device, data, stream_seed=0), swarm.pipeline.microbatches)
    return blocks


def cut_of(swarm: SwarmConfig, num_blocks: int) -> Cut:
    """Which blocks each stage has, and how a lost one comes back.

    Raises:
        ConfigError: so many blocks cannot be cut like that.
    """
    return cut(num_blocks, swarm.pipeline.stages, swarm.pipeline.recovery)


def settle(swarm: SwarmConfig, device: str, data: Sequence[str]) -> SwarmConfig:
    """The configuration of a pipeline with its recovery chosen, after all was checked that one machine can check.

    Args:
        swarm: resolved, with a pipeline.
        device: as in ``blocks_of``, as is ``data``.
        data: see above.

    Raises:
        ConfigError: see ``blocks_of`` and ``cut_of``.
    """
    blocks = blocks_of(swarm, device, data)
    return with_values(swarm, {"pipeline.recovery": cut_of(swarm, blocks.num_blocks).healing})
