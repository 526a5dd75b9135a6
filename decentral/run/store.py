"""The stages of a run that lie on this worker's disk: checkpoints to come back from, and what it leaves at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import Tensor

from decentral import __version__
from decentral.monitor.events import Saved
from decentral.monitor.journal import Journal
from decentral.run.disk import Disk
from decentral.run.folder import stage_file
from decentral.state.files import bytes_of, load_weights, save_weights

if TYPE_CHECKING:
    from decentral.engine.options import Outcome


class StageFiles:
    """Implements ``engine.takeover.Store`` in a worker's folder, a file for each stage.

    Args:
        folder: of the worker.
        run_id: files of other runs do not count, and are replaced.
        num_stages: of the run, beside the head.
        journal: told what is saved.
        disk: told what is not.
    """

    def __init__(self, folder: Path, run_id: str, num_stages: int, journal: Journal, disk: Disk) -> None:
        self._folder = folder
        self._run_id = run_id
        self._num_stages = num_stages
        self._journal = journal
        self._disk = disk
        self._stages = {stage for stage in range(num_stages + 1) if self._is_ours(self._path(stage))}

    def stages(self) -> frozenset[int]:
        """See ``Store.stages``; one that turned out to be broken does not come back."""
        return frozenset(self._stages)

    def load(self, stage: int) -> Mapping[str, Tensor]:
        """See ``Store.load``."""
        try:
            return load_weights(self._path(stage))[0]
        except OSError:
            self._stages.discard(stage)
            raise

    def save(self, stage: int, outcome: "Outcome") -> None:
        """See ``Store.save``."""
        path = self._path(stage)
        metadata = {
            "run": self._run_id,
            "round": str(outcome.round),
            "stage": str(stage),
            "stages": str(self._num_stages),
            "digest": outcome.digest,
            "decentral": __version__,
        }
        num_bytes = bytes_of(outcome.anchors)
        if self._disk.write(path, num_bytes, lambda: save_weights(path, outcome.anchors, metadata)):
            self._stages.add(stage)
            self._journal.record(Saved(str(path), outcome.round))

    def _path(self, stage: int) -> Path:
        return self._folder / stage_file(stage)

    def _is_ours(self, path: Path) -> bool:
        """Whether there is a checkpoint of this very run."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            return False
        return metadata.get("run") == self._run_id and metadata.get("stages") == str(self._num_stages)
