"""A run that went wrong, taken back to an earlier step: what came after it is set aside, of all workers in a folder."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from decentral.adapters.identity import IdentityFile
from decentral.errors import ConfigError, IdentityError, UsageError
from decentral.run.folder import IDENTITY
from decentral.run.listing import Checkpoint, RunFolder, WorkerFolder, runs_in
from decentral.state.checkpoints.folder import set_aside


@dataclass(frozen=True, slots=True)
class Rewound:
    """One worker, or one stage of it."""

    path: str
    step: int | None
    """From which it goes on; ``None`` if nothing is left of it."""
    gone: tuple[str, ...]
    """The checkpoints that are set aside, the newest first."""


def rewound(folder: Path, to: int | None) -> tuple[RunFolder, int, list[Rewound]]:
    """Set aside all checkpoints of a run that are beyond a step.

    Args:
        folder: of a worker or of a local run, none of whose workers runs.
        to: the step; ``None`` for that of the checkpoint with the lowest validation loss in the folder.

    Returns:
        The run as it is now, the step, and what became of each worker.

    Raises:
        UsageError: there is not one run in the folder, a worker of it is at work, or there is nothing so early.
        ConfigError: no checkpoint was validated, or the folder cannot be changed.
    """
    try:
        run = _one(folder)
        with _at_rest(run):
            step = _best(run) if to is None else to
            beyond = {worker.path: _beyond(worker, step) for worker in run.workers}
            if all(len(beyond[worker.path]) == len(_whole(worker)) for worker in run.workers):
                raise UsageError(
                    f"There is no checkpoint at step {step} or before it in {folder}.",
                    hint=f"`decentral runs {folder}` lists what there is.",
                )
            for path, names in beyond.items():
                if names:
                    set_aside(Path(path), names)
            now = _one(folder)
    except OSError as err:
        raise ConfigError(f"Cannot change {folder}: {err.strerror or err}.") from err
    left = {worker.path: worker.newest for worker in now.workers}
    return now, step, [Rewound(path, _step(left.get(path)), names) for path, names in beyond.items()]


def _one(folder: Path) -> RunFolder:
    found = runs_in(folder, digests=False) if folder.is_dir() else []
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"There are {len(found)} runs in {folder}." if found else f"There is no run in {folder}.",
        hint="Give the folder of one worker, or of one local run: decentral rewind DIR.",
    )


@contextlib.contextmanager
def _at_rest(run: RunFolder) -> Iterator[None]:
    """While no worker of it can start."""
    with contextlib.ExitStack() as held:
        for key in {key for worker in run.workers for key in _keys(Path(worker.path))}:
            try:
                held.callback(IdentityFile(key).close)
            except IdentityError as err:
                raise UsageError(
                    f"The worker in {key.parent} may be at work: {err.message}",
                    hint="Stop all workers of the run first.",
                ) from err
        yield


def _keys(tree: Path) -> list[Path]:
    """The identity of whose tree it is; a stage's is in the folder above."""
    return [path for path in (tree / IDENTITY, tree.parent / IDENTITY) if path.exists()][:1]


def _whole(worker: WorkerFolder) -> Sequence[Checkpoint]:
    return [one for one in worker.checkpoints if not one.problem and one.run == worker.run]


def _beyond(worker: WorkerFolder, step: int) -> tuple[str, ...]:
    return tuple([one.name for one in _whole(worker) if one.step is not None and one.step > step])


def _best(run: RunFolder) -> int:
    """The step of the lowest validation loss."""
    validated = [
        (one.val_loss, one.step)
        for worker in run.workers
        for one in _whole(worker)
        if one.val_loss is not None and one.step is not None
    ]
    if validated:
        return min(validated)[1]
    raise ConfigError(
        f"No checkpoint in {run.path} has a validation loss, so nobody can tell which is the best.",
        hint="Give the step: --to STEP.",
    )


def _step(one: Checkpoint | None) -> int | None:
    return None if one is None else one.step
