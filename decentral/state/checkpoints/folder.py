"""The checkpoints in a worker's folder: written aside and renamed, the newest few and the best kept, verified on read.

Whatever ends the process in the middle of it, what is under the name of a checkpoint is whole, and the one before it is
still there. What may be lying about afterwards begins with a dot, and is put in order by the next save.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from decentral.errors import ConfigError
from decentral.state.checkpoints import manifest as manifests
from decentral.state.checkpoints.checkpoint import About, TrainerStateError, read, sync, write
from decentral.state.checkpoints.manifest import (
    BEST,
    CHECKPOINTS,
    LATEST,
    MODEL,
    SET_ASIDE,
    Manifest,
    found_in,
    name_of,
    pointed_at,
)
from decentral.state.worker_state import WorkerState, Written

T = TypeVar("T")
_log = logging.getLogger(__name__)
#: Half written or half removed; and what a new one of its step takes the place of.
_PART, _OLD = "part", "old"
_LEFT_OVER = re.compile(rf"\.(.+)\.({_PART}|{_OLD})")


class Checkpoints:
    """Writes the checkpoints of one worker, whose folder nobody else writes to.

    Args:
        base: the worker's folder.
        about: the run that they are of. Checkpoints of other runs are neither counted nor removed.
        keep: so many of the newest, at least 1; the best one besides.
        wall: the time, seconds since 1970.
        beside: writes further files into the folder of a checkpoint, of which the manifest says nothing.
    """

    def __init__(
        self,
        base: Path,
        about: About,
        keep: int,
        wall: Callable[[], float],
        beside: Callable[[Path, WorkerState], None] | None = None,
    ) -> None:
        self._base = base
        self._folder = base / CHECKPOINTS
        self._about = about
        self._keep = keep
        self._wall = wall
        self._beside = beside
        self._warned = False

    def save(self, state: WorkerState) -> Written:
        """Write a checkpoint, in place of one of the same step, and remove those that are too many.

        A trainer's state that cannot be kept is left out, which is logged once.

        Returns:
            Where it is, and its size.

        Raises:
            OSError: the disk is full or read-only. The checkpoints from before are as they were.
            StateError: the state cannot be kept; as above.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        _tidy(self._folder)
        best_name, best = self._best()
        name, better = name_of(state.step), _is_better(state.val_loss, best)
        if best is not None and best_name == name and not better:
            if state.digest == best.state and best.val_loss is not None:  # the same anchors, whose loss is known
                state = dataclasses.replace(state, val_loss=best.val_loss)
            else:
                name = f"{name}-2"
        part = _hidden(self._folder / name, _PART)
        try:
            manifest = self._write(part, state)
            if self._beside is not None:
                self._beside(part, state)
            _put_in_place(part, self._folder / name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _point(self._base, LATEST, name)
        if better:
            _point(self._base, BEST, name)
        _link(self._base, self._folder / name / MODEL)
        self._remove_old()
        return Written(str(self._folder / name), manifest.size_bytes)

    def _write(self, part: Path, state: WorkerState) -> Manifest:
        sequence = 1 + max((one.manifest.sequence for one in found_in(self._base) if one.manifest), default=0)
        part.mkdir()
        try:
            return write(part, state, self._about, sequence, self._wall())
        except TrainerStateError as err:
            if not self._warned:
                _log.warning("%s; after a resume the inner optimizer starts anew", err)
            self._warned = True
        shutil.rmtree(part)
        part.mkdir()
        return write(part, dataclasses.replace(state, trainer={}), self._about, sequence, self._wall())

    def _best(self) -> tuple[str, Manifest | None]:
        """The best checkpoint of this run so far, as far as it can be read."""
        name = pointed_at(self._base, BEST)
        try:
            found = manifests.read(self._folder / name) if name else None
        except (OSError, ConfigError):
            found = None
        return name, found if found is not None and found.run == self._about.run else None

    def _remove_old(self) -> None:
        """Keep the newest and the best of this run; what is damaged goes when so many whole ones are there."""
        kept, best = 0, pointed_at(self._base, BEST)
        for one in found_in(self._base):
            if one.refused or (one.manifest and one.manifest.run != self._about.run):
                continue
            if one.manifest and kept < self._keep:
                kept += 1
            elif one.folder.name != best and kept == self._keep:
                gone = _hidden(one.folder, _PART)
                os.rename(one.folder, gone)
                _remove(gone)


def newest(base: Path, run: str) -> tuple[Path, WorkerState]:
    """The newest checkpoint of a run that is whole, every byte of it. Others that come before it are named in the log.

    Args:
        base: the folder of a worker that does not run.
        run: its id.

    Raises:
        ConfigError: there is none; or there is one of another format, and to go back behind it would lose what it
            holds.
    """
    return _newest(base, run, lambda folder, _: (folder, read(folder)))


def newest_manifest(base: Path, run: str) -> Manifest:
    """What the newest checkpoint of a run says of itself that is whole as far as sizes tell; see ``newest``.

    Raises:
        ConfigError: as there.
    """
    return _newest(base, run, lambda _, manifest: manifest)


def _newest(base: Path, run: str, take: Callable[[Path, Manifest], T]) -> T:
    """What is taken from the newest checkpoint of which it can be; ``take`` raises OSError for a damaged one."""
    with contextlib.suppress(OSError):  # what cannot be put in order can still be read
        _tidy(base / CHECKPOINTS)
    problems = []
    for one in sorted(found_in(base), key=lambda one: one.manifest is not None):
        problem = one.problem
        if one.refused is not None:
            raise one.refused
        if one.manifest is not None and one.manifest.run != run:
            problem = f"it is of run {one.manifest.run}"
        if one.manifest is not None and not problem:
            try:
                return take(one.folder, one.manifest)
            except OSError as err:
                problem = err.strerror or str(err)
        _log.warning("checkpoint %s cannot be used: %s", one.folder, problem)
        problems.append(f"{one.folder.name}: {problem}")
    raise ConfigError(
        f"There is no checkpoint of {run} in {base} to resume from"
        + (f" ({'; '.join(problems)})." if problems else "."),
        hint="Give the folder of another worker of this run, or begin a new run in another folder.",
    )


def set_aside(base: Path, names: Sequence[str]) -> None:
    """Take checkpoints out of a run into ``SET_ASIDE``, so that it goes on from the newest of the others.

    Nothing is deleted. Whatever ends it in the middle, it can be done again.

    Args:
        base: the folder of a worker that does not run.
        names: of checkpoints in it, the newest first.

    Raises:
        OSError: the disk is read-only or full.
    """
    aside = base / SET_ASIDE
    aside.mkdir(exist_ok=True)
    for name in names:
        places = (aside / (name if not number else f"{name}-again-{number}") for number in itertools.count())
        os.rename(base / CHECKPOINTS / name, next(place for place in places if not place.exists()))
    if pointed_at(base, BEST) in names:  # else the next one of that step would pass for it
        (base / CHECKPOINTS / BEST).unlink()
    left = next((one.folder for one in found_in(base) if one.manifest is not None), None)
    if left is None:
        (base / CHECKPOINTS / LATEST).unlink(missing_ok=True)
        (base / MODEL).unlink(missing_ok=True)
    else:
        _point(base, LATEST, left.name)
        _link(base, left / MODEL)


def _point(base: Path, pointer: str, name: str) -> None:
    folder = base / CHECKPOINTS
    part = folder / f".{pointer}.{_PART}"
    try:
        part.write_text(f"{name}\n", encoding="utf-8")
        sync(part)
        os.replace(part, folder / pointer)
        sync(folder)
    finally:
        part.unlink(missing_ok=True)


def _link(base: Path, weights: Path) -> None:
    """Have the newest weights in the worker's folder as well, at no cost where the disk knows hard links."""
    part = base / f"{MODEL}.{_PART}"
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(weights, part)
        except OSError:
            shutil.copyfile(weights, part)
        os.replace(part, base / MODEL)
    finally:  # a rename onto another name of the same file leaves both
        part.unlink(missing_ok=True)


def _is_better(val_loss: float, best: Manifest | None) -> bool:
    """Whether a validation loss is finite and below the best one's."""
    return math.isfinite(val_loss) and (best is None or best.val_loss is None or val_loss < best.val_loss)


def _hidden(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _put_in_place(part: Path, target: Path) -> None:
    """Give a whole checkpoint its name; one of that name is out of the way only for a moment."""
    old = _hidden(target, _OLD)
    if target.exists():
        os.rename(target, old)
    os.rename(part, target)
    sync(target.parent)
    _remove(old)


def _tidy(folder: Path) -> None:
    """Put in order what an end in the middle of a save has left."""
    for path in list(folder.iterdir()):
        found = _LEFT_OVER.fullmatch(path.name)
        if found is None:
            continue
        if found[2] == _OLD and not (folder / found[1]).exists():
            os.rename(path, folder / found[1])
        else:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, or a file in its place, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
