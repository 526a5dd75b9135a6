"""What lies in folders of runs: which runs, their checkpoints, and what can be resumed. Changes nothing.

Must not import torch.
"""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from decentral.run.folder import CHECKPOINTS, MODEL, WORKERS, folders_of, has_run, run_of
from decentral.state.checkpoints import manifest
from decentral.state.checkpoints.manifest import BEST, LATEST, Found, found_in, pointed_at

#: More folders than anybody keeps side by side are not looked at.
_MAX_FOLDERS = 10_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a worker."""

    name: str
    run: str
    step: int | None
    """``None``, as ``round``, ``rounds`` and ``time``, if that cannot be read."""
    round: int | None
    rounds: int | None
    val_loss: float | None
    """``None`` if it was not validated."""
    size_bytes: int
    time: float | None
    """When it was written: seconds since 1970 by that machine's clock."""
    latest: bool
    best: bool
    problem: str
    """Why it cannot be used; empty if it can."""


@dataclass(frozen=True, slots=True)
class WorkerFolder:
    """What one worker has kept, of the whole model or of one stage."""

    path: str
    run: str
    """Its id; empty if nothing says it."""
    method: str
    """Empty if there is no checkpoint."""
    weights: bool
    """Whether there is ``model.safetensors``."""
    checkpoints: tuple[Checkpoint, ...]
    """The newest first."""

    @property
    def newest(self) -> Checkpoint | None:
        """The newest one that is whole."""
        return next((one for one in self.checkpoints if not one.problem), None)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A worker's folder, or that of a local run with all of its workers."""

    path: str
    local: bool
    workers: tuple[WorkerFolder, ...]

    @property
    def resume(self) -> str:
        """The command that goes on from here; empty if there is nothing to go on from, or the run is finished."""
        newest = [one for worker in self.workers if (one := worker.newest) is not None]
        if not newest or all(is_finished(one) for one in newest):
            return ""
        return f"decentral {'local' if self.local else 'worker'} --resume {shlex.quote(self.path)}"


def is_finished(one: Checkpoint) -> bool:
    """Whether the run was over when it was written."""
    return one.round is not None and one.rounds is not None and one.round >= one.rounds


def runs_in(folder: Path, *, digests: bool) -> list[RunFolder]:
    """The runs in a folder: a worker's, a local run's, or one with many of these side by side.

    Args:
        folder: exists.
        digests: whether to read all files and compare their digests; else their sizes are looked at.

    Raises:
        OSError: the folder cannot be read.
    """
    if (own := _run_in(folder, digests=digests)) is not None:
        return [own]
    inner = sorted(path for path in folder.iterdir() if path.is_dir())[:_MAX_FOLDERS]
    found = []
    for path in inner:
        with contextlib.suppress(OSError):  # somebody else's
            found.append(_run_in(path, digests=digests))
    return [run for run in found if run is not None]


def _run_in(folder: Path, *, digests: bool) -> RunFolder | None:
    local = (folder / WORKERS).is_dir()
    paths = folders_of(folder)[1:] if local else [folder]
    # Of a pipeline each stage has a tree of its own.
    trees = [tree for path in paths for tree in (path, *sorted(path.glob("stage-*"))) if tree.is_dir()]
    workers = [_worker_in(tree, digests=digests) for tree in trees if _has_something(tree)]
    return RunFolder(str(folder), local, tuple(workers)) if workers else None


def _has_something(tree: Path) -> bool:
    return has_run(tree) or (tree / CHECKPOINTS).is_dir()


def _worker_in(folder: Path, *, digests: bool) -> WorkerFolder:
    found = found_in(folder)
    pointers = {name: pointed_at(folder, name) for name in (LATEST, BEST)}
    rows = tuple([_checkpoint(one, pointers, digests=digests) for one in found])
    whole: Sequence[manifest.Manifest] = [one.manifest for one in found if one.manifest is not None]
    run, method = (whole[0].run, whole[0].method) if whole else (run_of(folder), "")
    return WorkerFolder(str(folder), run, method, (folder / MODEL).is_file(), rows)


def _checkpoint(one: Found, pointers: dict[str, str], *, digests: bool) -> Checkpoint:
    problem, of = one.problem, one.manifest
    if digests and of is not None:
        try:
            manifest.verify(one.folder, of)
        except OSError as err:
            problem = err.strerror or str(err)
    return Checkpoint(
        name=one.folder.name,
        run=of.run if of else "",
        step=of.step if of else None,
        round=of.round if of else None,
        rounds=of.rounds if of else None,
        val_loss=of.val_loss if of else None,
        size_bytes=of.size_bytes if of else _size_of(one.folder),
        time=of.time if of else None,
        latest=one.folder.name == pointers[LATEST],
        best=one.folder.name == pointers[BEST],
        problem=problem,
    )


def _size_of(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            total += path.lstat().st_size if path.is_file() else 0
    return total
