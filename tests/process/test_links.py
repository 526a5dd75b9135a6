"""The emulated links do what they are set to: nothing is early, out of order, or unaccounted for.

Bounds are those that hold on a machine of any speed: what is slow may be late, never early.
"""

import ctypes
import hashlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.benches.lib.links import Counters, Flow, Link, Links, LinksError, Sampler, unavailable, window_rates
from tests.process.command import ROOT, wait_for
from tests.process.test_leash import is_gone

needs_links = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

PORT = 5000
#: Of an IPv4 packet around a datagram.
HEAD_BYTES = 28
BODY_BYTES = 972
PACKET_BITS = 8 * (HEAD_BYTES + BODY_BYTES)
#: The emulator handles packets in turns.
TURN_S = 0.001
LONG_QUEUE_S = 60.0
#: As root, beyond the system's limit; Linux's number, which Python does not name.
_SO_RCVBUFFORCE = 33

HOLDER = """
import pathlib, sys
from scripts.benches.lib.links import Link, Links
from scripts.benches.lib.processes import Process
with Links([Link()]) as links:
    inside = Process(pathlib.Path(sys.argv[1]), ["sleep", "1000"], links.host(0))
    print(links.emulator_pid, inside.popen.pid, flush=True)
    sys.stdin.read()
"""


def socket_on(links: Links, host: int, kind: socket.SocketKind) -> socket.socket:
    """A socket of a host's, in this process: it belongs to the namespace in which it was made, for good."""
    made: list[socket.socket] = []

    def enter() -> None:
        with open(links.namespace(host)) as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0
        made.append(socket.socket(socket.AF_INET, kind))

    thread = threading.Thread(target=enter)  # Only this thread goes there.
    thread.start()
    thread.join()
    made[0].settimeout(20.0)
    return made[0]


class Hosts:
    """Two or more hosts with a socket for datagrams each."""

    def __init__(self, links: Links, num_hosts: int, stack: ExitStack) -> None:
        self.links = links
        self.sockets = [stack.enter_context(socket_on(links, i, socket.SOCK_DGRAM)) for i in range(num_hosts)]
        for host, each in enumerate(self.sockets):
            each.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
            each.bind((links.host(host).address, PORT))

    def send(self, source: int, number: int, target: int) -> float:
        """A datagram; when."""
        at = time.monotonic()
        self.sockets[source].sendto(number.to_bytes(BODY_BYTES, "big"), (self.links.host(target).address, PORT))
        return at

    def receive(self, host: int) -> tuple[int, float]:
        """The next datagram's number, and when it was there."""
        body = self.sockets[host].recv(2000)
        return int.from_bytes(body, "big"), time.monotonic()

    def settled(self, host: int, num_sent: int) -> tuple[list[int], Counters]:
        """The datagrams of all that were sent to ``host`` that are not dropped or lost; and the counters then."""

        def missing() -> int:
            seen = self.links.counters()
            return num_sent - seen.down[host].packets - sum(f.dropped + f.lost for f in (*seen.up, *seen.down))

        wait_for(lambda: not missing(), "every packet accounted for")
        seen = self.links.counters()
        return [self.receive(host)[0] for _ in range(seen.down[host].packets)], seen


@contextmanager
def hosts(links: Sequence[Link], seed: int = 0) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack.enter_context(Links(links, seed)), len(links), stack)


