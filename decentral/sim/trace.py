"""What happened in a run, in order: a digest to compare two runs by, and the last entries for people."""

import hashlib
from collections import deque
from typing import Any

#: Entries that go into the hash at a time; one by one costs more.
_FOLD_EVERY = 4096


class Trace:
    """An append-only log in bounded memory. Two runs of one seed have the same digest; if not, something is not seeded.

    Args:
        keep: how many of the latest entries ``tail`` can show.
    """

    def __init__(self, keep: int = 2000) -> None:
        self._tail: deque[tuple[Any, ...]] = deque(maxlen=keep)
        self._unfolded: list[tuple[Any, ...]] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self.num_entries = 0

    def add(self, entry: tuple[float | str, ...]) -> None:
        """Append an entry: virtual time in seconds first, then what happened."""
        self.num_entries += 1
        self._tail.append(entry)
        self._unfolded.append(entry)
        if len(self._unfolded) >= _FOLD_EVERY:
            self._hash.update(repr(self._unfolded).encode())
            self._unfolded.clear()

    def digest(self) -> str:
        """Digest of all entries so far, in hexadecimal."""
        digest = self._hash.copy()
        digest.update(repr(self._unfolded).encode())
        return digest.hexdigest()

    def tail(self, count: int = 50) -> str:
        """The last ``count`` entries, one to a line."""
        lines = [f"{entry[0]:12.6f}  {' '.join(str(part) for part in entry[1:])}" for entry in self._tail]
        return "\n".join(lines[-count:])
