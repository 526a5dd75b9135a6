"""What processes cost, by the kernel's own counts: processor time, memory, bytes on a network interface."""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """What a process has started, whichever of its threads; none if it has ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def family(pid: int) -> list[int]:
    """A process and all that come of it."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def processor_s(pid: int) -> float:
    """Of a process and all that come of it, those included that have ended; 0 if it has ended itself."""
    return sum(map(_processor_s, family(pid)))


def _processor_s(pid: int) -> float:
    return _counted_s(Path(f"/proc/{pid}/stat"))


def _counted_s(stat: Path) -> float:
    """Of what a file of the kernel is about, a process or a thread; 0 if it has ended."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor time of a worker so far, in seconds, by who has spent it."""

    time_s: float
    """When: of the monotonic clock."""
    training_s: float
    """The process's main thread, which trains."""
    python_s: float
    """Its other threads: what is left of the process's own time, so two ticks of 10 ms may be missing."""
    daemon_s: float
    """What it has started."""

    @classmethod
    def of(cls, pid: int) -> "Spent":
        """As of now."""
        own_s = _processor_s(pid)
        training_s = _counted_s(Path(f"/proc/{pid}/task/{pid}/stat"))
        return cls(time.monotonic(), training_s, own_s - training_s, sum(map(processor_s, children(pid))))


def memory_bytes(pid: int) -> int:
    """Memory of a process and all that come of it: their own, and their share of what others have too (PSS)."""
    return sum(map(_memory_bytes, family(pid)))


def _memory_bytes(pid: int) -> int:
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), flags=re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def sent_bytes(interface: str = "lo") -> int:
    """That an interface of this network namespace has sent since it is up, packets with their headers."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith(f"{interface}:"))
