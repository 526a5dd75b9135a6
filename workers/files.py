"""Files that a user's data paths stand for: files, folders and glob patterns. It reads none of them."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from decentral.errors import DataError


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, and how the user came to name it."""

    path: Path
    key: str
    """Path relative to the folder it was found in, with ``/`` between its parts: the same on every machine."""
    named: bool
    """Whether the user named this very file."""


def expand(text: str) -> Iterator[DataFile]:
    """The files that one data path stands for, in the order of their names.

    Raises:
        DataError: there is none, or a folder that cannot be read.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise DataError(f"the folder {text!r} is not readable", hint="Check its permissions.")
        yield from walk(path)
    elif path.exists():
        yield DataFile(path, path.name, named=True)
    elif glob.has_magic(text):
        parts = path.parts
        depth = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:depth])
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(
                f"no file matches {text!r}", hint="Data paths are local to each machine; ** searches subfolders."
            )
        yield from (
            DataFile(match, match.relative_to(root).as_posix(), named=False) for match in matches if match.is_file()
        )
    else:
        raise DataError(
            f"the data path {text!r} does not exist",
            hint="Data paths are local to each machine: give a file, a folder or a quoted pattern that exists here.",
        )


def walk(root: Path) -> Iterator[DataFile]:
    """Files below ``root`` in the order of their names, without hidden ones, linked folders and installed packages."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and name not in ("site-packages", "dist-packages")
        )
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(folder, name)
                yield DataFile(path, path.relative_to(root).as_posix(), named=False)
