"""Whether what a worker learns gets onto its disk. Training goes on without: its user is told once, and so are others.

Knows neither what is written nor how.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from decentral.errors import DiskError
from decentral.monitor.figures import size

T = TypeVar("T")
_log = logging.getLogger(__name__)
#: Of a note, which has to fit into a record.
_MAX_NOTE = 160


class Disk:
    """The disk of one worker, as its last writes found it."""

    def __init__(self) -> None:
        self._problems: dict[Path, tuple[str, DiskError]] = {}
        """Of what could not be written when it was last due, with the reason in short."""

    @property
    def problem(self) -> DiskError | None:
        """Why something that this worker has is not on its disk; ``None`` if all is."""
        return next((error for _, error in list(self._problems.values())), None)

    def note(self) -> str:
        """The same for others, who need not know the folders of this machine; empty if all is well."""
        return next((f"cannot save: {reason}"[:_MAX_NOTE] for reason, _ in list(self._problems.values())), "")

    def write(self, path: Path, num_bytes: int, work: Callable[[], T]) -> T | None:
        """Do the ``work`` of writing ``path``; that it cannot be done is logged the first time.

        Args:
            path: what is written.
            num_bytes: that it takes, for people.
            work: raises OSError if the disk is full or read-only; then what was there before is intact.

        Returns:
            What ``work`` returns; ``None`` if it cannot be done.
        """
        try:
            done = work()
        except OSError as err:
            error = cannot_write(path, num_bytes, err)
            if path not in self._problems:
                _log.error("%s Training goes on; what was saved before is kept.", error.message)
            self._problems[path] = err.strerror or str(err), error
            return None
        if self._problems.pop(path, None) is not None:
            _log.warning("%s is written again", path)
        return done


def cannot_write(path: Path, num_bytes: int, err: OSError) -> DiskError:
    """What the user is told of a file or folder that takes so many bytes, 0 for unknown."""
    text = f"Cannot write {path}: {err.strerror or err}."
    try:
        free = size(shutil.disk_usage(path.parent).free)
    except OSError:  # the folder is gone
        free = "nothing"
    return DiskError(
        f"{text} It takes {size(num_bytes)}, and {free} is free." if num_bytes else f"{text} There, {free} is free.",
        hint="Make room there or choose another folder with --out. What was saved before is intact; what came after it "
        "is lost here, but the other workers of the run have theirs.",
    )
