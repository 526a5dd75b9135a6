"""Workers as real processes that are killed, restarted, stopped and woken: what the chaos scripts have in common.

Knows how processes live and die and what their journals say, not what must hold of a method.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from decentral.cli.local import children
from decentral.monitor.journal import JournalReader

#: For anything that must happen; on a busy machine a worker alone takes 10 s to start.
DEADLINE_S = 120.0

Event = dict[str, Any]


class Violation(Exception):
    """Something that must hold does not."""


class Worker:
    """One seat of the swarm, through all its lives: the same folder, so the same identity and one journal."""

    def __init__(self, index: int, folder: Path) -> None:
        self.index = index
        self.folder = folder
        self.child: children.Child | None = None
        self.address = ""
        self.events: list[Event] = []
        self._reader = JournalReader(folder / "journal.jsonl")
        folder.mkdir()

    async def start(self, *arguments: str) -> None:
        """Begin a life and wait until it has announced itself."""
        here = ("--host", "127.0.0.1", "--threads", "1")
        env = {"OMP_NUM_THREADS": "1"}
        self.child = await children.start(self.index, ["worker", *arguments, *here], self.folder, env)
        self.address = (await self.child.first_line(DEADLINE_S)).split()[-1]

    @property
    def pid(self) -> int:
        """Of the worker itself."""
        assert self.child is not None
        return self.child.process.pid

    @property
    def peer(self) -> str:
        """Its identity, the same in every life."""
        return self.address.rpartition("/")[2]

    def daemon(self) -> int:
        """Its libp2p daemon."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def named(self, name: str) -> list[Event]:
        """Its events of one kind so far, of all lives."""
        self.events += self._reader.read()
        return [event for event in self.events if event["event"] == name]

    def mixed(self) -> list[Event]:
        """Its completed rounds so far, of all lives."""
        return self.named("round_mixed")


class Swarm:
    """All workers of a run.

    Args:
        folder: exists; for what they write.
        num_workers: seats.
    """

    def __init__(self, folder: Path, num_workers: int) -> None:
        self.folder = folder
        self.workers = [Worker(index, folder / str(index)) for index in range(num_workers)]

    async def begin(self, settings: Mapping[str, Any]) -> None:
        """Start everybody."""
        founder, *others = self.workers
        await founder.start("--new", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")))
        await asyncio.gather(*(worker.start("--join", founder.address) for worker in others))

    async def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait until ``condition`` holds; the seconds it took. Whatever is read on the way is checked."""
        began = time.monotonic()
        while not condition():
            self.check()
            if time.monotonic() - began > DEADLINE_S:
                raise Violation(f"not within {DEADLINE_S:.0f} s: {what}\n{self.describe()}")
            await asyncio.sleep(0.1)
        self.check()
        return round(time.monotonic() - began, 1)

    def check(self) -> None:
        """Every process that should run does.

        Raises:
            Violation: one does not.
        """
        for worker in self.workers:
            if worker.child is not None and worker.child.code is not None:
                raise Violation(str(worker.child.error().message))

    def front(self) -> int:
        """The newest round that anybody completed."""
        return max((event["round"] for worker in self.workers for event in worker.mixed()), default=-1)

    async def kill(self, victim: Worker) -> None:
        """``kill -9``; its daemon must go with it."""
        assert victim.child is not None
        daemon, process = victim.daemon(), victim.child.process
        victim.child = None  # from now on it may be gone, also for whoever looks while another one is killed
        process.kill()
        await process.wait()
        await self.until(lambda: _is_gone(daemon), f"the end of the daemon of worker {victim.index}")

    async def end(self) -> None:
        """Everybody leaves in order.

        Raises:
            Violation: somebody did not.
        """
        running = [worker.child for worker in self.workers if worker.child is not None]
        await children.stop(running, 30.0)
        codes = [child.code for child in running]
        for worker in self.workers:
            worker.child = None
        if any(code != 0 for code in codes):
            raise Violation(f"exit codes {codes} after SIGINT")

    async def vanish(self) -> None:
        """End whatever still runs, by force if need be.

        Raises:
            Violation: something is left.
        """
        running = [worker.child for worker in self.workers if worker.child is not None]
        for worker in self.workers:
            worker.child = None
        await children.stop(running, 30.0)
        try:
            await self.until(lambda: not self.left(), "no process left")
        except Violation as err:
            raise Violation(f"{err}; left are {self.left()}") from None

    def describe(self) -> str:
        """The last events of everybody."""
        return "\n".join(f"worker {w.index}: {json.dumps(e)[:400]}" for w in self.workers for e in w.events[-4:])

    def left(self) -> list[int]:
        """Processes that belong to this run: workers name its folder by ``--out``, daemons by their identity."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                zombie = status.read_text().rpartition(")")[2].split()[0] in "ZX"
                line = (status.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if not zombie and os.fsencode(self.folder) + b"/" in line:
                found.append(int(status.parent.name))
        return found


def stop(sleeper: Worker, stop_s: float, *, with_daemon: bool) -> "asyncio.Task[None]":
    """SIGSTOP now; the task sends SIGCONT when the time has come."""
    pids = [sleeper.pid, *([sleeper.daemon()] if with_daemon else [])]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    async def wake() -> None:
        try:
            await asyncio.sleep(stop_s)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    return asyncio.create_task(wake())


def write(out: Path, report: Event, page: str) -> None:
    """Raw record and page, each by way of a temporary file."""
    for path, text in ((out.with_suffix(".json"), json.dumps(report, indent=1) + "\n"), (out.with_suffix(".md"), page)):
        part = path.with_name(f"{path.name}.part")
        part.write_text(text)
        os.replace(part, path)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
