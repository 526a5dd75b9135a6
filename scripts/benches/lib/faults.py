"""Carries a script of faults out on real workers. It knows processes, folders and links, not what is checked meanwhile.

What it cannot do it says before the start (``unable``): a process has no clock of its own, TCP hides duplicates and
order, and links that can be cut or slowed need the emulator, which needs root, as a disk that can be filled does.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from decentral.sim.faults import DAMAGE, ISLANDS, LINES, Fault, Kind, Script
from scripts.benches.lib.command import BenchError
from scripts.benches.lib.links import Link, Links
from scripts.benches.lib.processes import Process, Swarm, Worker

#: What real workers on one machine cannot be made to suffer.
IMPOSSIBLE = {
    Kind.DUPLICATE: "TCP hides what arrives twice",
    Kind.REORDER: "TCP hides what arrives in another order",
    Kind.CLOCK: "a process has no clock of its own",
    Kind.READ_ONLY: "a file system with an open journal cannot be made read-only",
}
_ON_LINKS = ISLANDS | {Kind.SLOW, Kind.SLOW_DONOR, Kind.LOSS}
#: Of a worker's folder that can be full.
_DISK_BYTES = 96 << 20
_FILLER = "filler"


def unable(script: Script, *, links: bool, disks: bool) -> list[str]:
    """What of a script cannot be carried out, and why; a line for each kind."""
    reasons = dict(IMPOSSIBLE)
    if not links:
        reasons |= dict.fromkeys(_ON_LINKS, "needs emulated links (--links)")
    if not disks:
        reasons[Kind.DISK_FULL] = "needs root, to mount a small file system"
    kinds = dict.fromkeys(fault.kind for fault in script)
    return [f"{kind.value}: {reasons[kind]}" for kind in kinds if kind in reasons]


@contextmanager
def small_disks(folders: list[Path]) -> Iterator[None]:
    """Folders on file systems of their own that can be filled; as root."""
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", str(folder)]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                raise BenchError(f"cannot mount a small file system on {folder}: needs root")
            stack.callback(_unmount, folder)
        yield


class Player:
    """Plays a script on a swarm, from one thread, and keeps book of what had an effect.

    Args:
        swarm: machine ``n`` is its worker ``n``.
        script: all of it can be done (``unable``).
        links: what the workers' hosts are behind, if they are.
        link: each of them as it is without faults.
    """

    def __init__(self, swarm: Swarm, script: Script, links: Links | None = None, link: Link | None = None) -> None:
        self._swarm = swarm
        self._script = script
        self._links = links
        self._link = link or Link()
        self._stopped: dict[Fault, list[tuple[Process, list[int]]]] = {}
        self._active: list[Fault] = []
        self.fired: list[Fault] = []
        """In the order of their beginnings."""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is wrong at the moment but that workers may be missing."""
        return not self._active

    def play(self, watch: Callable[[], None]) -> None:
        """Strike each fault at its time, counted from now; returns after the end of the last one.

        Args:
            watch: called again and again meanwhile; may raise.
        """
        began = time.monotonic()
        moments = [(fault.at_s, False, fault) for fault in self._script]
        moments += [(fault.end_s, True, fault) for fault in self._script if fault.for_s]
        for at_s, ends, fault in sorted(moments, key=lambda moment: moment[:2]):
            while time.monotonic() - began < at_s:
                watch()
                time.sleep(0.2)
            if ends:
                self._active.remove(fault)
                self._end(fault)
            else:
                if self._begin(fault):
                    self.fired.append(fault)
                if fault.for_s:
                    self._active.append(fault)
                    self._set_links()

    def _workers(self, fault: Fault) -> list[Worker]:
        return [self._swarm.workers[number] for number in fault.machines]

    def _begin(self, fault: Fault) -> bool:
        """Whether it has an effect."""
        living = [worker for worker in self._workers(fault) if worker.process is not None]
        if fault.kind is Kind.KILL:
            self._swarm.kill(*living)
        elif fault.kind in (Kind.START, Kind.START_EMPTY):
            return self._start(fault)
        elif fault.kind in DAMAGE:
            damaged = [damage(worker.folder, fault.kind) for worker in self._workers(fault)]
            return any(damaged)
        elif fault.kind in (Kind.PAUSE, Kind.HALF_OPEN):
            # Who is stopped while its daemon goes on takes calls and does not answer.
            with_daemon = fault.kind is Kind.PAUSE
            self._stopped[fault] = [(w.life, w.stop_now(with_daemon=with_daemon)) for w in living]
        elif fault.kind is Kind.DISK_FULL:
            for worker in self._workers(fault):
                fill(worker.folder)
        return bool(living) or fault.kind is Kind.LOSS

    def _start(self, fault: Fault) -> bool:
        dead = [worker for worker in self._workers(fault) if worker.process is None]
        for worker in dead:
            if fault.kind is Kind.START_EMPTY:
                wipe(worker.folder)
            if any(worker.folder.glob("**/checkpoints/latest")):  # a pipeline has a tree for each stage
                worker.start("--resume", str(worker.folder))
            elif others := [other for other in self._swarm.living if other.process is not None]:
                worker.start("--join", others[0].address())
        return bool(dead)

    def _end(self, fault: Fault) -> None:
        for process, pids in self._stopped.pop(fault, []):
            if process.popen.poll() is None:
                Worker.wake(pids)
        if fault.kind is Kind.DISK_FULL:
            for worker in self._workers(fault):
                (worker.folder / _FILLER).unlink(missing_ok=True)
        self._set_links()

    def _set_links(self) -> None:
        """Every link as all that goes on makes it. An island of several falls apart: none of them hears the others."""
        if self._links is None:
            return
        loss = max((fault.amount for fault in self._active if fault.kind is Kind.LOSS), default=self._link.loss)
        for number in range(len(self._swarm.workers)):
            struck = [fault for fault in self._active if number in fault.machines]
            kinds = {fault.kind for fault in struck}
            rates = {fault.kind: 8 * fault.amount for fault in struck if fault.kind in LINES and fault.amount}
            slowest = min(rates.values(), default=self._link.up_bits_per_s)
            self._links.change(
                number,
                Link(slowest, rates.get(Kind.SLOW, self._link.down_bits_per_s), loss=loss),
                deaf=bool(kinds & {Kind.CUT, Kind.DEAF}),
                mute=bool(kinds & {Kind.CUT, Kind.MUTE}),
            )


