"""A file of lines that is bounded: what is full is renamed and kept for a while. Knows nothing of what the lines say.

``journal.jsonl`` is written; ``journal.1.jsonl``, ``journal.2.jsonl`` and so on are full, the highest number newest.
A file is renamed once, when nothing is written to it any more, so a number stands for the same lines for ever.
"""

import contextlib
import errno
import os
import re
from pathlib import Path

#: The bound is shared by the file that is written and so many more.
_NUM_FULL = 3


def file_of(path: Path, number: int) -> Path:
    """Where the lines of ``path`` are once it is full."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def numbers(path: Path) -> list[int]:
    """Of the full files that are there, in rising order."""
    name = re.compile(rf"{re.escape(path.stem)}\.([1-9]\d{{0,11}}){re.escape(path.suffix)}")
    try:
        found = [name.fullmatch(entry) for entry in os.listdir(path.parent)]
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in found if match)


def tail(path: Path, max_bytes: int) -> list[bytes]:
    """The last complete lines of a file and the full ones beside it, of so many bytes at most; none if it is not there.

    Raises:
        OSError: a file cannot be read.
    """
    pieces: list[bytes] = []
    for file in (path, *(file_of(path, number) for number in reversed(numbers(path)))):
        with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - max_bytes))
            data = opened.read(max_bytes)
            pieces.append(data if size <= max_bytes else data[data.find(b"\n") + 1 :])
            max_bytes -= len(data)
        if max_bytes <= 0:
            break
    data = b"".join(reversed(pieces))
    return data[: data.rfind(b"\n") + 1].splitlines()


class BoundedFile:
    """Appends, and throws away the oldest.

    Args:
        path: the file; its folder exists.
        max_bytes: of all files together.

    Raises:
        OSError: the file cannot be opened for appending.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._each = max_bytes // (1 + _NUM_FULL)
        # Unbuffered: a line that was written survives kill -9, and no close can raise for a full disk.
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, data: bytes) -> int:
        """Append whole lines, to one file.

        Returns:
            Bytes written; fewer than there are if the disk is full.

        Raises:
            OSError: nothing was written.
            ValueError: it is closed.
        """
        if len(data) > self._each:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self._path))
        if self._size + len(data) > self._each and not self._file.closed:
            self._turn_over()
        written = self._file.write(data) or 0
        self._size += written
        return written

    def _turn_over(self) -> None:
        """Put the full file aside and begin another one; if that fails half-way, the next call goes on with it."""
        self._size = self._each  # nothing more goes into this one
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path, file_of(self._path, max(numbers(self._path), default=0) + 1))
        full = [file_of(self._path, number) for number in numbers(self._path)]
        sizes = [file.stat().st_size for file in full]
        # The newest stays whatever its size: its number says which one is written now.
        while len(full) > 1 and sum(sizes) + self._each > self._max_bytes:
            os.unlink(full.pop(0))
            sizes.pop(0)
        file = self._path.open("ab", buffering=0)
        self._file.close()
        self._file, self._size = file, 0

    def close(self) -> None:
        """Idempotent; nothing can be written afterwards."""
        self._file.close()


class Follower:
    """Reads the lines of a ``BoundedFile`` in order and each once, while it is written and turned over.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        """Of the file it reads: what is written now has the number that it will get."""
        self._offset = 0

    def lines(self) -> list[bytes]:
        """The complete lines since the last call, or those of them that still are there."""
        lines: list[bytes] = []
        while True:
            full = numbers(self._path)
            newest = max(full, default=0)
            self._number = min(self._number, newest + 1)  # somebody has cleared up
            if self._number <= newest:
                lines += self._complete(file_of(self._path, self._number))
                self._number, self._offset = next((n for n in full if n > self._number), newest + 1), 0
                continue
            offset, read = self._offset, self._complete(self._path)
            if max(numbers(self._path), default=0) == newest:
                return lines + read
            self._offset = offset  # turned over meanwhile: which of the two was read is not known

    def _complete(self, path: Path) -> list[bytes]:
        """From where it is in this file, up to the last end of a line."""
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.splitlines()
