"""A checkpoint of the whole model, put together of those of a run's stages, for a run that goes on without stages.

Which of them make a whole is said in ``pipeline.stored``, how their states become one in ``engine.recut``.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.engine.recut import whole
from decentral.errors import ConfigError
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import HEAD, Lacking, Start, parts_of, start_of
from decentral.run.disk import Disk, cannot_write
from decentral.run.stages import blocks_of
from decentral.run.store import StageFiles
from decentral.state.checkpoints.checkpoint import About
from decentral.state.checkpoints.folder import Checkpoints
from decentral.types import PeerId


def stores_of(
    folders: Sequence[Path], about: About, cut: CutInForce, *, whole: bool = True
) -> dict[PeerId, StageFiles]:
    """What is in these folders of a run's stages, by folder; ``whole`` as for ``StageFiles``."""
    return {PeerId(str(path)): StageFiles(path, about, cut, 1, Disk(), time.time, whole=whole) for path in folders}


def start_from(stores: dict[PeerId, StageFiles], run: str, cut: CutInForce, hint: str) -> Start:
    """The newest step at which these folders have all of the model.

    Args:
        stores: see ``stores_of``.
        run: its id.
        cut: as the run goes on.
        hint: what to do if there is none.

    Raises:
        ConfigError: there is none, and what is missing.
    """
    start = start_of({name: store.stored() for name, store in stores.items()}, (HEAD, *cut.whole))
    if isinstance(start, Lacking):
        raise ConfigError(f"{run} cannot go on: {start}.", hint=hint)
    return start


def put_together(folders: Sequence[Path], run: str, before: SwarmConfig, own: WorkerConfig, hint: str) -> bool:
    """Write a checkpoint of the whole model into the first of these folders.

    One of the whole model from before there were stages does not stand for those that are missing: it is older.

    Args:
        folders: of workers that held stages; none of them runs.
        run: its id.
        before: the run's configuration, with stages.
        own: this machine's.
        hint: what to do if they do not have all of it.

    Returns:
        Whether there was anything to put together.

    Raises:
        ConfigError: they do not, and what is missing.
        DiskError: the checkpoint cannot be written.
        MismatchError: they do not fit together.
    """
    blocks = blocks_of(before, own)
    cut = CutInForce((), blocks.num_blocks, blocks.path)
    about = About(run, before.method.name, before.run.rounds)
    stores = stores_of(folders, about, cut, whole=False)
    if not any(store.stored() for store in stores.values()):
        return False
    for store in stores.values():
        store.verify()
    step = start_from(stores, run, cut, hint).step
    stored = {name: store.stored() for name, store in stores.items()}
    parts = [part for span in (HEAD, *cut.whole) for part in parts_of(stored, span, step)]
    try:
        state = whole([stores[part.peers[0]].load(part.stored) for part in parts])
        Checkpoints(folders[0], about, own.keep, time.time).save(state)
    except OSError as err:
        raise cannot_write(folders[0], 0, err) from err
    return True
