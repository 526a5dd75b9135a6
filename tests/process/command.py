"""``decentral`` as real processes: started, watched by condition, and gone without a trace afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from typer.testing import CliRunner, Result

from decentral.cli.app import app
from decentral.monitor.journal import JournalReader

T = TypeVar("T")
P = TypeVar("P", bound="Process")

ROOT = Path(__file__).parents[2]
#: Generous: a busy machine is no failure.
DEADLINE_S = 60.0
ENTRY = (sys.executable, "-m", "decentral.cli")


def wait_for(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first true value of ``condition``, which is asked again and again."""
    until = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.05)
    return value


class Process:
    """One command with its output in files."""

    def __init__(self, folder: Path, *arguments: str, entry: tuple[str, ...] = ENTRY) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._stdout, self._stderr = folder / "stdout.txt", folder / "stderr.txt"
        with self._stdout.open("w") as out, self._stderr.open("w") as err:
            self.popen = subprocess.Popen(
                [*entry, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def code(self) -> int:
        """The exit status, once there is one."""
        try:
            return self.popen.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.popen.args} still runs; it said:\n{self.stderr[-2000:]}") from None

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> None:
        """By force, if it still runs."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


class WorkerProcess(Process):
    """``decentral worker`` on loopback, its run folder its own."""

    def __init__(self, folder: Path, *arguments: str, entry: tuple[str, ...] = ENTRY) -> None:
        here = ["--host", "127.0.0.1", "--threads", "1", "--out", str(folder)]
        if "--join" in arguments and "--task" not in arguments:
            here.append("--trust-config")  # the tests' tasks are theirs, not decentral's
        super().__init__(folder, "worker", *arguments, *here, entry=entry)

    def join_line(self) -> str:
        """Its first line on stdout."""

        def line() -> str:
            if not self.stdout.endswith("\n"):
                assert self.popen.poll() is None, f"exit code {self.popen.returncode}: {self.stderr}"
                return ""
            return self.stdout

        return wait_for(line, "the first line on stdout").splitlines()[0]

    @property
    def address(self) -> str:
        return self.join_line().split()[-1]

    @property
    def host_port(self) -> str:
        place, _, token = self.address.partition("#")
        _, _, host, _, port, *_ = place.split("/")
        return f"{host}:{port}#{token}"

    @property
    def peer(self) -> str:
        return self.address.partition("#")[0].rpartition("/")[2]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its journal's events of one kind."""
        return [e for e in JournalReader(self.folder / "journal.jsonl").read() if e["event"] == name]

    def model(self) -> dict[str, str]:
        """What its saved weights say of themselves."""
        with safe_open(self.folder / "model.safetensors", framework="pt") as file:
            metadata: dict[str, str] = file.metadata()
        return metadata


def mixed_together(workers: list[WorkerProcess], *, after: int = -1) -> bool:
    """Whether each of the workers has mixed a round later than ``after`` with exactly these members."""
    everybody = {worker.peer for worker in workers}
    mixed = [[event for event in worker.events("round_mixed") if event["round"] > after] for worker in workers]
    return all(any(set(event["members"]) == everybody for event in events) for events in mixed)


def founding(hurry: Path, *, step_s: float, rounds: int) -> tuple[str, ...]:
    """Arguments that found a swarm of ``tests.process.paced`` with rounds of four steps and lively timing."""
    settings = {
        "task.factory": "tests.process.paced:build",
        "task.settings.numel": 20_000,
        "task.settings.step_s": step_s,
        "task.settings.hurry": hurry,
        "method.inner_steps": 4,
        "run.rounds": rounds,
        "timing.beat_s": 0.5,
        "timing.ttl_s": 3.0,
        "timing.min_patience_s": 3.0,
    }
    return "--new", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name ``folder``: workers by ``--out``, daemons by their identity."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if status.read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
            line = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if str(folder) in line and int(status.parent.name) != os.getpid():
            found.append(line)
    return found


def done_here(*arguments: str) -> Result:
    """A command that asks a swarm, in this process: another one would take seconds to import the same."""
    return CliRunner().invoke(app, arguments)


def status_of(address: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of ``decentral status --format json``; an empty report if it failed."""
    asked = done_here("status", address, "--format", "json")
    return asked.exit_code, json.loads(asked.stdout) if asked.stdout else {}
