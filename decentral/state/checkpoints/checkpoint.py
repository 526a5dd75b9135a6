"""One checkpoint: a ``WorkerState`` to and from files, of which nothing is believed that the manifest does not confirm.

Tensors are safetensors, facts JSON, the trainer's state what ``torch.save`` makes of it and ``weights_only`` reads:
nothing from disk runs code. It does not look into the meaning of a state.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from decentral import __version__
from decentral.state.checkpoints import manifest as manifests
from decentral.state.checkpoints.manifest import (
    FACTS,
    FILES,
    MODEL,
    OUTER,
    OWN,
    TRAINER,
    TRAINER_STATE,
    FileEntry,
    Manifest,
)
from decentral.state.files import load_weights, save_weights
from decentral.state.worker_state import WorkerState
from decentral.tensors.finite import all_finite


class StateError(ValueError):
    """A state cannot be kept: values that are not finite, or facts that are no JSON."""


class TrainerStateError(ValueError):
    """What the trainer says of itself cannot be kept; the rest can."""


@dataclass(frozen=True, slots=True)
class About:
    """What is to be said of the run that a state is of."""

    run: str
    method: str
    rounds: int
    """Of the whole run."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the weights are to say of themselves besides."""


def write(folder: Path, state: WorkerState, about: About, sequence: int, now_s: float) -> Manifest:
    """Write a state into an empty folder; when this returns, it is on the disk and survives a loss of power.

    Args:
        folder: exists, and holds nothing.
        state: what is kept.
        about: the run.
        sequence: see ``Manifest``.
        now_s: seconds since 1970.

    Returns:
        The manifest, written last.

    Raises:
        OSError: the disk is full or read-only; what is in the folder is no checkpoint then.
        StateError: anchors or outer state are not finite, or the facts no JSON.
        TrainerStateError: the trainer's state has objects of classes that nothing reads back without running code.
    """
    _ensure_finite(state)
    inner = folder / TRAINER_STATE
    inner.mkdir()
    metadata = {
        "run": about.run,
        "step": str(state.step),
        "round": str(state.round),
        "digest": state.digest,
        "decentral": __version__,
        **about.labels,
    }
    save_weights(folder / MODEL, state.anchors, metadata)
    save_weights(folder / OUTER, state.outer, metadata)
    save_weights(folder / OWN, state.own, metadata)
    (folder / FACTS).write_text(_json(state.facts), encoding="utf-8")
    write_trainer(folder / TRAINER, state.trainer)
    files = {}
    for name in FILES:
        sync(folder / name)
        files[name] = FileEntry((folder / name).stat().st_size, manifests.digest_of(folder / name))
    manifest = Manifest(
        sequence=sequence,
        run=about.run,
        method=about.method,
        step=state.step,
        round=state.round,
        rounds=about.rounds,
        tokens=state.tokens,
        closed=state.closed,
        state=state.digest,
        val_loss=state.val_loss if math.isfinite(state.val_loss) else None,
        time=now_s,
        version=__version__,
        files=files,
    )
    manifests.write(folder, manifest)
    sync(inner)
    sync(folder)
    return manifest


def read(folder: Path) -> WorkerState:
    """A state as it was written; every byte is compared with the manifest first.

    Raises:
        OSError: something is missing or damaged, and what.
        ConfigError: it is of another format than this release's.
    """
    manifest = manifests.read(folder)
    manifests.verify(folder, manifest)
    return WorkerState(
        step=manifest.step,
        round=manifest.round,
        tokens=manifest.tokens,
        digest=manifest.state,
        closed=manifest.closed,
        anchors=load_weights(folder / MODEL)[0],
        outer=load_weights(folder / OUTER)[0],
        own=load_weights(folder / OWN, finite=False)[0],  # local parameters may have diverged
        facts=_facts(folder / FACTS),
        trainer=read_trainer(folder / TRAINER),
        val_loss=math.nan if manifest.val_loss is None else manifest.val_loss,
    )


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights alone, with what they say of themselves; nothing else of the checkpoint has to be whole.

    Raises:
        OSError: they, or the manifest, are missing or damaged.
        ConfigError: it is of another format than this release's.
    """
    manifests.verify(folder, manifests.read(folder), [MODEL])
    return load_weights(folder / MODEL)


def sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk itself before anything that relies on it.

    Raises:
        OSError: the disk says no.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ensure_finite(state: WorkerState) -> None:
    for name, value in [*state.anchors.items(), *state.outer.items()]:
        if not all_finite(value.reshape(-1).numpy()):
            raise StateError(f"{name} has values that are not finite")


def _json(facts: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(facts), allow_nan=False)
    except (TypeError, ValueError) as err:
        raise StateError(f"the facts are no JSON: {err}") from err


def write_trainer(file: Path | IO[bytes], state: Mapping[str, Any]) -> None:
    """Write what a trainer says of itself, if it can be read back without running code.

    Raises:
        OSError: the disk is full.
        TrainerStateError: it cannot be kept.
    """
    try:
        torch.save(dict(state), file)
    except RuntimeError as err:  # torch's own, for a disk that takes no more
        raise OSError(f"{TRAINER}: not written as a whole ({' '.join(str(err).split())})") from err
    except Exception as err:
        raise TrainerStateError(f"the trainer's state cannot be written: {err}") from err
    if not isinstance(file, Path):
        file.seek(0)
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if unknown:
        raise TrainerStateError(
            f"the trainer's state has {', '.join(sorted(unknown)[:3])}, which nothing reads back without running "
            "code; state_dict() may hold tensors, numbers, text, and dicts, lists and tuples of them"
        )


def read_trainer(file: Path | IO[bytes]) -> dict[str, Any]:
    """What ``write_trainer`` wrote; it runs no code, whatever the bytes are.

    Raises:
        OSError: it is no state of a trainer.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as err:  # whatever somebody's bytes make of it
        raise OSError(f"{TRAINER} cannot be read: {' '.join(str(err).split())[:200]}") from err
    if not isinstance(state, dict):
        raise OSError(f"{TRAINER} is no state of a trainer")
    return state


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise OSError(f"{FACTS} is no JSON: {err}") from err
    if not isinstance(facts, dict):
        raise OSError(f"{FACTS} is no table")
    return facts
