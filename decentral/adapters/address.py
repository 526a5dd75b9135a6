"""What a person pastes after ``--join``: a multiaddr, ``host:port`` or ``host:port/PEERID``, perhaps with ``#TOKEN``.

A multiaddr may lead through a relay: place and id of that one, ``/p2p-circuit``, and the id of the peer behind it.

The token is a secret. ``str`` and ``multiaddr`` leave it away, so that no log and no error shows it.
"""

import ipaddress
import re
from dataclasses import dataclass, replace

from decentral.adapters.hivemind_light import PeerID
from decentral.adapters.invitation import Invitation
from decentral.errors import UsageError
from decentral.types import PeerId

_MAX_TEXT = 1000
_HOST_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
_PEER_KINDS = ("p2p", "ipfs")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_EXAMPLE = "203.0.113.7:31337"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer listens."""

    host: str
    """IP address (version 6 without brackets) or host name."""
    port: int
    peer: PeerId | None = None
    """Who is expected there; ``None`` if the address does not say."""
    relay: PeerId | None = None
    """Who listens there and passes everything on to ``peer``; ``None`` if that is the peer itself."""
    invitation: Invitation | None = None
    """To the private swarm there."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def multiaddr(self) -> str:
        """The form libp2p takes; with the peer id if it is known."""
        try:
            kind = f"ip{ipaddress.ip_address(self.host).version}"
        except ValueError:
            kind = "dns"
        through = f"/p2p/{self.relay}/p2p-circuit" if self.relay else ""
        return f"/{kind}/{self.host}/tcp/{self.port}{through}" + (f"/p2p/{self.peer}" if self.peer else "")

    def listener(self) -> "Address":
        """Who listens at the place itself: the relay, if the address leads through one."""
        return replace(self, peer=self.relay, relay=None) if self.relay else self

    def with_peer(self, peer: PeerId) -> "Address":
        """The same place with its peer id filled in."""
        return replace(self, peer=peer)


def parse_address(text: str, *, option: str = "--join") -> Address:
    """Read an address as a person writes it.

    Args:
        text: what was given.
        option: the flag or argument that it was given to, for the messages.

    Raises:
        UsageError: says what is missing or wrong.
    """
    text, has_token, token = text.strip().partition("#")
    if not text:
        hint = "To start a new swarm use --new." if option == "--join" else ""
        raise UsageError(f"{option} is empty (is a variable unset?).", hint=hint)
    if len(text) > _MAX_TEXT:
        raise UsageError(f"{option} is {len(text)} characters long, which no address is.")
    address = _from_multiaddr(text, option) if text.startswith("/") else _from_short_form(text, option)
    try:
        return replace(address, invitation=Invitation.parse(token)) if has_token else address
    except ValueError as err:
        raise UsageError(
            f"What follows # in the address of {address} is not a token: {err}.", hint="Was it cut when it was copied?"
        ) from None


def _from_multiaddr(text: str, option: str) -> Address:
    parts = text.strip("/").split("/")
    if parts[0] not in _HOST_KINDS:
        raise UsageError(_wrong(text, f"it starts with /{parts[0]}, expected is one of /{', /'.join(_HOST_KINDS)}"))
    if len(parts) < 2:
        raise UsageError(_wrong(text, "it has no host"))
    if len(parts) < 4 or parts[2] != "tcp":
        found = "/".join(parts[2:4])
        raise UsageError(_wrong(text, f"it has /{found} where /tcp/PORT belongs" if found else "it has no /tcp/PORT"))
    rest, relay = parts[4:], None
    if "p2p-circuit" in rest:
        if len(rest) not in (3, 5) or rest[0] not in _PEER_KINDS or rest[2] != "p2p-circuit":
            raise UsageError(_wrong(text, "through a relay it is .../p2p/RELAY/p2p-circuit/p2p/PEERID"))
        rest, relay = rest[3:], _peer(rest[1], text)
    if rest and (len(rest) != 2 or rest[0] not in _PEER_KINDS):
        raise UsageError(_wrong(text, f"after the port comes /{'/'.join(rest)}, expected is /p2p/PEERID"))
    return Address(_host(parts[1], text), _port(parts[3], text), _peer(rest[1], text) if rest else None, relay)


def _from_short_form(text: str, option: str) -> Address:
    if "://" in text:
        raise UsageError(f"{_quoted(text)} is a URL. {option} takes an address such as {_EXAMPLE}.")
    place, _, peer = text.partition("/")
    host, colon, port = place.rpartition(":")
    if host.count(":") and not (host.startswith("[") and host.endswith("]")):
        raise UsageError(f"{_quoted(text)} is ambiguous. Write an IPv6 address as [2001:db8::7]:31337.")
    if not colon:
        if _is_peer(text):
            raise UsageError(f"{_quoted(text)} is a peer id without a place. Write it as {_EXAMPLE}/{text}.")
        raise UsageError(f"{_quoted(text)} has no port. Write it as {place}:31337.")
    return Address(_host(host.strip("[]"), text), _port(port, text), _peer(peer, text) if peer else None)


def _wrong(text: str, why: str) -> str:
    return (
        f"{_quoted(text)} is not an address: {why}. Write it as {_EXAMPLE} or paste the line that the worker printed."
    )


def _quoted(text: str) -> str:
    return f'"{text}"'


def _host(host: str, text: str) -> str:
    if not host:
        raise UsageError(_wrong(text, "it has no host"))
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if _HOST_NAME.fullmatch(host) is None or re.fullmatch(r"[\d.]+", host):
            raise UsageError(_wrong(text, f"{_quoted(host)} is neither an IP address nor a host name")) from None
        return host


def _port(port: str, text: str) -> int:
    if not (port.isascii() and port.isdigit()) or not 0 < int(port[:9]) < 65536:
        raise UsageError(_wrong(text, f"its port is {_quoted(port)}, expected is a number from 1 to 65535"))
    return int(port)


def _peer(peer: str, text: str) -> PeerId:
    if not _is_peer(peer):
        raise UsageError(
            f"{_quoted(text)} ends in {_quoted(peer)}, which is not a peer id. Was it cut when it was copied?"
        )
    return PeerId(peer)


def _is_peer(text: str) -> bool:
    """Whether it is the base58 form of a hash of a key (sha2-256) or of a short key itself."""
    try:
        packed = PeerID.from_base58(text).to_bytes()
    except ValueError:
        return False
    return len(packed) > 2 and packed[0] in (0x00, 0x12) and packed[1] == len(packed) - 2
