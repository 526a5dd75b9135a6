"""What lies in the folder of a worker or a run, and how it gets there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MODEL = "model.safetensors"
RESIDUAL = "residual.safetensors"
IDENTITY = "identity.key"
CONFIG = "config.json"
JOURNAL = "journal.jsonl"
#: In the folder of a local run.
RUN_CONFIG = "config.toml"
WORKERS = "workers"


def stage_file(stage: int | str) -> str:
    """Where a worker keeps the weights of a pipeline's stage."""
    return f"stage-{stage}.safetensors"


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
