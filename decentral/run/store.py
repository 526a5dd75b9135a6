"""The stages of a run that lie on this worker's disk: checkpoints to come back from, and what it leaves at the end.

Of each stage there is the tree that a worker of the whole model has, in a folder of its own.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from decentral.errors import ConfigError
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import HEAD, Span, Stored
from decentral.run.disk import Disk
from decentral.run.folder import stage_folder
from decentral.state.checkpoints import checkpoint, manifest
from decentral.state.checkpoints.checkpoint import About, StateError
from decentral.state.checkpoints.folder import Checkpoints
from decentral.state.checkpoints.manifest import MODEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from decentral.state.worker_state import WorkerState, Written

_log = logging.getLogger(__name__)
#: So many of the newest are needed for one that all stages share, however they measure their pace.
MIN_KEPT = 3
#: What weights say of themselves that are kept for others.
_KEPT = "kept"
_STAGE = stage_folder("")


class StageFiles:
    """Implements ``engine.disks.Store`` in a worker's folder.

    Args:
        folder: of the worker.
        about: the run; checkpoints of other runs do not count.
        cut: of the run. Checkpoints of another one count as what they have.
        keep: checkpoints of each stage, at least ``MIN_KEPT``.
        disk: told what is not written.
        wall: the time, seconds since 1970.
    """

    def __init__(
        self, folder: Path, about: About, cut: CutInForce, keep: int, disk: Disk, wall: "Callable[[], float]"
    ) -> None:
        self._folder = folder
        self._about = about
        self._cut = cut
        self._keep = max(keep, MIN_KEPT)
        self._disk = disk
        self._wall = wall
        self._damaged: set[Path] = set()
        stages = {int(path.name.removeprefix(_STAGE)) for path in folder.glob(f"{_STAGE}[0-9]*")}
        self._stored = {stage: self._found(stage) for stage in sorted(stages)}

    def stored(self) -> Sequence[Stored]:
        """See ``Store.stored``."""
        return [one for found in list(self._stored.values()) for one, _ in found]

    def verify(self) -> None:
        """See ``Store.verify``."""
        for stage, found in list(self._stored.items()):
            for _, path in found:
                try:
                    manifest.verify(path, manifest.read(path))
                except (OSError, ConfigError) as err:
                    _log.warning("checkpoint %s cannot be used: %s", path, err)
                    self._forget(stage, path)

    def load(self, one: Stored) -> "WorkerState":
        """See ``Store.load``."""
        for stage, found in list(self._stored.items()):
            for other, path in found:
                if other == one:
                    return self._read(stage, path)
        raise FileNotFoundError(f"there is none of the blocks {one.first} to {one.stop} at step {one.step}")

    def save(self, stage: int, state: "WorkerState", *, own: bool = True) -> "Written | None":
        """See ``Store.save``."""
        labels = {"stage": str(stage), "stages": str(self._cut.num_stages), "cut": str(self._cut.number)}
        labels |= {} if own else {_KEPT: "for others"}
        about = About(self._about.run, self._about.method, self._about.rounds, labels)
        base = self._base(stage)
        checkpoints = Checkpoints(base, about, self._keep, self._wall)
        try:
            written = self._disk.write(base, state.tensor_bytes, lambda: checkpoints.save(state))
        except StateError:  # not finite: what is there is better
            return None
        self._stored[stage] = self._found(stage)
        return written

    def _read(self, stage: int, path: Path) -> "WorkerState":
        try:
            return checkpoint.read(path)
        except OSError:
            self._forget(stage, path)
            raise

    def _forget(self, stage: int, path: Path) -> None:
        """Do not come back to what turned out to be damaged."""
        self._damaged.add(path)
        self._stored[stage] = [(one, other) for one, other in self._stored[stage] if other != path]

    def _base(self, stage: int) -> Path:
        return self._folder / stage_folder(stage)

    def _found(self, stage: int) -> list[tuple[Stored, Path]]:
        """The checkpoints of a stage, the newest first.

        What is at a later step than a newer one is of a life that was given up: the run went on from an earlier step.
        """
        found: list[tuple[Stored, Path]] = []
        for one in manifest.found_in(self._base(stage)):
            about = one.manifest
            if about is None or about.run != self._about.run or one.folder in self._damaged:
                continue
            span, own = self._said_by(one.folder / MODEL)
            if (not found or about.step < found[-1][0].step) and span is not None and (span == HEAD) == (stage == 0):
                found.append((Stored(*span, about.step, about.state, own), one.folder))
        return found

    def _said_by(self, path: Path) -> tuple[Span | None, bool]:
        """The blocks of which a file has weights, ``None`` if it cannot be read; whether this worker held them."""
        try:
            with safe_open(path, framework="pt") as file:
                return self._cut.span_of(file.keys()), _KEPT not in (file.metadata() or {})
        except (OSError, SafetensorError):
            return None, False
