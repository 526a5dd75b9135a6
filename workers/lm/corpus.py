"""Text from files on this machine as random windows of bytes. It knows nothing of models or swarms.

Every worker reads its own files and draws its own stream; nobody coordinates. The split into training and held-out
text depends on names alone, so workers with the same files hold out the same text and none trains on it.

Legend: B = sequences, T = positions in a sequence.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decentral.errors import DataError
from decentral.workers.files import DataFile, expand, walk

HELD_OUT_FRACTION = 0.1
MAX_TOTAL_BYTES = 2 * 2**30
#: Stands between two files, so that the model learns where a file begins. It occurs in no text.
SEPARATOR = 0

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and held-out text, each one array of bytes."""

    train: Bytes
    held_out: Bytes
    num_files: int
    num_skipped: int
    """Files in folders that were left out: not text, or not readable."""

    def batch(self, stream_seed: int, step: int, num_sequences: int, num_positions: int) -> Tensor:
        """Random training windows: a function of the seed and the step, so a resumed run goes on with its own stream.

        Args:
            stream_seed: the worker's own seed, >= 0.
            step: global inner step.
            num_sequences: B.
            num_positions: T.

        Returns:
            int64 [B, T].
        """
        random = np.random.default_rng((stream_seed, step))
        starts_B = random.integers(0, len(self.train) - num_positions + 1, size=num_sequences)
        return _windows(self.train, starts_B, num_positions)

    def held_out_batch(self, index: int, num_batches: int, num_sequences: int, num_positions: int) -> Tensor:
        """Batch ``index`` of ``num_batches`` that together lie evenly over the held-out text; int64 [B, T]."""
        starts = np.linspace(0, len(self.held_out) - num_positions, num_batches * num_sequences).astype(np.int64)
        return _windows(self.held_out, starts[index * num_sequences : (index + 1) * num_sequences], num_positions)

    def held_out_digest(self) -> str:
        """16 hex characters; workers with the same digest measure their loss on the same text."""
        return hashlib.blake2b(self.held_out.data, digest_size=8).hexdigest()

    def describe(self) -> str:
        """One line for people."""
        skipped = f" ({self.num_skipped} skipped: not text or not readable)" if self.num_skipped else ""
        return (
            f"{self.num_files:,} files{skipped}, {len(self.train):,} bytes to train on, "
            f"{len(self.held_out):,} held out (digest {self.held_out_digest()})"
        )


def load_corpus(data: tuple[str, ...], num_positions: int) -> Corpus:
    """Read the text under ``data`` and split it.

    A file is held out if the hash of its path, relative to the folder or the fixed part of the pattern that led to
    it, falls into the lowest tenth. Where that leaves either part shorter than one window (a single file, or a few),
    the last tenth of every file is held out instead.

    Args:
        data: files, folders (searched recursively, hidden names left out) and glob patterns; empty for the ``.py``
            sources of the running Python's standard library.
        num_positions: shortest window that both parts must hold.

    Raises:
        DataError: a path is missing, unreadable or not text; there is too little text, or more than 2 GiB.
    """
    files, num_skipped = _find(data)
    contents: list[tuple[DataFile, Bytes]] = []
    total_bytes = 0
    for file in files:
        content = _read(file, limit=MAX_TOTAL_BYTES - total_bytes)
        if content is None:
            num_skipped += 1
        elif len(content):
            contents.append((file, content))
            total_bytes += len(content)
    train = [content for file, content in contents if not is_held_out(file.key)]
    held_out = [content for file, content in contents if is_held_out(file.key)]
    if min(_joined_size(train), _joined_size(held_out)) < num_positions:
        cuts = [len(content) - int(len(content) * HELD_OUT_FRACTION) for _, content in contents]
        train = [content[:cut] for (_, content), cut in zip(contents, cuts, strict=True)]
        held_out = [content[cut:] for (_, content), cut in zip(contents, cuts, strict=True)]
    if min(_joined_size(train), _joined_size(held_out)) < num_positions:
        raise DataError(
            f"{_shown(data)} holds {total_bytes:,} bytes of text in {len(contents)} files",
            hint=f"A tenth of it is held out and both parts must hold a window of {num_positions} bytes: give at least "
            f"{num_positions * 11:,} bytes, or lower model.context.",
        )
    return Corpus(_join(train), _join(held_out), len(contents), num_skipped)


def is_held_out(key: str) -> bool:
    """Whether the file with this relative path (with ``/`` between its parts) belongs to the held-out text."""
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_FRACTION * 2**64


def _find(data: tuple[str, ...]) -> tuple[list[DataFile], int]:
    """The files under ``data`` without repetitions, and how many entries of folders were no plain files."""
    if not data:
        root = Path(sysconfig.get_path("stdlib"))
        sources = [file for file in walk(root) if file.path.suffix == ".py"]
        if not sources:
            raise DataError(
                f"the standard library at {str(root)!r} has no .py sources",
                hint="This Python was installed without them. Give your own text with --data PATH.",
            )
        return sources, 0
    found: dict[Path, DataFile] = {}
    num_skipped = 0
    for text in data:
        for file in expand(text):
            if not file.path.is_file():
                num_skipped += 1
                continue
            found.setdefault(file.path.resolve(), file)
    return list(found.values()), num_skipped


def _read(file: DataFile, limit: int) -> Bytes | None:
    """The content of a text file; ``None`` for one that was found (not named) and is not text or not readable."""
    try:
        size = file.path.stat().st_size
        if size > limit:
            raise DataError(
                f"more than {MAX_TOTAL_BYTES / 2**30:g} GiB of text at {str(file.path)!r} ({size:,} bytes)",
                hint="The corpus is kept in memory. Give each worker a part of it: every one draws its own stream.",
            )
        content = np.fromfile(file.path, dtype=np.uint8)
    except OSError as error:
        if file.named:
            raise DataError(
                f"cannot read {str(file.path)!r}: {error.strerror}", hint="Check the permissions of the file."
            ) from error
        return None
    if not (content == SEPARATOR).any():
        return content
    if file.named:
        raise DataError(
            f"{str(file.path)!r} is not text: it holds a zero byte",
            hint="Unpack or convert it first; UTF-16 text must become UTF-8.",
        )
    return None


def _joined_size(contents: list[Bytes]) -> int:
    return sum(len(content) + 1 for content in contents)


def _join(contents: list[Bytes]) -> Bytes:
    """One array, each content behind a separator."""
    joined = np.full(_joined_size(contents), SEPARATOR, dtype=np.uint8)
    start = 0
    for content in contents:
        joined[start + 1 : start + 1 + len(content)] = content
        start += 1 + len(content)
    return joined


def _windows(text: Bytes, starts_B: NDArray[np.int64], num_positions: int) -> Tensor:
    windows_BT = text[starts_B[:, None] + np.arange(num_positions)]
    return torch.from_numpy(windows_BT.astype(np.int64))


def _shown(data: tuple[str, ...]) -> str:
    return ", ".join(data) if data else "the standard library"
