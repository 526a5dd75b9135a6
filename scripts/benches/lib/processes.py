"""Real workers of a bench: started on a leash, waited for with deadlines, killed, stopped and ended without a trace.

Knows how processes live and die and what their journals say, not what is measured. Everything that is started here is
started from the main thread, whose end ends it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from decentral.adapters.leash import leashed
from decentral.monitor.journal import JournalReader
from scripts.benches.lib.command import ROOT, BenchError, set_words
from scripts.benches.lib.costs import children
from scripts.benches.lib.links import LOOPBACK, Host

T = TypeVar("T")
Event = dict[str, Any]
Command = Sequence[str | Path]

#: For anything that must happen; on a busy machine a worker alone takes 10 s to start.
DEADLINE_S = 120.0
_END_S = 30.0
_STATUS_TRIES, _STATUS_S = 3, 60.0


def python(*arguments: str | Path) -> Command:
    """The command that runs this interpreter."""
    return [sys.executable, *arguments]


class Process:
    """A command with what it says in files.

    Args:
        folder: for its output; made if missing.
        command: runs in the root of the repository.
        host: where it runs.
    """

    def __init__(self, folder: Path, command: Command, host: Host = LOOPBACK) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        with self._out.open("wb") as out, self._err.open("ab") as err:
            self.popen = subprocess.Popen(
                leashed(host.inside(command)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
                start_new_session=True,  # Ctrl-C in a terminal is the bench's, which ends everybody in order.
            )

    def lines(self) -> list[str]:
        """What it has said so far, line by line."""
        return self._out.read_text().split("\n")[:-1]

    def failure(self) -> BenchError:
        """How it ended, and its last words."""
        return BenchError(f"{self.folder.name} ended with {self.popen.returncode}: {self._err.read_text()[-2000:]}")

    def wait_for(self, condition: Callable[[], T], what: str, timeout_s: float = DEADLINE_S) -> T:
        """The first true value of ``condition``, asked again and again while the process has not failed."""
        until = time.monotonic() + timeout_s
        while not (value := condition()):
            if self.popen.poll():
                raise self.failure()
            if time.monotonic() > until:
                words = self._err.read_text()[-2000:]
                raise BenchError(f"{self.folder.name}: not within {timeout_s:.0f} s: {what}\n{words}")
            time.sleep(0.05)
        return value

    def result(self, timeout_s: float) -> Any:
        """What it ends with: its last line, read as JSON."""
        self.wait_for(lambda: self.popen.poll() is not None, "the end", timeout_s)
        if self.popen.returncode:
            raise self.failure()
        return json.loads(self.lines()[-1])

    def end(self, timeout_s: float = 0.0) -> int:
        """Wait for its end, and bring it about if need be; the exit code."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


class Worker:
    """A seat of a swarm through all its lives: the same folder, so the same identity and one journal.

    Args:
        index: its number.
        folder: for what it writes.
        host: where it runs.
    """

    def __init__(self, index: int, folder: Path, host: Host = LOOPBACK) -> None:
        self.index = index
        self.folder = folder
        self.host = host
        self.events: list[Event] = []
        self.entry: Sequence[object] = ("decentral.cli",)
        """What is run as the command: a module, and its own arguments."""
        self.process: Process | None = None
        """``None`` while it does not live."""
        self._reader = JournalReader(folder / "journal.jsonl")

    def start(self, *arguments: str) -> None:
        """Begin a life; see ``address``."""
        here = ["--host", self.host.address, "--threads", "1"]
        if "--resume" not in arguments:
            here += ["--out", str(self.folder)]
        if "--join" in arguments:
            here.append("--trust-config")  # a bench's task is its own
        self.process = Process(self.folder, python("-m", *map(str, self.entry), "worker", *arguments, *here), self.host)

    @property
    def life(self) -> Process:
        """The process of a worker that lives."""
        assert self.process is not None
        return self.process

    @property
    def pid(self) -> int:
        """Of the worker itself."""
        return self.life.popen.pid

    def address(self) -> str:
        """Where others join it; waits until it has said so."""
        return self.life.wait_for(self.life.lines, "the first line on stdout")[0].split()[-1]

    @property
    def peer(self) -> str:
        """Its identity, the same in every life."""
        return self.address().partition("#")[0].rpartition("/")[2]

    def daemons(self) -> list[int]:
        """Its libp2p daemon, whichever of its threads has started it; none yet right after the start."""
        return children(self.pid)

    def read(self) -> list[Event]:
        """Its events so far, of all lives."""
        self.events += self._reader.read()
        return self.events

    def named(self, name: str) -> list[Event]:
        """Those of one kind."""
        return [event for event in self.read() if event["event"] == name]

    def mixed(self) -> list[Event]:
        """Its completed rounds so far, of all lives."""
        return self.named("round_mixed")

    def stop(self, stop_s: float, *, with_daemon: bool) -> threading.Thread:
        """SIGSTOP now; the thread sends SIGCONT when the time has come, and ends."""
        pids = self.stop_now(with_daemon=with_daemon)
        waking = threading.Timer(stop_s, _signal, (pids, signal.SIGCONT))
        waking.daemon = True
        waking.start()
        return waking

    def stop_now(self, *, with_daemon: bool) -> list[int]:
        """SIGSTOP, for ``wake``."""
        pids = [self.pid, *(self.daemons() if with_daemon else [])]
        _signal(pids, signal.SIGSTOP)
        return pids

    @staticmethod
    def wake(pids: Sequence[int]) -> None:
        """SIGCONT to those that were stopped."""
        _signal(pids, signal.SIGCONT)