def _unmount(folder: Path) -> None:
    """Give the small file system back; what is on it stays in the folder."""
    aside = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, aside, ignore=shutil.ignore_patterns(_FILLER))
    subprocess.run(["umount", "-l", str(folder)], check=False)
    shutil.rmtree(folder)
    aside.rename(folder)


def damage(folder: Path, kind: Kind) -> bool:
    """Spoil the largest file of the newest checkpoint; whether that was done. The last one that is left is spared."""
    trees = sorted(folder.glob("**/checkpoints"))  # of a pipeline, one for each stage
    checkpoints = sorted(path for path in trees[0].glob("step_*") if path.is_dir()) if trees else []
    if len(checkpoints) < 2:
        return False
    files = [path for path in checkpoints[-1].rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    size = path.stat().st_size
    if kind is Kind.TORN:
        os.truncate(path, size // 2)
    else:
        with path.open("r+b") as file:
            file.seek(size // 2)
            byte = file.read(1)
            file.seek(size // 2)
            file.write(bytes([byte[0] ^ 0xFF]))
    return True


def wipe(folder: Path) -> None:
    """Leave nothing to go on from, but what the bench reads: journal and output."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(("journal", "std")):
            path.unlink()


def fill(folder: Path) -> None:
    """Until there is no room for a byte."""
    with suppress(OSError), (folder / _FILLER).open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
