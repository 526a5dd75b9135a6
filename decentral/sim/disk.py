"""The disk of a simulated machine: what was saved on it survives the machine's crash. It knows nobody who saves.

Of each thing it keeps the newest versions, as a folder of checkpoints does; a version that was damaged after it was
saved is noticed when it is read, and the one before it is taken.
"""

import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

#: Versions of one thing that are kept.
KEEP = 3


class Disk(Generic[T]):
    """Saved things, by name; faults change ``errors`` and call ``damage`` and ``wipe``."""

    def __init__(self) -> None:
        self.errors: list[int] = []
        """Why a save fails (``errno.ENOSPC``, ``errno.EROFS``); empty if it does not."""
        self.num_refused = 0
        self._versions: dict[str, deque[tuple[T, bool]]] = {}

    def save(self, name: str, thing: T) -> None:
        """Keep the newest version of a thing. It must not change any more.

        Raises:
            OSError: the disk is full, or may not be written to.
        """
        if self.errors:
            self.num_refused += 1
            raise OSError(self.errors[-1], os.strerror(self.errors[-1]))
        self._versions.setdefault(name, deque(maxlen=KEEP)).append((thing, True))

    def names(self) -> frozenset[str]:
        """What can be loaded."""
        return frozenset(name for name in self._versions if self.load(name) is not None)

    def load(self, name: str) -> T | None:
        """The newest version that is whole, if there is any."""
        return next((thing for thing, is_whole in reversed(self._versions.get(name, ())) if is_whole), None)

    def damage(self) -> bool:
        """Spoil the newest version of everything; whether there was any."""
        for versions in self._versions.values():
            versions[-1] = (versions[-1][0], False)
        return bool(self._versions)

    def wipe(self) -> None:
        """Forget everything."""
        self._versions.clear()