@needs_links
def test_every_packet_is_counted_on_both_links_that_it_passes_and_on_no_other() -> None:
    with hosts([Link()] * 3) as net:
        for number in range(50):
            net.send(0, number, 2)
        received, seen = net.settled(2, 50)
    assert received == list(range(50))
    passed, nothing = Flow(50 * PACKET_BITS // 8, 50, 0, 0), Flow(0, 0, 0, 0)
    assert seen.up == (passed, nothing, nothing)
    assert seen.down == (nothing, nothing, passed)


@needs_links
def test_no_packet_is_early_and_all_keep_their_order_under_jitter() -> None:
    with hosts([Link(delay_s=0.02, jitter_s=0.03), Link(delay_s=0.01)]) as net:
        sent = []
        for number in range(400):
            sent.append(net.send(0, number, 1))
            time.sleep(0.0005)
        received = [net.receive(1) for _ in sent]
    assert [number for number, _ in received] == list(range(400))
    delays = [at - sent[number] for number, at in received]
    assert min(delays) >= 0.03 - TURN_S
    assert max(delays) >= 0.04  # of up to 0.06, were there no jitter at work 0.03


@needs_links
def test_loss_is_that_share_and_the_same_for_the_same_seed() -> None:
    num, loss = 3000, 0.1

    def arriving(seed: int) -> list[int]:
        with hosts([Link(loss=loss), Link()], seed) as net:
            for number in range(num):
                net.send(0, number, 1)
            received, seen = net.settled(1, num)
        assert seen.up[0].lost == num - len(received)
        return received

    first = arriving(1)
    sigma = (num * loss * (1 - loss)) ** 0.5
    assert abs(num - len(first) - num * loss) < 4 * sigma
    assert arriving(1) == first
    assert arriving(2) != first


@needs_links
@pytest.mark.parametrize("ways", [[(0, 1), (0, 2)], [(1, 0), (2, 0)]], ids=["uplink", "downlink"])
def test_a_link_has_its_rate_over_all_peers_together(ways: list[tuple[int, int]]) -> None:
    rate, each = 4e6, 100
    slow = Link(up_bits_per_s=rate, down_bits_per_s=rate, queue_s=LONG_QUEUE_S)
    with hosts([slow, Link(), Link()]) as net:
        first = min([net.send(source, number, target) for number in range(each) for source, target in ways])
        targets = [target for _, target in ways]
        last = max(net.receive(target)[1] for target in targets for _ in range(each))
    assert last - first >= 2 * each * PACKET_BITS / rate - TURN_S


@needs_links
def test_a_full_queue_drops_its_tail_in_the_direction_that_is_full() -> None:
    with hosts([Link(up_bits_per_s=1e6, queue_s=0.0), Link()]) as net:
        for number in range(200):
            net.send(0, number, 1)
        received, seen = net.settled(1, 200)
    assert seen.up[0].dropped > 0
    assert seen.down[1].dropped == 0
    assert received[:20] == list(range(20))  # room for so many at least
    assert received == sorted(received)


@needs_links
def test_a_link_can_be_changed_and_hosts_made_deaf_or_mute() -> None:
    with hosts([Link(), Link()]) as net:
        net.links.change(0, Link(), mute=True)
        net.send(0, 1, 1)
        net.send(1, 2, 0)
        assert net.receive(0)[0] == 2
        wait_for(lambda: net.links.counters().up[0].lost, "the loss")
        net.links.change(0, Link(), deaf=True)
        net.send(0, 3, 1)
        net.send(1, 4, 0)
        assert net.receive(1)[0] == 3
        wait_for(lambda: net.links.counters().down[0].lost, "the loss")
        rate = 1e6
        net.links.change(0, Link(up_bits_per_s=rate))
        first = min([net.send(0, number, 1) for number in range(20)])
        assert max(net.receive(1)[1] for _ in range(20)) - first >= 20 * PACKET_BITS / rate - TURN_S


@needs_links
def test_a_change_that_is_none_is_named() -> None:
    with Links([Link()]) as links, pytest.raises(LinksError, match="is no change of a link"):
        links.change(1, Link())


@needs_links
def test_tcp_gets_through_loss_and_jitter_unharmed() -> None:
    content = os.urandom(1 << 20)
    link = Link(up_bits_per_s=50e6, down_bits_per_s=50e6, delay_s=0.002, jitter_s=0.002, loss=0.005)
    with (
        Links([link, link]) as links,
        socket_on(links, 1, socket.SOCK_STREAM) as server,
        socket_on(links, 0, socket.SOCK_STREAM) as client,
    ):
        server.bind((links.host(1).address, PORT))
        server.listen()
        client.connect((links.host(1).address, PORT))
        with Sampler(links.counters, period_s=0.01) as sampler, server.accept()[0] as accepted:

            def send() -> None:
                client.sendall(content)
                client.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            received = b"".join(iter(lambda: accepted.recv(1 << 16), b""))
            sender.join()
        through = sampler.samples[-1].up[0].bytes - sampler.samples[0].up[0].bytes
    assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()
    assert through > len(content)
    times = [sample.time_s for sample in sampler.samples]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))


def test_rates_over_windows() -> None:
    rates = window_rates([0.0, 0.5, 1.0, 2.0, 2.5], [0, 100, 200, 200, 1000])
    assert rates == [8 * 200.0, 8 * 100 / 1.5, 0.0]
    assert window_rates([0.0, 0.5], [0, 100]) == []


@needs_links
def test_nothing_is_left_of_a_bench_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdout is not None
            pids = [int(word) for word in holder.stdout.readline().split()]
            assert len(pids) == 2
            assert not any(is_gone(pid) for pid in pids)
        finally:
            holder.send_signal(signal.SIGKILL)
        wait_for(lambda: all(is_gone(pid) for pid in pids), "the end of the emulator and of what ran inside")


@needs_links
def test_a_command_inside_knows_its_host_and_nothing_else() -> None:
    here = Path("/proc/sys/net/ipv4/tcp_wmem").read_text()
    with Links([Link(), Link()], send_buffer_bytes=123_456) as links:
        commands = (["sysctl", "net.ipv4.tcp_wmem"], ["cat", "/proc/net/fib_trie"], ["cat", "/proc/net/dev"])
        lines = [links.host(1).inside(command) for command in commands]
        buffers, shown, names = (subprocess.run(line, capture_output=True, text=True).stdout for line in lines)
    assert buffers.split()[-1] == "123456"
    assert Path("/proc/sys/net/ipv4/tcp_wmem").read_text() == here
    assert links.host(1).address in shown
    assert links.host(0).address not in shown
    assert sorted(line.split(":")[0].strip() for line in names.splitlines()[2:]) == ["link0", "lo"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LinksError, match="by root only"), Links([Link()]):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(LinksError, match="/dev/net/tun is missing"), Links([Link()]):
        pass
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "cc" else f"/bin/{name}")
    with pytest.raises(LinksError, match="cc: not found"), Links([Link()]):
        pass


@needs_links
def test_the_compiler_and_the_emulator_are_heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LinksError, match="at most"), Links([]):
        pass
    broken = tmp_path / "links.c"
    broken.write_text("int main(void) { return nonsense; }\n")
    monkeypatch.setattr("scripts.benches.lib.links._SOURCE", broken)
    with pytest.raises(LinksError, match="nonsense"), Links([Link()]):
        pass