class Swarm:
    """Workers of a run. A context manager: all of them end with it, and it makes sure that nothing is left.

    Args:
        folder: for what they write.
        hosts: of the first workers, in order.
    """

    def __init__(self, folder: Path, hosts: Sequence[Host]) -> None:
        self.folder = folder
        self.workers: list[Worker] = []
        for host in hosts:
            self.add(host)

    def __enter__(self) -> Self:
        """Nobody is started yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End whatever still runs, by force if need be.

        Raises:
            BenchError: something is left.
        """
        self._leave()
        until = time.monotonic() + _END_S
        while left := self._left():
            if time.monotonic() > until:
                raise BenchError(f"processes are left: {left}")
            time.sleep(0.1)

    def add(self, host: Host = LOOPBACK) -> Worker:
        """One more seat."""
        self.workers.append(Worker(len(self.workers), self.folder / f"worker{len(self.workers)}", host))
        return self.workers[-1]

    def begin(self, settings: Mapping[str, Any], flags: Sequence[str] = (), *, apart: bool = False) -> None:
        """Start everybody, and wait until all have announced themselves.

        Args:
            settings: of the run, by dotted key.
            flags: more arguments of every worker.
            apart: whether everybody founds a swarm of its own.
        """
        founding = ["--new", *set_words(settings)]
        for worker in self.workers:
            first = apart or worker is self.workers[0]
            worker.start(*(founding if first else ["--join", self.workers[0].address()]), *flags)
        for worker in self.workers:
            worker.address()

    @property
    def living(self) -> list[Worker]:
        """Those that run."""
        return [worker for worker in self.workers if worker.process is not None]

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> float:
        """Wait until ``condition`` holds; the seconds it took. What must hold meanwhile is checked.

        Raises:
            BenchError: it does not hold in time, or ``check`` finds something.
        """
        began = time.monotonic()
        while not condition():
            self.check()
            if time.monotonic() - began > timeout_s:
                raise BenchError(f"not within {timeout_s:.0f} s: {what}\n{self.describe()}")
            time.sleep(0.1)
        self.check()
        return round(time.monotonic() - began, 1)

    def check(self) -> None:
        """Every process that should run does.

        Raises:
            BenchError: one does not.
        """
        for worker in self.living:
            if worker.life.popen.poll() is not None:
                raise worker.life.failure()

    def front(self) -> int:
        """The newest round that anybody completed."""
        return max((event["round"] for worker in self.workers for event in worker.mixed()), default=-1)

    def describe(self) -> str:
        """The last events of everybody."""
        return "\n".join(f"worker {w.index}: {json.dumps(e)[:400]}" for w in self.workers for e in w.read()[-4:])

    def status(self, worker: Worker) -> Event:
        """What ``decentral status`` says, asked of a worker; empty if it cannot say in time on a busy machine."""
        command = python("-m", "decentral.cli", "status", worker.address(), "--format", "json")
        for _ in range(_STATUS_TRIES):
            with suppress(subprocess.TimeoutExpired):
                line = worker.host.inside(command)
                asked = subprocess.run(line, cwd=ROOT, capture_output=True, timeout=_STATUS_S, check=False)
                if asked.stdout:
                    report: Event = json.loads(asked.stdout)
                    return report
        return {}

    def kill(self, *victims: Worker) -> None:
        """``kill -9``; their daemons must go with them."""
        daemons = [pid for victim in victims for pid in victim.daemons()]
        for victim in victims:
            victim.life.popen.kill()
        for victim in victims:
            victim.life.popen.wait()
            victim.process = None
        self.until(lambda: not any(map(runs, daemons)), f"the end of the daemons of {[v.index for v in victims]}")

    def end(self) -> None:
        """Everybody leaves in order.

        Raises:
            BenchError: somebody did not.
        """
        codes = self._leave()
        if any(codes):
            raise BenchError(f"exit codes {codes} after SIGINT")

    def _leave(self) -> list[int]:
        leaving = self.living
        for worker in leaving:
            worker.life.popen.send_signal(signal.SIGINT)
            worker.life.popen.send_signal(signal.SIGCONT)  # Who is stopped would not hear.
        until = time.monotonic() + _END_S
        codes = [worker.life.end(max(0.0, until - time.monotonic())) for worker in leaving]
        for worker in leaving:
            worker.process = None
        return codes

    def _left(self) -> list[int]:
        """Processes that belong to this run: workers name its folder by ``--out``, daemons by their identity."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.fsencode(self.folder) + b"/" in (path / "cmdline").read_bytes() and runs(int(path.name)):
                    found.append(int(path.name))
        return found


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def runs(pid: int) -> bool:
    """Whether a process lives: one that has ended and waits for its parent to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
