"""Weights on disk, as safetensors. A file appears under its name only when it is complete."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors and text metadata to ``path``, replacing what was there only when all is written.

    The metadata says besides that the tensors are torch's, without which transformers does not read them.

    Raises:
        OSError: the disk is full, or the folder is gone or read-only; what was there before is intact.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(_apart(tensors), part, {"format": "pt", **metadata})
        os.replace(part, path)
    except SafetensorError as err:
        # Its own kind of error, also for a full disk.
        raise OSError(f"{part.name}: {err}") from err
    finally:
        part.unlink(missing_ok=True)


def load_weights(path: Path, *, finite: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``save_weights`` wrote: named tensors and the metadata.

    Args:
        path: of the file. It is read and not mapped: a disk that fails later, or a file that is cut off, would end the
            process without a word.
        finite: refuse values that are not.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, is no such file, or has values that are not finite.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            tensors: dict[str, Tensor] = file.get_tensors()
            metadata = dict(file.metadata() or {})
    except SafetensorError as err:
        raise OSError(f"not a file of tensors: {err}") from err
    broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())] if finite else []
    if broken:
        raise OSError(f"{broken[0]} has values that are not finite")
    return tensors, metadata


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values, contiguous, and none in the memory of another, which the format has no word for."""
    apart: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        one = value.contiguous()
        apart[name] = one.clone() if one.data_ptr() in places else one
        places.add(one.data_ptr())
    return apart
