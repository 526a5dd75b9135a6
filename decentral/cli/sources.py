"""Replicas on disk: in the folder of a local run, in a worker's own, or as a file by itself."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from decentral.cli.config import SwarmConfig
from decentral.cli.folder import CONFIG, MODEL, RUN_CONFIG, WORKERS
from decentral.cli.settings import load
from decentral.errors import ConfigError, UsageError
from decentral.state.average import Replica
from decentral.state.files import load_weights

_KINDS = "a run's folder, a worker's folder, a .safetensors file, or the address of a worker"


def paths_and_addresses(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which sources are on this machine, and which are addresses.

    Raises:
        UsageError: one that is neither.
    """
    paths, addresses = [], []
    for text in sources:
        if Path(text).exists() or text.endswith(".safetensors"):
            paths.append(text)
        elif ":" in text or "/tcp/" in text:
            addresses.append(text)
        else:
            raise UsageError(f"There is nothing at {text!r}, and it is no address.", hint=f"Give {_KINDS}.")
    return paths, addresses


def from_paths(paths: Sequence[str]) -> tuple[list[Replica], list[str]]:
    """The replicas at ``paths``, each file once; those of a run's folder are called by the number of their worker.

    Returns:
        The replicas, and in words why other files in a run's folder cannot be used.

    Raises:
        ConfigError: a file that was named does not exist or cannot be read, or a folder has no weights.
    """
    found: dict[Path, Replica] = {}
    broken: list[str] = []
    for text in paths:
        path = Path(text)
        replicas: Iterable[tuple[Path, Replica]]
        if (path / WORKERS).is_dir():
            replicas, unusable = _in_run(path)
            broken += unusable
        else:
            file = path / MODEL if path.is_dir() else path
            replicas = [(file, _replica(file, text, named=True))]
        for file, replica in replicas:
            if replica.named or file.resolve() not in found:
                found[file.resolve()] = replica
    return list(found.values()), broken


def config_at(path: Path) -> SwarmConfig | None:
    """The run's configuration as it lies in a folder or beside a file; ``None`` if there is none.

    Raises:
        ConfigError: this release cannot read it.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / RUN_CONFIG).exists():
        return load(folder / RUN_CONFIG).swarm
    try:
        return SwarmConfig.from_json((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ConfigError(f"Cannot read the configuration {folder / CONFIG}: {err.strerror or err}.") from err


def _in_run(folder: Path) -> tuple[list[tuple[Path, Replica]], list[str]]:
    replicas, broken = [], []
    for file in sorted((folder / WORKERS).glob(f"*/{MODEL}"), key=lambda file: (len(file.parent.name), file)):
        try:
            replicas.append((file, _replica(file, file.parent.name, named=False)))
        except ConfigError as err:
            broken.append(err.message)
    return replicas, broken


def _replica(file: Path, name: str, *, named: bool) -> Replica:
    """What a file of weights says of itself; the values are read when they are needed.

    Raises:
        ConfigError: there is none, or it is cut off.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        round_ = int(metadata.get("round", 0))
    except FileNotFoundError as err:
        raise ConfigError(f"There are no weights: {file} does not exist.", hint=f"Give {_KINDS}.") from err
    except (OSError, SafetensorError, ValueError) as err:
        raise ConfigError(f"{file} is not a whole file of weights: {err}.") from err

    def load() -> dict[str, Tensor]:
        tensors, _ = load_weights(file)
        return {key: value.float() for key, value in tensors.items()}

    return Replica(name, metadata.get("run", ""), round_, load, metadata.get("digest", ""), named)


def ensure_any(replicas: Sequence[Replica], sources: Sequence[str], broken: Sequence[str]) -> None:
    """Refuse to go on with nothing.

    Raises:
        UsageError: there is no replica.
    """
    if not replicas:
        why = "; ".join(broken) or "no worker has saved any yet (they do so once a minute, and at the end)"
        raise UsageError(f"No weights were found in {', '.join(sources)}: {why}.", hint=f"Give {_KINDS}.")
