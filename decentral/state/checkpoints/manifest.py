"""What a checkpoint says of itself: whose it is, where in the run, and the size and digest of every file.

    checkpoints/step_000500/model.safetensors         the weights, as an export has them
                           /trainer_state/...         everything else
                           /manifest.json             this
    checkpoints/latest, best                          the name of one of them

Nothing in a manifest is believed before it is checked, and it is written last: a folder without one is no checkpoint.
It knows no tensor, so that a list of checkpoints costs no more than reading their manifests. Must not import torch.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from decentral.errors import ConfigError

#: Of everything in a checkpoint. Another one, older or newer, is refused with words: there is no guessing.
FORMAT = 1
CHECKPOINTS = "checkpoints"
#: Those that a run does not go on from any more.
SET_ASIDE = "set-aside"
LATEST, BEST = "latest", "best"
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
TRAINER_STATE = "trainer_state"
OUTER, OWN = f"{TRAINER_STATE}/outer.safetensors", f"{TRAINER_STATE}/own.safetensors"
FACTS, TRAINER = f"{TRAINER_STATE}/facts.json", f"{TRAINER_STATE}/trainer.pt"
#: What every checkpoint has, empty or not.
FILES = (MODEL, OUTER, OWN, FACTS, TRAINER)

#: Larger than any manifest, which names five files.
_MAX_BYTES = 1 << 16
#: The second of a step is there only while the first is the best one.
_NAME = re.compile(r"step_\d{6,16}(-2)?")

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Text = Annotated[str, Meta(max_length=256)]


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a checkpoint."""

    size: _Count
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """See the module."""

    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)] = FORMAT
    sequence: _Count
    """Rises by one with each checkpoint of a folder. The newest one is not always that of the highest step."""
    run: _Text
    method: _Text
    step: _Count
    round: _Count
    rounds: _Count
    """Of the whole run."""
    tokens: _Count
    closed: bool
    """See ``WorkerState``, as for ``state``, its ``digest``."""
    state: _Text
    val_loss: float | None
    time: float
    """When it was written: seconds since 1970 by that machine's clock."""
    version: _Text
    """Of decentral."""
    files: Annotated[dict[str, FileEntry], Meta(max_length=len(FILES))]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True, slots=True)
class Found:
    """A folder that has the name of a checkpoint."""

    folder: Path
    manifest: Manifest | None
    """``None`` if it cannot be used."""
    problem: str = ""
    """Why it cannot be used; empty if it can, as far as sizes tell."""
    refused: ConfigError | None = None
    """Another release wrote it, and may read it."""


def name_of(step: int) -> str:
    """The folder of the checkpoint at a step."""
    return f"step_{step:06d}"


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a checkpoint whose other files are on disk.

    Raises:
        OSError: it cannot be written.
    """
    body = msgspec.to_builtins(manifest)
    text = json.dumps({**body, "seal": _seal(body)}, indent=1, allow_nan=False)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        OSError: it is missing or damaged.
        ConfigError: it is of another format than this release's.
    """
    body = _body(folder / MANIFEST)
    seal = body.pop("seal", None)
    if seal != _seal(body):
        raise OSError(f"{MANIFEST} is damaged: it is not as it was written")
    if body.get("format") != FORMAT:
        raise ConfigError(
            f"The checkpoint {folder} has format {body.get('format')}, and this release of decentral reads format "
            f"{FORMAT} alone.",
            hint=f"decentral {body.get('version')} wrote it: resume with that release, or begin a new run from "
            f"{folder / MODEL}.",
        )
    try:
        manifest = msgspec.convert(body, Manifest, strict=True)
    except msgspec.ValidationError as err:
        raise OSError(f"{MANIFEST} is damaged: {err}") from err
    if manifest.files.keys() != set(FILES):
        raise OSError(f"{MANIFEST} is damaged: it does not name the files of a checkpoint")
    return manifest


def ensure_sizes(folder: Path, manifest: Manifest, names: Iterable[str] = FILES) -> None:
    """Look whether files of a checkpoint are there as a whole, without reading them.

    Raises:
        OSError: one is missing, something else than a file, or shorter or longer than it was written.
    """
    for name in names:
        _ensure_size(folder / name, name, manifest.files[name].size)


def verify(folder: Path, manifest: Manifest, names: Iterable[str] = FILES) -> None:
    """Read files of a checkpoint and compare their digests.

    Raises:
        OSError: names the file that is missing or damaged.
    """
    ensure_sizes(folder, manifest, names)
    for name in names:
        if digest_of(folder / name) != manifest.files[name].digest:
            raise OSError(f"{name} is damaged: its digest is not the manifest's")


def digest_of(path: Path) -> str:
    """128 bits of BLAKE2b over a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def found_in(base: Path) -> list[Found]:
    """The checkpoints in a worker's folder, the newest first; those that cannot be used come last.

    Reads manifests and sizes, and changes nothing.
    """
    found = []
    try:
        folders = [path for path in (base / CHECKPOINTS).iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    for folder in sorted(folders, reverse=True):
        try:
            manifest = read(folder)
            ensure_sizes(folder, manifest)
            found.append(Found(folder, manifest))
        except OSError as err:
            found.append(Found(folder, None, err.strerror or str(err)))
        except ConfigError as err:
            found.append(Found(folder, None, err.message, err))
    return sorted(found, key=lambda one: -1 if one.manifest is None else one.manifest.sequence, reverse=True)


def pointed_at(base: Path, pointer: str) -> str:
    """The name in ``latest`` or ``best``; empty if there is none."""
    try:
        with (base / CHECKPOINTS / pointer).open("rb") as file:
            name = file.read(64).decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return name if _NAME.fullmatch(name) else ""


def _ensure_size(path: Path, name: str, size: int) -> None:
    try:
        found = path.stat()
    except FileNotFoundError as err:
        raise OSError(f"{name} is missing") from err
    if not S_ISREG(found.st_mode):
        raise OSError(f"{name} is no file")
    if found.st_size != size:
        raise OSError(f"{name} has {found.st_size:,} bytes, not {size:,}")


def _body(path: Path) -> dict[str, Any]:
    """A manifest as JSON, not checked further.

    Raises:
        OSError: there is none, or it is no JSON.
    """
    size = path.stat().st_size if path.is_file() else 0
    _ensure_size(path, MANIFEST, min(size, _MAX_BYTES))
    try:
        body = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as err:
        raise OSError(f"{MANIFEST} is damaged: {err}") from err
    if not isinstance(body, dict):
        raise OSError(f"{MANIFEST} is damaged: it is no table")
    return body


def _finite(text: str) -> float:
    """What JSON calls a number, without those that overflow and Python's own extensions."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value


def _seal(body: dict[str, Any]) -> str:
    """The digest of a manifest's own content. How it is made is the same in all formats."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
