"""Data sets of the ``datasets`` library from files, folders and names, with errors that say what to do.

It looks at no row. What it gives has one column, the text.
"""

import contextlib
import gzip
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import xxhash

from decentral.errors import ConfigError, DataError
from decentral.ports.trainer import Seat
from decentral.workers.files import DataFile, expand
from decentral.workers.hf.data.settings import DataSettings

#: How a file is read, by its suffix. In a folder others are left out; one that was named is read as text.
_BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_PACKED = (".gz", ".zst", ".xz", ".bz2")
#: A data set of somebody's on the hub.
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: What is said of a row that cannot be read is looked for in so many bytes at most.
_SEARCHED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Opened:
    """A data set with one column of text."""

    name: str
    """For people."""
    rows: Any
    """A ``datasets.Dataset``, or an ``IterableDataset`` if it is a stream."""
    field: str
    key: str
    """The same on all machines that have the same files, or data set by name."""


def open_sources(settings: DataSettings, seat: Seat) -> list[Opened]:
    """The data sets of a mixture, or the one that all rows together are.

    Raises:
        DataError: something is not there, cannot be read, has not the text field or other builders than its neighbours.
        ConfigError: there are not as many weights as data sets, or none is named.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what fails is told by the error
    groups = [[file] for file in seat.data] if settings.weights else [list(seat.data)] if seat.data else []
    names, shares = settings.names(), settings.shares()
    if shares and len(shares) != len(groups) + len(names):
        raise ConfigError(
            f"data.weights has {len(shares)} numbers for {len(groups) + len(names)} data sets",
            hint="Give one for each path of --data, then one for each name of --dataset.",
        )
    sources = [_from_files(group, settings) for group in groups]
    sources += [_by_name(name, settings, seat) for name in names]
    if not sources:
        raise ConfigError("there is no data", hint="Give files or folders with --data, or a name with --dataset.")
    if shares or len(sources) == 1:
        return sources
    return [_together(sources)]


def _from_files(paths: Sequence[str], settings: DataSettings) -> Opened:
    """The rows of all files that these paths stand for."""
    by_builder: dict[str, list[DataFile]] = {}
    for file in (file for text in paths for file in expand(text)):
        builder = _builder_of(file.path)
        if (builder is None and not file.named) or not file.path.stat().st_size:  # of no bytes nothing is a row
            continue
        by_builder.setdefault(builder or "text", []).append(file)
    shown = ", ".join(paths)
    if not by_builder:
        raise DataError(
            f"{shown} has no file with text in it", hint=f"Known are {', '.join(_BUILDERS)}, also packed as .gz."
        )
    parts = []
    for builder, files in by_builder.items():
        # A row of a text file is a paragraph: a line says too little, and a whole book is one row.
        options = {"sample_by": "paragraph"} if builder == "text" else {}
        with _explained(shown, files):
            rows = datasets.load_dataset(
                builder,
                data_files=[str(file.path) for file in files],
                split="train",
                streaming=settings.streaming,
                **options,
            )
            parts.append(_column(rows, settings.text_field, shown))
    listed = sorted((file.key, file.path.stat().st_size) for files in by_builder.values() for file in files)
    rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return Opened(shown, rows, settings.text_field, _digest([listed, settings.text_field]))


def _by_name(name: str, settings: DataSettings, seat: Seat) -> Opened:
    """A data set of the hub, or a folder that is laid out like one if it was named on this machine.

    Raises:
        ConfigError: others have named what may be a folder. Of a format's name (``text``) it is the current one.
    """
    path, _, config = name.partition(":")
    if settings.dataset != seat.dataset and (not _ON_HUB.fullmatch(path) or Path(path).exists()):
        raise ConfigError(
            f"The swarm has its data set in {name}, which nobody has named on this machine and may be a folder of it.",
            hint=f"If it is what you want to train on: --dataset {settings.dataset}",
        )
    downloads = seat.allow_download or seat.founding or Path(path).exists()
    try:
        with contextlib.nullcontext() if downloads else _offline():
            rows = datasets.load_dataset(path, config or None, split=settings.split, streaming=settings.streaming)
    except Exception as err:  # of several libraries, with no class in common
        raise _unreachable(name, err, downloads) from err
    return Opened(name, _column(rows, settings.text_field, name), settings.text_field, _digest([name, settings.split]))


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Nobody is asked on the network: ``local_files_only`` still asks whether there is something newer."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _unreachable(name: str, err: Exception, downloads: bool) -> DataError:
    """Why a data set could not be had by its name."""
    text = f"{type(err).__name__}: {err}"
    path = name.partition(":")[0]
    local = "Or bring its files here by other means, and give them or their folder with --data."
    if "gated" in text.lower() or "401" in text or "403" in text:
        hint = f'{path} needs a Hugging Face token: run "hf auth login" or set HF_TOKEN.'
    elif not downloads:
        hint = f"It is not on this machine, and nothing is downloaded without --allow-download. {local}"
    elif isinstance(err, ValueError):
        hint = "Check its name, `name:config` and data.split."
    else:
        hint = f"Is the name right, and can this machine reach huggingface.co? {local}"
    return DataError(f"cannot load the data set {name!r}: {text[:300]}", hint=hint)


def _column(rows: Any, field: str, shown: str) -> Any:
    """The data set with its text alone.

    Raises:
        DataError: there is no such field, or it is no text.
    """
    features: Mapping[str, Any] | None = rows.features
    if features is None:  # of a stream whose first rows say it
        rows = rows._resolve_features()
        features = rows.features or {}
    if field not in features:
        raise DataError(
            f"{shown} has no field {field!r}",
            hint=f"Its fields are {', '.join(features) or 'none'}: name the one with the text by --text-field.",
        )
    kind = str(getattr(features[field], "dtype", "a table"))
    if kind not in ("string", "large_string"):
        raise DataError(f"the field {field!r} of {shown} has {kind}, not text", hint="Name another by --text-field.")
    rows = rows.select_columns([field])
    # Those of CSV are the large kind, and data sets of different kinds are not put together.
    return rows if kind == "string" else rows.cast_column(field, datasets.Value("string"))


def _together(sources: Sequence[Opened]) -> Opened:
    """All rows as one data set."""
    rows = datasets.concatenate_datasets([source.rows for source in sources])
    shown = ", ".join(source.name for source in sources)
    return Opened(shown, rows, sources[0].field, _digest([source.key for source in sources]))


def _builder_of(path: Path) -> str | None:
    name = path.name.lower()
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    return _BUILDERS.get(Path(name).suffix)


def _digest(described: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(described).encode())


@contextlib.contextmanager
def _explained(shown: str, files: Sequence[DataFile]) -> Iterator[None]:
    """What fails while files are read, as an error that names the file and the line."""
    try:
        yield
    except DataError:
        raise
    except Exception as err:  # of arrow, pandas and datasets, with no class in common
        for file in files:
            if (found := bad_line(file.path)) is not None:
                raise DataError(f"cannot read {found}", hint="Repair or remove this line.") from err
        causes = [text for each in (err.__cause__, err) if each is not None and (text := str(each).strip())]
        raise DataError(
            f"cannot read {shown}: {causes[0][:300] if causes else type(err).__name__}",
            hint="Are the files whole, and what their names say? JSON lines, parquet, CSV, arrow and text are read.",
        ) from err


def bad_line(path: Path) -> str | None:
    """Which line of a file of JSON lines is none, and why; ``None`` for all other files."""
    if _builder_of(path) != "json" or path.suffix.lower() in _PACKED[1:]:
        return None
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    read = 0
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                read += len(line)
                if (number == 1 and line.lstrip()[:1] == b"[") or read > _SEARCHED_BYTES:
                    return None
                try:
                    row = json.loads(line) if line.strip() else {}
                except ValueError as err:
                    return f"{path}, line {number}: {err}"
                if not isinstance(row, dict):
                    return f"{path}, line {number}: {line[:40]!r} is no object with fields"
    except OSError as err:
        return f"{path}: {err.strerror or err}"
    return None
