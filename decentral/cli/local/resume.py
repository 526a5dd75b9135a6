"""``decentral local --resume DIR``: a local run that was stopped goes on, with as many workers as before or others."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decentral.cli.local.command import check_cut, check_length_and_result
from decentral.cli.local.processes import Processes, processes_for
from decentral.cli.worker import settled
from decentral.config.pipeline import PipelineSection
from decentral.config.settings import with_values
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.state.checkpoints.manifest import Manifest

#: What to do about a stage that no worker of this run has.
_ELSEWHERE = (
    "If another machine has it, start the workers one by one, there and here: decentral worker --resume DIR. Else the "
    "stages that there are can be exported, and a run founded anew."
)


def resume(
    folder: Path,
    workers: int | None,
    take: str | None,
    config: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
) -> int:
    """Go on with the run in a folder; nothing has been started when it is refused.

    Args:
        folder: of a local run.
        workers: how many; ``None`` for all that it had. New ones join; the folders of those beyond stay as they are.
        take: what becomes of the weights, as ``--result`` says.
        config: what is stated now, for ``config.settings.load``.
        assignments: see ``config``.
        flags: see ``config``.

    Raises:
        DecentralError: there is nothing to go on from, or it cannot go on like that.
    """
    import torch

    from decentral.cli.local.run import GoingOn, LocalRun
    from decentral.pipeline.placement import CutInForce
    from decentral.run.folder import folders_of
    from decentral.run.resuming import go_on, refuse_the_end
    from decentral.run.stages import blocks_of, cut_of, parts_of
    from decentral.run.tasks import build_trainer
    from decentral.run.whole import put_together, start_from, stores_of
    from decentral.state.checkpoints.checkpoint import About
    from decentral.state.checkpoints.folder import newest_manifest

    had = folders_of(folder)[1:]
    size = workers or len(had)
    newest = {int(path.name): found for path in had if (found := _newest(path)) and int(path.name) < size}
    if not newest:
        raise ConfigError(
            f"There is no local run to resume in {folder}: no worker of it has a whole checkpoint.",
            hint="`decentral runs DIR` lists what is there. One worker's folder: decentral worker --resume DIR.",
        )
    furthest = max(newest.values(), key=lambda manifest: manifest.step)
    setting = go_on(folder, settled, config, assignments, flags)
    swarm, own = setting.swarm, setting.own
    if swarm.pipeline.stages:
        processes = _with_stages(swarm.pipeline, workers, len(had))
        blocks = blocks_of(swarm, own)
        cut = CutInForce(cut_of(swarm, blocks.num_blocks).spans, blocks.num_blocks, blocks.path)
        about = About(furthest.run, swarm.method.name, swarm.run.rounds)
        step = start_from(stores_of(had, about, cut), furthest.run, cut, _ELSEWHERE).step
        refuse_the_end(folder, furthest.run, setting, step // swarm.method.inner_steps, step)
    else:
        if setting.before.pipeline.stages and put_together(had, furthest.run, setting.before, own, _ELSEWHERE):
            furthest = newest_manifest(had[0], furthest.run)
            newest = {int(had[0].name): furthest}  # its work is one worker's: the others join that
        processes = Processes(size)
        refuse_the_end(folder, furthest.run, setting, furthest.round, furthest.step)
    if bool(swarm.pipeline.stages) != bool(setting.before.pipeline.stages):
        swarm = with_values(swarm, processes.values)
    check_length_and_result(None, None, take, processes)
    torch.set_num_threads(max(1, own.threads))
    trainer = build_trainer(swarm, own, stream_seed=0)
    check_cut(swarm, parts_of(swarm, own, trainer.parameters()))
    going_on = GoingOn(furthest.run, tuple(sorted(newest)))
    return asyncio.run(LocalRun(swarm, own, processes, folder, trainer, take, going_on).run())


def _with_stages(pipeline: PipelineSection, workers: int | None, size: int) -> Processes:
    """As many processes as there were; those beyond what stages and replicas take are spares."""
    if pipeline.stages == "auto":
        return processes_for(pipeline, workers or size, None)
    taken = (pipeline.stages + 1) * max(1, pipeline.replicas)
    return processes_for(pipeline, workers, max(0, size - taken))


def _newest(folder: Path) -> "Manifest | None":
    """Of the newest whole checkpoint of a worker, be it of a stage."""
    from decentral.run.folder import stage_folder
    from decentral.state.checkpoints.manifest import found_in

    trees = (folder, *folder.glob(stage_folder("*")))
    newest = [next((one.manifest for one in found_in(tree) if one.manifest is not None), None) for tree in trees]
    return max((one for one in newest if one is not None), key=lambda manifest: manifest.step, default=None)
