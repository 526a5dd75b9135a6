"""Routers between hosts and the emulated network of ``links``, with the address translations that homes have.

A host of ``Links`` becomes the router, and another namespace behind it, on a cable of its own (veth), the machine at
home. What the router does to TCP is a ruleset of nftables. Knows nothing of workers. See docs/link-emulator.md.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from scripts.benches.lib.links import Host, Links, LinksError, unavailable

_END_TIMEOUT_S = 5.0


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


_INSIDE = "192.168.77.2"
_ROUTER = "192.168.77.1"
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
    Nat.FORWARDED: f"dnat to {_INSIDE}",
    Nat.FULL_CONE: f"tcp dport @opened dnat to {_INSIDE}",
    Nat.RESTRICTED: f"ip saddr . tcp dport @known dnat to {_INSIDE}",
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


@contextmanager
def behind(links: Links, router: int, nat: Nat) -> Iterator[Host]:
    """A machine behind a host of the emulated network, which becomes its router.

    Args:
        links: entered.
        router: number of the host.
        nat: what the router does.

    Raises:
        LinksError: this machine cannot do it.
    """
    outside = links.host(router)
    # The namespace lives as long as somebody is in it.
    command = ["unshare", "--net", "--", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        try:
            assert keeper.stdout is not None
            keeper.stdout.readline()
            inside = Host(_INSIDE, ("nsenter", f"--net=/proc/{keeper.pid}/ns/net", "--"))
            _run(outside, *f"ip link add home0 type veth peer name link0 netns {keeper.pid}".split())
            for host, device, address in ((outside, "home0", _ROUTER), (inside, "link0", _INSIDE)):
                _run(host, *f"ip address add {address}/24 dev {device}".split())
                _run(host, *f"ip link set {device} up".split())
            _run(inside, "ip", "link", "set", "lo", "up")
            _run(inside, *f"ip route add default via {_ROUTER}".split())
            _run(outside, "sysctl", "-q", "net.ipv4.ip_forward=1")
            ports = "random" if nat is Nat.SYMMETRIC else ""
            rule(outside, _RULES.format(ports=ports, passed=_PASSED.get(nat, _NOBODY)))
            yield inside
        finally:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait(_END_TIMEOUT_S)


def _run(host: Host, *command: str, given: str | None = None) -> None:
    done = subprocess.run(host.inside(command), input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LinksError(f"{' '.join(command)}: {done.stderr.strip()}")
