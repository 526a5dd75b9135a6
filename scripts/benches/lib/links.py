"""Emulated access links between network namespaces: what the benches and tests on poor links run on.

``links.c`` forwards the packets and is compiled at every use; here it is started, asked and ended. Knows nothing of
workers. See docs/link-emulator.md.
"""

import json
import math
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

from scripts.benches.lib.command import BenchError

T = TypeVar("T")
_SOURCE = Path(__file__).with_name("links.c")
_MTU = 1500
_END_TIMEOUT_S = 5.0
#: A queue holds so much of its link's rate at least, and so many packets.
_MIN_QUEUE_S = 0.02
_MIN_QUEUE_PACKETS = 20


class LinksError(BenchError):
    """This machine cannot emulate links; the message says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where a process runs."""

    address: str = "127.0.0.1"
    """IPv4."""
    prefix: tuple[str, ...] = ()
    """In front of a command that is to run there; the command keeps its process id."""

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        """The command that runs ``command`` on this host."""
        return [*self.prefix, *map(str, command)]

    def on_core(self, core: int) -> "Host":
        """This host with nothing but one of the machine's cores."""
        return replace(self, prefix=(*self.prefix, "taskset", "--cpu-list", str(core)))


LOOPBACK = Host()


@dataclass(frozen=True, slots=True)
class Link:
    """A host's link to the network, through which it reaches everybody.

    A packet from one host to another passes the uplink of the one and the downlink of the other, so a round trip takes
    twice the sum of both delays.
    """

    up_bits_per_s: float = math.inf
    """Of IP packets, headers included."""
    down_bits_per_s: float = math.inf
    delay_s: float = 0.0
    """Of each direction, after a packet has been sent."""
    jitter_s: float = 0.0
    """Longest delay that comes on top, another one every 10 ms; packets keep their order."""
    loss: float = 0.0
    """Share of packets that each direction loses at random."""
    queue_s: float | None = None
    """What waits for the link at most, in seconds of its rate; None for the longest round trip among all hosts."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What one direction of a host's link has done so far."""

    bytes: int
    """Of IP packets that came through."""
    packets: int
    dropped: int
    """Packets for which the queue had no room."""
    lost: int
    """Packets lost at random."""


@dataclass(frozen=True, slots=True)
class Counters:
    """The emulator at one moment."""

    time_s: float
    """Of the monotonic clock."""
    cpu_s: float
    """Processor time it has used."""
    latest_s: float
    """How late it moved a packet at worst since it was last asked."""
    up: tuple[Flow, ...]
    """By host."""
    down: tuple[Flow, ...]


