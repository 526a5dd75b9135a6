"""The stages of a run that lie on this worker's disk: checkpoints to come back from, and what it leaves at the end.

Of each stage there is the tree that a worker of the whole model has, in a folder of its own. A checkpoint of the whole
model, of a run that had no stages before, is one of the head and one of all blocks.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from decentral.engine.recut import out_of_whole
from decentral.errors import ConfigError
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import HEAD, OF_WHOLE, Span, Stored
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
        whole: whether checkpoints of the whole model count, from before the run had stages.
    """

    def __init__(
        self,
        folder: Path,
        about: About,
        cut: CutInForce,
        keep: int,
        disk: Disk,
        wall: "Callable[[], float]",
        *,
        whole: bool = True,
    ) -> None:
        self._folder = folder
        self._about = about
        self._cut = cut
        self._keep = max(keep, MIN_KEPT)
        self._disk = disk
        self._wall = wall
        self._damaged: set[Path] = set()
        stages = {int(path.name.removeprefix(_STAGE)) for path in folder.glob(f"{_STAGE}[0-9]*")}
        trees = [*[self._base(stage) for stage in sorted(stages)], *([folder] if whole else [])]
        self._stored = {base: self._found(base) for base in trees}

    def stored(self) -> Sequence[Stored]:
        """See ``Store.stored``."""
        return [one for found in list(self._stored.values()) for one, _ in found]

    def verify(self) -> None:
        """See ``Store.verify``."""
        for base, found in list(self._stored.items()):
            for path in dict.fromkeys(path for _, path in found):
                try:
                    manifest.verify(path, manifest.read(path))
                except (OSError, ConfigError) as err:
                    _log.warning("checkpoint %s cannot be used: %s", path, err)
                    self._forget(base, path)

    def load(self, one: Stored) -> "WorkerState":
        """See ``Store.load``."""
        for base, found in list(self._stored.items()):
            for other, path in found:
                if other == one:
                    state = self._read(base, path)
                    return out_of_whole(state, self._cut, one.span) if base == self._folder else state
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
        self._stored[base] = self._found(base)
        return written

    def _read(self, base: Path, path: Path) -> "WorkerState":
        try:
            return checkpoint.read(path)
        except OSError:
            self._forget(base, path)
            raise

    def _forget(self, base: Path, path: Path) -> None:
        """Do not come back to what turned out to be damaged."""
        self._damaged.add(path)
        self._stored[base] = [(one, other) for one, other in self._stored[base] if other != path]

    def _base(self, stage: int) -> Path:
        return self._folder / stage_folder(stage)

    def _found(self, base: Path) -> list[tuple[Stored, Path]]:
        """The checkpoints in one tree, the newest first.

        What is at a later step than a newer one is of a life that was given up: the run went on from an earlier step.
        """
        found: list[tuple[Stored, Path]] = []
        step = math.inf
        for one in manifest.found_in(base):
            about = one.manifest
            if about is None or about.run != self._about.run or one.folder in self._damaged or about.step >= step:
                continue
            span, own = self._said_by(one.folder / MODEL)
            if span is None:
                continue
            if base == self._folder:
                # Workers with one anchor have each their own work on top: all stages are to come from the same one.
                name = OF_WHOLE.join(
                    [about.state, *(about.files[file].digest for file in (manifest.OWN, manifest.TRAINER))]
                )
                found += [(Stored(*each, about.step, name, True), one.folder) for each in (HEAD, span)]
            elif (span == HEAD) == (base == self._base(0)):
                found.append((Stored(*span, about.step, about.state, own), one.folder))
            else:
                continue
            step = about.step
        return found

    def _said_by(self, path: Path) -> tuple[Span | None, bool]:
        """The blocks of which a file has weights, ``None`` if it cannot be read; whether this worker held them."""
        try:
            with safe_open(path, framework="pt") as file:
                return self._cut.span_of(file.keys()), _KEPT not in (file.metadata() or {})
        except (OSError, SafetensorError):
            return None, False
