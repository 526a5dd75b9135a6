"""What a worker's journal tells of its earlier lives, for a history that begins with a later one. Bounded.

A journal has what its worker did and saw: of the swarm as a whole nobody knows afterwards, so the samples of earlier
lives are the worker's own losses, tokens and speed.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from decentral.monitor.audit import Line
from decentral.monitor.history import History
from decentral.monitor.journal import last_events
from decentral.types import PeerId

#: Of the journal, the newest: a third of a second of reading.
_MAX_BYTES = 16 << 20
#: A third of what a history keeps: what comes is told more finely than what has been.
_MAX_SAMPLES = 120

_Sample = tuple[float, dict[str, float | int | None]]


def recall(history: History, journal: Path, run: str, by: PeerId) -> None:
    """Have a history know of the earlier lives of its worker in a run, as far as a journal tells.

    Args:
        history: that knows nothing yet.
        journal: which is not written yet.
        run: id of the run.
        by: the worker.

    Raises:
        OSError: the journal cannot be read.
    """
    lines = list(_of_run(last_events(journal, _MAX_BYTES), run))
    for line in lines:
        try:
            history.take(line, by)
        except (KeyError, TypeError, ValueError, AttributeError):  # a disk may have spoilt it
            continue
    samples = list(_samples(lines))
    every = max(1, math.ceil(len(samples) / _MAX_SAMPLES))
    for time, row in reversed(samples[::-1][::every]):
        history.recall(time, by, row)


def _of_run(lines: Iterable[Line], run: str) -> Iterator[Line]:
    """Those of one run: a folder may have been another one's before. What comes before the first start is of it."""
    is_own = True
    for line in lines:
        if line["event"] == "started":
            is_own = line.get("run") == run
        if is_own and _number(line["time"]) is not None:
            yield line


def _samples(lines: Iterable[Line]) -> Iterator[_Sample]:
    """The worker's own figures at the end of every stretch of inner steps."""
    tokens: int | None = None
    val_loss, last = None, math.nan
    for line in lines:
        match line["event"]:
            case "started":
                tokens, last = 0, math.nan
            case "resumed":
                tokens = int(_number(line.get("tokens")) or 0)
            case "validated":
                val_loss = _number(line.get("val_loss"))
            case "stretch_done" if line.get("stage") in (None, 0):
                came, seconds = int(_number(line.get("tokens")) or 0), line["time"] - last
                tokens = None if tokens is None else tokens + came
                yield (
                    line["time"],
                    {
                        "round": _number(line.get("round")),
                        "step": _number(line.get("step")),
                        "tokens": tokens,
                        "loss": _number(line.get("loss")),
                        "val_loss": val_loss,
                        "tokens_per_s": came / seconds if seconds > 0 else None,
                    },
                )
                last = line["time"]


def _number(value: Any) -> float | int | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_one else None