def unavailable() -> str:
    """Why this machine cannot emulate links; empty if it can."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        return "links are emulated on Linux by root only"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is missing"
    missing = [name for name in ("cc", "nsenter") if shutil.which(name) is None]
    return f"{' and '.join(missing)}: not found" if missing else ""


class Links:
    """Hosts, each in a network namespace of its own behind its link. A context manager.

    When this process dies, however it does, the emulator ends; a namespace goes with the last process inside.

    Args:
        links: of the hosts, in order.
        seed: of loss and jitter.
        send_buffer_bytes: largest send buffer of the hosts' TCP connections; 0 for the system's.

    Raises:
        LinksError: on entering, if this machine cannot do it.
    """

    def __init__(self, links: Sequence[Link], seed: int = 0, *, send_buffer_bytes: int = 0) -> None:
        self._links = list(links)
        self._send_buffer_bytes = send_buffer_bytes
        self._seed = seed
        self._namespaces: list[str] = []
        self._emulator: subprocess.Popen[str] | None = None
        self._asking = threading.Lock()

    def __enter__(self) -> Self:
        """Compile and start the emulator."""
        if reason := unavailable():
            raise LinksError(reason)
        with ExitStack() as stack:
            program = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decentral-links-")), "links")
            built = subprocess.run(
                ["cc", "-O2", "-o", program, _SOURCE, "-lm"], capture_output=True, text=True, check=False
            )
            if built.returncode:
                raise LinksError(f"cc cannot compile {_SOURCE}:\n{built.stderr}")
            pipe = subprocess.PIPE
            command: list[str | Path] = [program, str(self._seed), *self._described()]
            self._emulator = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            line = self._read()
        self._namespaces = [f"/proc/{self._emulator.pid}/fd/{number}" for number in json.loads(line)]
        if self._send_buffer_bytes:
            setting = f"net.ipv4.tcp_wmem=4096 16384 {self._send_buffer_bytes}"
            for host in self.hosts:
                subprocess.run(host.inside(["sysctl", "-q", setting]), check=True)
        return self

    def __exit__(self, *error: object) -> None:
        """End the emulator. Whatever still runs inside is without a network from now on."""
        assert self._emulator is not None
        try:
            self._emulator.communicate(timeout=_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._emulator.kill()
            self._emulator.communicate()

    def _described(self) -> list[str]:
        """The emulator's arguments."""
        round_trip_s = 4 * max((link.delay_s + link.jitter_s for link in self._links), default=0.0)

        def queue(link: Link, rate: float) -> float:
            seconds = max(_MIN_QUEUE_S, round_trip_s) if link.queue_s is None else link.queue_s
            return max(_MIN_QUEUE_PACKETS * _MTU, seconds * rate / 8)

        described = []
        for link in self._links:
            up, down = link.up_bits_per_s, link.down_bits_per_s
            values = (up, down, link.delay_s, link.jitter_s, link.loss, queue(link, up), queue(link, down))
            described.append(":".join(map(str, values)))
        return described

    def _read(self) -> str:
        """The emulator's next line."""
        assert self._emulator is not None
        assert self._emulator.stdout is not None
        line = self._emulator.stdout.readline()
        if not line:
            _, said = self._emulator.communicate()
            raise LinksError(said.strip() or f"the emulator ended with status {self._emulator.returncode}")
        return line

    def host(self, number: int) -> Host:
        """A host by its number."""
        return Host(f"11.99.0.{number + 1}", ("nsenter", f"--net={self.namespace(number)}", "--"))

    @property
    def hosts(self) -> list[Host]:
        """All of them."""
        return [self.host(number) for number in range(len(self._links))]

    def namespace(self, host: int) -> str:
        """Where a host's network namespace can be opened."""
        return self._namespaces[host]

    @property
    def emulator_pid(self) -> int:
        """Of the process that forwards the packets."""
        assert self._emulator is not None
        return self._emulator.pid

    def change(self, host: int, link: Link, *, deaf: bool = False, mute: bool = False) -> None:
        """Give a host's link other rates and another loss from now on; its delay and its queues stay as they are.

        Args:
            host: its number.
            link: of which the rates and the loss are taken.
            deaf: nothing reaches the host.
            mute: nothing leaves it.
        """
        up_loss, down_loss = (1.0 if all_ else link.loss for all_ in (mute, deaf))
        self._ask(f"{host}:{link.up_bits_per_s}:{link.down_bits_per_s}:{up_loss}:{down_loss}")

    def counters(self) -> Counters:
        """What all links have done so far; from any thread."""
        read = self._ask("")
        flows = {way: tuple(Flow(**host[way]) for host in read["hosts"]) for way in ("up", "down")}
        return Counters(read["time_s"], read["cpu_s"], read["latest_s"], flows["up"], flows["down"])

    def _ask(self, line: str) -> Any:
        """The emulator's answer to a line."""
        with self._asking:
            assert self._emulator is not None
            assert self._emulator.stdin is not None
            try:
                self._emulator.stdin.write(f"{line}\n")
                self._emulator.stdin.flush()
            except BrokenPipeError:
                pass  # what it ended with is read next
            return json.loads(self._read())


class Sampler(Generic[T]):
    """Reads something ten times a second, such as the counters, from its start to its end. A context manager."""

    def __init__(self, read: Callable[[], T], period_s: float = 0.1) -> None:
        self._read = read
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[T] = []

    def __enter__(self) -> Self:
        """Begin."""
        self.samples.append(self._read())
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self.samples.append(self._read())

    def _sample(self) -> None:
        while not self._stop.wait(self._period_s):
            self.samples.append(self._read())


@dataclass(frozen=True, slots=True)
class Carried:
    """What a link has carried between the first and the last of several samples."""

    bytes: int
    mean_bits_per_s: float
    peak_bits_per_s: float
    """The largest in any second; NaN if all took less than one."""


def during(samples: Sequence[Counters], began_s: float, ended_s: float) -> list[Counters]:
    """The samples of a time."""
    return [sample for sample in samples if began_s <= sample.time_s <= ended_s]


def carried(samples: Sequence[Counters], host: int, way: Literal["up", "down"] = "up") -> Carried:
    """By one direction of a host's link, from at least two samples."""
    times = [sample.time_s for sample in samples]
    counted = [(sample.up if way == "up" else sample.down)[host].bytes for sample in samples]
    moved = counted[-1] - counted[0]
    return Carried(moved, 8 * moved / (times[-1] - times[0]), max(window_rates(times, counted), default=math.nan))


def emulation(samples: Sequence[Counters]) -> dict[str, float]:
    """Whether the emulator kept up: its share of a core, and how late it was at worst."""
    cpu_s, span_s = samples[-1].cpu_s - samples[0].cpu_s, samples[-1].time_s - samples[0].time_s
    return {"emulator_cpu": cpu_s / span_s, "latest_s": max(sample.latest_s for sample in samples)}


def window_rates(times_s: Sequence[float], num_bytes: Sequence[int], window_s: float = 1.0) -> list[float]:
    """Bits per second over each window of (just over) ``window_s`` that begins at a sample.

    Args:
        times_s: moments of the samples, ascending.
        num_bytes: counted until then.
        window_s: length of a window.
    """
    rates, end = [], 0
    for start, began in enumerate(times_s):
        while end < len(times_s) and times_s[end] - began < window_s:
            end += 1
        if end == len(times_s):
            break
        rates.append(8 * (num_bytes[end] - num_bytes[start]) / (times_s[end] - began))
    return rates
