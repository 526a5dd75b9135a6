"""Figures without a display, written in the place of the old ones at once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def figure(path: Path, width: float, height: float, columns: int = 1, **subplots: Any) -> Iterator[list[Any]]:
    """A figure that is written when the block ends.

    Args:
        path: of the files, with any suffix.
        width: inches, as is ``height``.
        height: of all.
        columns: axes side by side.
        subplots: as of ``Figure.subplots``.

    Yields:
        The axes, from left to right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    yield list(made.subplots(1, columns, squeeze=False, **subplots)[0])
    part = path.with_name(f"{path.stem}.part.png")
    made.savefig(part, dpi=110, metadata={"Software": None})
    os.replace(part, path.with_suffix(".png"))
