"""Weights on disk, as safetensors. A file appears under its name only when it is complete."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors and text metadata to ``path``, replacing what was there only when all is written.

    Raises:
        OSError: the disk is full, or the folder is gone or read-only; what was there before is intact.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, dict(metadata))
        os.replace(part, path)
    except SafetensorError as err:
        # Its own kind of error, also for a full disk.
        raise OSError(f"{part.name}: {err}") from err
    finally:
        part.unlink(missing_ok=True)
