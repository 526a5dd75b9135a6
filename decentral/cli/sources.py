"""Replicas on disk: in the folder of a local run, in a worker's own, in a checkpoint, or as a file by itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from decentral.cli.command import with_invitation, without_token
from decentral.config.settings import Settings, load
from decentral.errors import ConfigError, UsageError
from decentral.run.folder import CHECKPOINTS, CONFIG, MODEL, SUFFIX, WORKERS, stage_folder
from decentral.state.average import Replica
from decentral.state.checkpoints.checkpoint import read_weights
from decentral.state.checkpoints.manifest import BEST, LATEST, MANIFEST, found_in, pointed_at
from decentral.state.files import load_weights

_KINDS = (
    "a run's folder, a worker's folder, a checkpoint (DIR/checkpoints/best, latest or a step), a .safetensors file, or "
    "the address of a worker"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One worker's weights of one stage of a pipeline."""

    stage: int
    num_stages: int
    """Of the run, beside the head."""
    replica: Replica
    cut: int = 0
    """Its number, of a run whose cut changes."""


def paths_and_addresses(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which sources are on this machine, and which are addresses; ``latest`` and ``best`` are what they stand for.

    Raises:
        UsageError: one that is neither.
        ConfigError: there is no latest or best checkpoint.
    """
    paths, addresses = [], []
    for text in sources:
        path = Path(text)
        if path.name in (LATEST, BEST) and path.parent.name == CHECKPOINTS:
            paths.append(str(_pointed(path)))
        elif path.exists() or text.endswith(SUFFIX):
            paths.append(text)
        elif ":" in text or "/tcp/" in text:
            addresses.append(with_invitation(text))
        else:
            raise UsageError(
                f"There is nothing at {without_token(text)!r}, and it is no address.", hint=f"Give {_KINDS}."
            )
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


def parts_from_paths(paths: Sequence[str]) -> tuple[list[Part], list[str], list[str]]:
    """The stages of pipelines at ``paths``, each file once.

    Returns:
        The parts, the paths where there are none, and in words why files in folders cannot be used.

    Raises:
        ConfigError: a file that was named cannot be read.
    """
    found: dict[Path, Part] = {}
    others: list[str] = []
    broken: list[str] = []
    for text in paths:
        path = Path(text)
        parts, unusable = ({path: _part(path, text, named=True)}, []) if path.is_file() else _parts_in(path)
        found |= {file.resolve(): part for file, part in parts.items() if part is not None}
        broken += unusable
        if not any(parts.values()) and not unusable:
            others.append(text)
    return list(found.values()), others, broken


def config_at(path: Path) -> Settings | None:
    """The run's and its worker's configuration as it lies in a folder or beside a file; ``None`` if there is none.

    Raises:
        ConfigError: this release cannot read it.
    """
    folder = path if path.is_dir() else path.parent
    if folder.parent.name == CHECKPOINTS:
        folder = folder.parent.parent
    return load(folder / CONFIG) if (folder / CONFIG).exists() else None


def _pointed(path: Path) -> Path:
    """The checkpoint that ``checkpoints/latest`` or ``checkpoints/best`` stands for.

    Raises:
        ConfigError: there is none.
    """
    base = path.parent.parent
    if path.name == LATEST:
        name = next((one.folder.name for one in found_in(base) if one.manifest is not None), "")
    else:
        name = pointed_at(base, path.name)
    if not name:
        raise ConfigError(
            f"There is no {path.name} checkpoint in {path.parent}.",
            hint=f"`decentral runs {base}` lists what there is.",
        )
    return path.with_name(name)


def _in_run(folder: Path) -> tuple[list[tuple[Path, Replica]], list[str]]:
    replicas, broken = [], []
    for file in sorted((folder / WORKERS).glob(f"*/{MODEL}"), key=lambda file: (len(file.parent.name), file)):
        try:
            replicas.append((file, _replica(file, file.parent.name, named=False)))
        except ConfigError as err:
            broken.append(err.message)
    return replicas, broken


def _parts_in(folder: Path) -> tuple[dict[Path, Part | None], list[str]]:
    """The stages in a worker's folder, or of all workers of a run; and why files cannot be used."""
    within = f"{stage_folder('*')}/{MODEL}"
    own = [folder / MODEL] if folder.name.startswith(stage_folder("")) else []
    files = [*own, *folder.glob(within), *(folder / WORKERS).glob(f"*/{within}")]
    parts, broken = {}, []
    for file in sorted(files, key=lambda file: (len(file.parent.name), file)):
        try:
            parts[file] = _part(file, f"{file.parent.name}/{file.name}", named=False)
        except ConfigError as err:
            broken.append(err.message)
    return parts, broken


def _part(file: Path, name: str, *, named: bool) -> Part | None:
    """The stage in a file; ``None`` if it is a whole model."""
    replica, metadata = _opened(file, name, named=named)
    if "stage" not in metadata:
        return None
    try:
        return Part(int(metadata["stage"]), int(metadata["stages"]), replica, int(metadata.get("cut", 0)))
    except (KeyError, ValueError) as err:
        raise ConfigError(f"{file} does not say which stage it is: {err}.") from err


def _replica(file: Path, name: str, *, named: bool) -> Replica:
    return _opened(file, name, named=named)[0]


def _opened(file: Path, name: str, *, named: bool) -> tuple[Replica, Mapping[str, str]]:
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
        verified = (file.parent / MANIFEST).exists()  # in a checkpoint
        tensors, _ = read_weights(file.parent) if verified else load_weights(file)
        return {key: value.float() for key, value in tensors.items()}

    return Replica(name, metadata.get("run", ""), round_, load, metadata.get("digest", ""), named), metadata


def ensure_any(replicas: Sequence[Replica], sources: Sequence[str], broken: Sequence[str]) -> None:
    """Refuse to go on with nothing.

    Raises:
        UsageError: there is no replica.
    """
    if not replicas:
        why = "; ".join(broken) or "no worker has saved any yet (they do so once a minute, and at the end)"
        raise UsageError(
            f"No weights were found in {', '.join(map(without_token, sources))}: {why}.", hint=f"Give {_KINDS}."
        )
