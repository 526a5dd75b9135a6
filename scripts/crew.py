"""Real workers, each on a host of its own behind an emulated link: what the benches on links have in common.

Knows how workers are started, read and ended, not what is measured.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from decentral.monitor.journal import JournalReader
from scripts.links import Links

T = TypeVar("T")
Event = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
#: From the start of a worker to its first line, on a machine that starts several at once.
START_S = 120.0
_END_S = 30.0
_ENV = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


class CrewError(Exception):
    """A worker ended that should not have, or something did not happen in time."""


def python(*arguments: str | Path) -> list[str | Path]:
    """The command that runs this interpreter."""
    return [sys.executable, *arguments]


class Process:
    """A command on a host, with what it says in files.

    Args:
        links: open.
        host: where it runs.
        folder: for its output; made if missing.
        command: as for ``Links.popen``; runs in the root of the repository.
    """

    def __init__(self, links: Links, host: int, folder: Path, command: Sequence[str | Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = links.popen(
                host,
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**os.environ, **_ENV},
                start_new_session=True,  # Ctrl-C in a terminal is the bench's, which ends everybody in order.
            )

    def lines(self) -> list[str]:
        """What it has said so far, line by line."""
        return [line.rstrip("\n") for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def check(self) -> None:
        """Raise ``CrewError`` with its last words if it has failed."""
        if self.popen.poll():
            raise CrewError(f"{self.folder.name} ended with {self.popen.returncode}: {self._err.read_text()[-2000:]}")

    def wait_for(self, condition: Callable[[], T], what: str, timeout_s: float) -> T:
        """The first true value of ``condition``, asked again and again while the process is well."""
        until = time.monotonic() + timeout_s
        while not (value := condition()):
            self.check()
            if time.monotonic() > until:
                raise CrewError(
                    f"{self.folder.name}: not within {timeout_s:.0f} s: {what}\n{self._err.read_text()[-2000:]}"
                )
            time.sleep(0.05)
        return value

    def result(self, timeout_s: float) -> Any:
        """What it ends with: its last line, read as JSON."""
        self.wait_for(lambda: self.popen.poll() is not None, "the end", timeout_s)
        self.check()
        return json.loads(self.lines()[-1])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def end(self, timeout_s: float = 0.0) -> None:
        """Wait for its end, and bring it about if need be."""
        try:
            self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Worker(Process):
    """``decentral worker`` with its journal."""

    def __init__(self, links: Links, host: int, folder: Path, *arguments: str) -> None:
        here = ("--host", links.address(host), "--threads", "1", "--out", str(folder))
        super().__init__(links, host, folder, python("-m", "decentral.cli", "worker", *arguments, *here))
        self._journal = JournalReader(folder / "journal.jsonl")
        self._events: list[Event] = []

    def address(self) -> str:
        """Where others join it."""
        return self.wait_for(self.lines, "the first line on stdout", START_S)[0].split()[-1]

    def named(self, name: str) -> list[Event]:
        """Its events of one kind so far."""
        self._events += self._journal.read()
        return [event for event in self._events if event["event"] == name]


class Crew:
    """A swarm of one worker on each host, or as many swarms of one. A context manager: ends all in order.

    Args:
        links: open.
        folder: new; for what workers write.
        num_workers: hosts used.
        settings: of the run, by dotted key.
        flags: more arguments of every worker.
        apart: whether everybody founds a swarm of its own.
    """

    def __init__(
        self,
        links: Links,
        folder: Path,
        num_workers: int,
        settings: Mapping[str, Any],
        flags: Sequence[str] = (),
        *,
        apart: bool = False,
    ) -> None:
        self.workers: list[Worker] = []
        self._links, self._folder, self._num_workers = links, folder, num_workers
        self._founding = ["--new", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
        self._flags = list(flags)
        self._apart = apart

    def __enter__(self) -> Self:
        """Start everybody; they begin to train when all are there, if ``run.min_workers`` says so."""
        try:
            how = self._founding
            for index in range(self._num_workers):
                folder = self._folder / f"worker{index}"
                self.workers.append(Worker(self._links, index, folder, *how, *self._flags))
                if not self._apart:
                    how = ["--join", self.workers[0].address()]
            for worker in self.workers:
                worker.address()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Ask everybody to leave, and make sure of it."""
        self._end()

    def _end(self) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGINT)
        until = time.monotonic() + _END_S
        for worker in self.workers:
            worker.end(max(0.0, until - time.monotonic()))

    def wait_for(self, condition: Callable[[], T], what: str, timeout_s: float) -> T:
        """As ``Process.wait_for``, while everybody is well."""

        def asked() -> T:
            for worker in self.workers:
                worker.check()
            return condition()

        return self.workers[0].wait_for(asked, what, timeout_s)
