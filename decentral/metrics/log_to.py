"""Tells the figures of reports to experiment loggers, each on a thread of its own: nobody waits for it."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from decentral.metrics.loggers import OPEN, About, Logger
from decentral.monitor import metrics
from decentral.monitor.report import StatusReport
from decentral.types import PeerId

_log = logging.getLogger(__name__)
#: Figures that wait to be logged; when there are so many, further ones are left out.
_MAX_WAITING = 256
#: At the end what waits is logged for so long at most.
_CLOSE_S = 10.0


class LogTo:
    """Logs what reports say, as often as there are new inner steps; ``close`` it.

    Args:
        names: of loggers, see ``loggers.OPEN``.
        about: what is logged.
        own: the worker whose figures are logged beside those of the swarm; ``None`` for all workers.
    """

    def __init__(self, names: Sequence[str], about: About, own: PeerId | None) -> None:
        self._own = own
        self._step = 0
        self._threads = [_LoggingThread(name, OPEN[name], about) for name in dict.fromkeys(names)]

    def take(self, report: StatusReport) -> None:
        """The newest report; returns at once."""
        step = max((row.step for row in report.workers if self._own in (None, row.peer)), default=0)
        if step <= self._step:
            return
        self._step = step
        values = dict(figures(report, self._own))
        for thread in self._threads:
            thread.log(step, values)

    def close(self) -> None:
        """Log what still waits, and end; whatever takes longer than some seconds is given up."""
        for thread in self._threads:
            thread.end()
        for thread in self._threads:
            thread.join()


def figures(report: StatusReport, own: PeerId | None) -> Iterator[tuple[str, float]]:
    """What is known, by names such as ``totals/loss``, ``worker/loss`` and ``stage2/load``.

    Args:
        report: to tell.
        own: of workers the only one; ``None`` for all, by names such as ``a1B2c3/loss``.
    """
    workers = [("worker" if own else row.id, row) for row in report.workers if own in (None, row.peer)]
    stages = [(f"stage{row.stage}", row) for row in report.stages]
    parts = [
        ("totals", report.totals, metrics.TOTALS),
        *((name, row, metrics.WORKER) for name, row in workers),
        *((name, row, metrics.STAGE) for name, row in stages),
    ]
    for name, part, of in parts:
        yield from ((f"{name}/{metric.field}", value) for metric, value in metrics.known(part, of))


class _LoggingThread:
    """One logger.

    Args:
        name: of it, for people.
        open_: opens it, on the thread; that may take long, and fail.
        about: what is logged.
    """

    def __init__(self, name: str, open_: Callable[[About], Logger], about: About) -> None:
        self._name = name
        self._open = open_
        self._about = about
        self._logger: Logger | None = None
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_MAX_WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"decentral-log-to-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Have figures of an inner step logged, soon."""
        try:
            self._waiting.put_nowait((step, values))
        except queue.Full:
            self._warn("it does not keep up")

    def end(self) -> None:
        """Log what still waits, and then no more; returns at once."""
        if self._waiting.full():  # it hangs, or is far behind
            with contextlib.suppress(queue.Empty):
                self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    def join(self) -> None:
        """Wait for the end, but not for ever."""
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            self._warn(f"it has not ended within {_CLOSE_S:.0f} s")

    def _run(self) -> None:
        while (told := self._waiting.get()) is not None:
            with self._warning():
                self._logger = self._logger or self._open(self._about)
                self._logger.log(*told)
        with self._warning():
            if self._logger is not None:
                self._logger.close()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        """Whatever the library does, it ends neither this thread nor the program."""
        try:
            yield
        except (Exception, SystemExit) as err:
            self._warn(f"{type(err).__name__}: {err}")

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("not everything is logged to %s: %s. Training goes on; this is said once.", self._name, why)
