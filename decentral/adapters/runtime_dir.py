"""A private folder for a node's sockets, removed at the end, and by the next node if this one is killed.

A folder belongs to whoever holds the lock on the file in it. Unlike a process id in a name, the kernel gives a lock
back with the process, never hands it to a stranger, and shows it across containers that share ``/tmp``.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "decentral-node-"
_LOCK = "lock"
#: The kernel takes 107 bytes for the path of a socket; our folder's name and hivemind's longest socket need 51.
_MAX_PARENT_BYTES = 56
#: A folder this young may belong to a node that is about to lock it.
_GRACE_S = 60.0


class RuntimeDir:
    """A new folder, readable by its owner only, locked until ``close``."""

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent)) > _MAX_PARENT_BYTES:
            parent = Path("/tmp")
        _remove_stale(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder and everything in it. Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_stale(parent: Path) -> None:
    """Remove the folders of nodes that were killed."""
    for folder in parent.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _GRACE_S:
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
