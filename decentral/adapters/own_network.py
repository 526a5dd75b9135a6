"""Whether this machine has come to another network, as a laptop does. Knows no peer, and sends nothing."""

import socket
from collections.abc import Iterable

#: Of the documentation, so nowhere: what would go there takes the way to the internet.
_ANYWHERE = ("192.0.2.1", "2001:db8::1")


class OwnNetwork:
    """The addresses from which this machine speaks.

    Args:
        hosts: IP addresses to which it speaks, beside the internet; names are left out.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = (*_ANYWHERE, *hosts)
        self.addresses = self._look()
        """As they were at the last look at which there was a network."""

    def has_changed(self) -> bool:
        """Whether an address is gone since the last look, and another network is there; it is told of once.

        A second network, or an address that comes beside the old one, breaks nothing.
        """
        now = self._look()
        if not now:
            return False
        before, self.addresses = self.addresses, now
        return not all(map(_is_own, before))

    def _look(self) -> tuple[str, ...]:
        found = (_source(host) for host in self._hosts)
        return tuple(dict.fromkeys(address for address in found if address))


def _source(host: str) -> str:
    """From which address this machine would speak to another one; empty if there is no way."""
    try:
        with socket.socket(_family(host), socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError:  # also for a name
        return ""


def _is_own(address: str) -> bool:
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
