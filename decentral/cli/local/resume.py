"""``decentral local --resume DIR``: a local run that was stopped goes on, with as many workers as before or others."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decentral.cli.local.command import check_cut, check_length_and_result, measure
from decentral.cli.local.processes import Processes
from decentral.cli.worker import settled
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from decentral.state.manifest import Manifest


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
    from decentral.run.folder import folders_of
    from decentral.run.resuming import go_on, refuse_the_end
    from decentral.run.tasks import build_trainer

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
        raise ConfigError(
            f"{furthest.run} trains a model in stages, and such a run cannot be brought back yet.",
            hint="Its stages are in the folders of its workers; `decentral runs DIR` lists them.",
        )
    refuse_the_end(folder, furthest.run, setting, furthest.round, furthest.step)
    processes = Processes(size)
    check_length_and_result(None, None, take, processes)
    torch.set_num_threads(max(1, own.threads))
    trainer = build_trainer(swarm, own.device, (), stream_seed=0)
    check_cut(swarm, [trainer.parameters()])
    pace = measure(trainer, steps=1)
    going_on = GoingOn(furthest.run, tuple(sorted(newest)))
    return asyncio.run(LocalRun(swarm, own, processes, folder, trainer, pace.tokens_per_step, take, going_on).run())


def _newest(folder: Path) -> "Manifest | None":
    """Of the newest whole checkpoint of a worker."""
    from decentral.state.manifest import found_in

    return next((one.manifest for one in found_in(folder) if one.manifest is not None), None)
