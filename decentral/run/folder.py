"""What lies in the folder of a worker or a run, and how it gets there. Imports no torch."""

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from decentral import __version__
from decentral.config.file import to_toml
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError
from decentral.state.checkpoints.manifest import CHECKPOINTS as CHECKPOINTS
from decentral.state.checkpoints.manifest import MODEL as MODEL

IDENTITY = "identity.key"
#: What `--config` reads back; of a worker and of a local run.
CONFIG = "config.toml"
JOURNAL = "journal.jsonl"
#: What its worker said of itself last: the signed record that the others have of it.
PRESENCE = "presence"
#: The run as a page, written at its end.
REPORT = "report.html"
#: Which run it is of, and where the others were (``book``).
RUN = "run.json"
#: Of a file of weights.
SUFFIX = ".safetensors"
#: The way into its private swarm (``access``).
ACCESS = "access.json"
#: In the folder of a local run.
WORKERS = "workers"

#: What the configuration of a run begins with; its id follows.
_TITLE = "# Run "
_MAX_TITLE = 300

#: Of the small files that a worker writes for itself.
FORMAT = 1
_log = logging.getLogger(__name__)


class OwnFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What such a file is made of; see ``read_json``."""

    format: int = FORMAT


F = TypeVar("F", bound=OwnFile)


def stage_folder(stage: int | str) -> str:
    """Where a worker keeps a pipeline's stage: the same tree as a worker's of the whole model."""
    return f"stage-{stage}"


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that appears under its name only when it is complete."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open(mode) as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path, kind: type[F], max_bytes: int) -> F | None:
    """A small file of a worker's own; ``None`` if it is not there.

    Raises:
        ConfigError: it cannot be read.
        ValueError: it says what no worker of this release writes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ConfigError(f"Cannot read {path}: {err.strerror or err}.") from err
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    try:
        found = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as err:
        raise ValueError(str(err)) from err
    if found.format != FORMAT:
        raise ValueError(f"it is of format {found.format}, and this release reads {FORMAT}")
    return found


def folders_of(run: Path) -> list[Path]:
    """The folder of a local run and those of its workers, in order."""
    workers = [path for path in run.glob(f"{WORKERS}/*") if path.name.isdecimal()]
    return [run, *sorted(workers, key=lambda path: int(path.name))]


def has_run(folder: Path) -> bool:
    """Whether something of a run lies in a worker's folder that another run would write over: weights, checkpoints."""
    return bool(_of_a_run(folder))


def clear_run(folder: Path) -> None:
    """Remove what a folder has of a run: weights, checkpoints, journal, book, access. Identity, configuration stay.

    Raises:
        ConfigError: it cannot be done.
    """
    try:
        for path in (
            *_of_a_run(folder),
            *folder.glob("journal*.jsonl"),
            folder / RUN,
            folder / ACCESS,
            folder / PRESENCE,
        ):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as err:
        raise ConfigError(
            f"Cannot clear {folder} of its run: {err}.", hint="Choose another folder with --out."
        ) from err


def _of_a_run(folder: Path) -> list[Path]:
    weights = (folder / MODEL, *folder.glob("stage-*"))
    checkpoints = [folder / CHECKPOINTS] if any(folder.glob(f"{CHECKPOINTS}/*")) else []
    return [*(path for path in weights if path.exists()), *checkpoints]


def run_of(folder: Path) -> str:
    """The run that the configuration in a folder is of; empty if it does not say."""
    try:
        with (folder / CONFIG).open(encoding="utf-8") as file:
            first = file.readline(_MAX_TITLE)
    except (OSError, UnicodeDecodeError):
        return ""
    return first.removeprefix(_TITLE).partition(",")[0] if first.startswith(_TITLE) else ""


def save_config(folder: Path, run: str | None, swarm: SwarmConfig, own: WorkerConfig) -> None:
    """Write the configuration into a folder, for ``--config``.

    A file that is not of the same run and says something else is kept beside it, which is logged.

    Args:
        folder: of a worker or a local run.
        run: its id; ``None`` if that is not known yet.
        swarm: what the run agreed on.
        own: this machine's part.

    Raises:
        ConfigError: it cannot be written.
    """
    path = folder / CONFIG
    title, text = f"{_TITLE}{run}," if run else "# A run,", to_toml(swarm, own)
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before and not (run and before.startswith(title)) and before.partition("\n")[2] != text:
            kept = next(name for i in itertools.count(1) if not (name := folder / f"config-before-{i}.toml").exists())
            path.rename(kept)
            _log.warning("%s was of another run, or no run's: it is kept as %s", path, kept.name)
        with whole_file(path, "wb") as file:
            file.write(f"{title} as decentral {__version__} wrote it; --config reads it back.\n{text}".encode())
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"Cannot write {path}: {err}.", hint="Choose another folder with --out.") from err
