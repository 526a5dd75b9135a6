"""``decentral status --watch``: the swarm on the whole screen of a terminal, with the way its figures went.

What the swarm answers is written down by one thread and drawn by another one, rich's, once a second: ages go on while
an answer is waited for, and a window may change its size.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.text import Text

from decentral.cli.render import printable, view
from decentral.errors import DecentralError
from decentral.monitor.figures import age, amount, loss, mbit, sparkline
from decentral.monitor.history import History
from decentral.monitor.report import StatusReport

_LABEL_WIDTH = 12
_VALUE_WIDTH = 7
_MAX_SPARK_WIDTH = 100
#: What a figure is called, its name in a history, how it is written.
_TRENDS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("loss", "loss", loss),
    ("val loss", "val_loss", loss),
    ("tokens/s", "tokens_per_s", amount),
    ("sent mbit/s", "sent_bytes_per_s", mbit),
    ("contributing", "contributing", amount),
)


class Screen:
    """What is known of a swarm, drawn to fill a terminal; ``frame`` may be called on any thread.

    Args:
        console: the terminal.
        asked: who is asked, in words.
        clock: monotonic seconds.
    """

    def __init__(self, console: Console, asked: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._asked = asked
        self._clock = clock
        self._history = History()
        self._answer: tuple[float, StatusReport] | None = None
        """The last one, and when it came."""
        self._problem = ""
        """Why there was none since."""

    def take(self, answer: StatusReport | DecentralError) -> None:
        """What came of the last question."""
        if isinstance(answer, DecentralError):
            self._problem = answer.message
            return
        now = self._clock()
        self._history.sample(now, answer)
        self._answer, self._problem = (now, answer), ""

    def frame(self) -> Group:
        """The picture at this moment; of more workers than fit, those that are not well come first."""
        if self._answer is None:
            return Group(Text(printable(self._problem or f"asking {self._asked} ..."), style="dim"))
        report, height = self._answer[1], self._console.height
        num_workers = min(len(report.workers), height)
        while True:
            frame = Group(self._head(self._answer[0]), *self._trends(), view(report, self._console.width, num_workers))
            over = len(self._console.render_lines(frame, pad=False)) - height
            if over <= 0 or num_workers <= 1:
                return frame
            num_workers = max(1, num_workers - (over + 1) // 2)  # a worker takes a line, or two if it is not well

    def _head(self, answered_at: float) -> Text:
        ago = age(self._clock() - answered_at)
        if self._problem:
            return Text(printable(f"no answer for {ago}: {self._problem}"), style="yellow")
        return Text(printable(f"{self._asked} answered {ago} ago; Ctrl-C ends this"), style="dim")

    def _trends(self) -> list[Text]:
        samples = self._history.samples()
        samples["sent_bytes_per_s"] = list(_rates(samples["time"], samples["sent_bytes"]))
        width = min(_MAX_SPARK_WIDTH, self._console.width - _LABEL_WIDTH - _VALUE_WIDTH - 2)
        lines = []
        for label, name, text in _TRENDS:
            values = [math.nan if value is None else value for value in samples[name]]
            now = text(values[-1]) if values else "-"
            line = Text(f"{label:{_LABEL_WIDTH}} {now:>{_VALUE_WIDTH}} ")
            lines.append(line.append(sparkline(values, width), style="cyan"))
        return lines


def _rates(times: Sequence[float | None], sums: Sequence[float | None]) -> Iterator[float]:
    """A sum's growth a second since the sample before; 0 if it shrank, as it does when a worker is forgotten."""
    last: tuple[float, float] | None = None
    for time_, total in zip(times, sums, strict=True):
        now = time_ or 0.0, total or 0.0
        yield max(0.0, now[1] - last[1]) / (now[0] - last[0]) if last is not None and now[0] > last[0] else 0.0
        last = now
