"""Routers between hosts and the emulated network of ``links``, with the address translations that homes have.

A host of ``Links`` becomes the router, and another namespace behind it, on a cable of its own (veth), the machine at
home. What the router does to TCP is a ruleset of nftables. Knows nothing of workers. See docs/link-emulator.md.
"""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

from scripts.benches.lib.links import Host, Links, LinksError, unavailable

_END_TIMEOUT_S = 5.0
#: Of the networks at homes the third byte, plus the number of the router.
_FIRST_NETWORK = 77


class Nat(StrEnum):
    """What a router lets in, beside answers to what went out."""

    FORWARDED = "forwarded port"
    """The router passes on whatever comes to its address."""
    FULL_CONE = "full cone"
    """A port that something went out from is open to everybody."""
    RESTRICTED = "restricted cone"
    """It is open to those addresses to which something went out from it."""
    PORT_RESTRICTED = "port-restricted cone"
    """It is open to those addresses and ports alone to which something went out from it."""
    SYMMETRIC = "symmetric"
    """As before, and each destination sees another port."""


#: Ports stay what they are inside, unless the router draws them; what was sent out is remembered in the sets.
_RULES = """
table ip home {{
    set opened {{ type inet_service; flags dynamic; timeout 1h; }}
    set known {{ type ipv4_addr . inet_service; flags dynamic; timeout 1h; }}
    chain out {{
        type nat hook postrouting priority srcnat
        oifname link0 add @opened {{ tcp sport }}
        oifname link0 add @known {{ ip daddr . tcp sport }}
        oifname link0 meta l4proto tcp masquerade {ports}
    }}
    chain in {{
        type nat hook prerouting priority dstnat
        iifname link0 meta l4proto tcp {passed}
    }}
    chain unasked {{
        type filter hook input priority filter
        iifname link0 ct state new drop
    }}
}}
"""
_NOBODY = "tcp dport 0 drop"
_PASSED = {
    Nat.FORWARDED: "dnat to {inside}",
    Nat.FULL_CONE: "tcp dport @opened dnat to {inside}",
    Nat.RESTRICTED: "ip saddr . tcp dport @known dnat to {inside}",
}
#: Of a machine without a router that lets nothing in that it did not ask for.
FIREWALL = """
table inet wall {
    chain in {
        type filter hook input priority filter
        iifname link0 ct state new drop
    }
}
"""


def unavailable_nat() -> str:
    """Why this machine cannot emulate routers; empty if it can."""
    if reason := unavailable():
        return reason
    missing = [name for name in ("nft", "ip", "sysctl", "unshare") if shutil.which(name) is None]
    return f"{' and '.join(missing)}: not found" if missing else ""


def rule(host: Host, rules: str) -> None:
    """Load rules of nftables on a host.

    Raises:
        LinksError: the kernel does not take them.
    """
    _run(host, "nft", "-f", "-", given=rules)


@dataclass(frozen=True, slots=True)
class Home(Host):
    """A machine behind a router."""

    pid: int = 0
    """Of what keeps its namespace."""


@contextmanager
def behind(links: Links, router: int, nat: Nat) -> Iterator[Home]:
    """A machine behind a host of the emulated network, which becomes its router.

    Args:
        links: entered.
        router: number of the host.
        nat: what the router does.

    Raises:
        LinksError: this machine cannot do it.
    """
    # The namespace lives as long as somebody is in it.
    command = ["unshare", "--net", "--", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        try:
            assert keeper.stdout is not None
            keeper.stdout.readline()
            home = Home(prefix=("nsenter", f"--net=/proc/{keeper.pid}/ns/net", "--"), pid=keeper.pid)
            _run(home, "ip", "link", "set", "lo", "up")
            yield plug(links, home, router, nat)
        finally:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait(_END_TIMEOUT_S)


def plug(links: Links, home: Home, router: int, nat: Nat) -> Home:
    """Put a machine behind a router, and away from the one where it was, of which it is told nothing.

    Returns:
        The machine with the address that it has there.
    """
    outside, device = links.host(router), f"home{home.pid}"
    network = f"192.168.{_FIRST_NETWORK + router}"
    if home.address.startswith("192.168."):
        _run(home, "ip", "link", "delete", "link0")
    home = replace(home, address=f"{network}.2")
    _run(outside, *f"ip link add {device} type veth peer name link0 netns {home.pid}".split())
    for host, name, address in ((outside, device, f"{network}.1"), (home, "link0", home.address)):
        _run(host, *f"ip address add {address}/24 dev {name}".split())
        _run(host, *f"ip link set {name} up".split())
    _run(home, *f"ip route add default via {network}.1".split())
    _run(outside, "sysctl", "-q", "net.ipv4.ip_forward=1")
    ports = "random" if nat is Nat.SYMMETRIC else ""
    passed = _PASSED.get(nat, _NOBODY).format(inside=home.address)
    rule(outside, _RULES.format(ports=ports, passed=passed))
    return home


def cable(one: Host, other: Host, name: str, addresses: Sequence[tuple[str, str]]) -> None:
    """A further cable between two hosts, past the emulated network.

    Args:
        one: whose end is the first of each pair.
        other: likewise.
        name: of the device at both ends.
        addresses: of both ends, as ``ip address add`` takes them, of either family.
    """
    netns = other.prefix[1].removeprefix("--net=")
    _run(one, *f"ip link add {name} type veth peer name {name} netns {netns}".split())
    for host, number in ((one, 0), (other, 1)):
        for pair in addresses:
            nodad = ["nodad"] if ":" in pair[number] else []
            _run(host, *f"ip address add {pair[number]} dev {name}".split(), *nodad)
        _run(host, *f"ip link set {name} up".split())


def _run(host: Host, *command: str, given: str | None = None) -> None:
    done = subprocess.run(host.inside(command), input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LinksError(f"{' '.join(command)}: {done.stderr.strip()}")
