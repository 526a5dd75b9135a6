"""Finds out what listens at an address, so that an error can say why a worker cannot be joined there.

The probe goes as far into a libp2p connection as it takes to learn the peer's id: TCP, multistream-select, and a
TLS 1.3 handshake whose server certificate carries the peer's public key. It makes ``host:port`` enough to join. That
is trust on first use: whoever answers at the address may name any id. From then on the id is binding, because the
connection that libp2p makes afterwards succeeds only with the owner of that key. Who wants more gives the id.

Source: libp2p specs, multistream-select and tls (certificate extension 1.3.6.1.4.1.53594.1.1). The signature in
the extension is not checked here for the reason above. Every step is bounded in bytes and by one deadline.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from decentral.adapters.address import Address
from decentral.adapters.identity import peer_id_of
from decentral.errors import UnreachableError, WrongPeerError
from decentral.types import PeerId, short_id

DEFAULT_TIMEOUT_S = 3.5
_MULTISTREAM = b"\x13/multistream/1.0.0\n"
_TLS = b"\x0b/tls/1.0.0\n"
_LIBP2P_EXTENSION = ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_MAX_HANDSHAKE_BYTES = 65_536
_MAX_KEY_BYTES = 1024
_MAX_IPS = 4


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found."""

    address: Address
    """The address that answered: an IP address, with the peer id."""
    took_s: float


async def probe(address: Address, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Probe:
    """Check that a peer listens at ``address`` and complete the address with its id.

    Of an address that leads through a relay it is the relay that is looked for.

    Raises:
        UnreachableError: no such name, nothing listens there, nothing answers, or it is no peer.
        WrongPeerError: a peer, but not the one the address names.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    stage = _Stage()
    try:
        async with asyncio.timeout(timeout_s):
            ips = await _resolve(address)
            stage.what = "connect"
            reader, writer = await _connect(address, ips)
            try:
                stage.what = "talk"
                peer = await _peer_behind(address, reader, writer)
                ip = str(writer.get_extra_info("peername")[0])
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise _timed_out(address, stage.what, timeout_s) from None
    except (OSError, ssl.SSLError) as err:
        raise _not_a_peer(address, f"it broke the connection off: {err}") from err
    expected = address.relay or address.peer
    if expected not in (None, peer):
        raise WrongPeerError(
            f"{address} is a peer, but its id is {_brief(peer)} and you gave {_brief(expected or peer)}.",
            hint="It was restarted with a new identity, or its address now belongs to another worker. "
            "Use the line that it prints now.",
        )
    found = replace(address, host=ip, peer=address.peer or peer, invitation=None)
    return Probe(found, loop.time() - started)


@dataclass(slots=True)
class _Stage:
    what: str = "resolve"


async def _resolve(address: Address) -> list[str]:
    """The host's IP addresses, version 4 first. On a thread that nobody waits for: a resolver may take a minute."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(ips: list[str], failure: OSError | None) -> None:
        if not answer.done():
            answer.set_exception(failure) if failure else answer.set_result(ips)

    def look_up() -> None:
        ips: list[str] = []
        failure = None
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            ips = [str(entry[4][0]) for entry in sorted(found, key=lambda entry: entry[0] != socket.AF_INET)]
        except OSError as err:
            failure = err
        with contextlib.suppress(RuntimeError):  # The loop may be closed by now.
            loop.call_soon_threadsafe(settle, ips[:_MAX_IPS], failure)

    threading.Thread(target=look_up, name="decentral-resolve", daemon=True).start()
    try:
        return await answer
    except socket.gaierror as err:
        raise UnreachableError(
            f"{address.host} is not known: {err.strerror}.",
            hint="Check the spelling, or give the IP address.",
        ) from None


async def _connect(address: Address, ips: list[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    failure: OSError | None = None
    for ip in ips:
        try:
            return await asyncio.open_connection(ip, address.port)
        except OSError as err:
            failure = failure or err
    if isinstance(failure, ConnectionRefusedError):
        raise UnreachableError(
            f"Nothing listens on {address} (connection refused).",
            hint="Is the worker running there, and on this port? Ask its owner for the line that it printed.",
        )
    raise UnreachableError(
        f"{address} cannot be reached: {failure.strerror if failure else 'no address'}.",
        hint="Is this machine on a network that leads there?",
    )


async def _peer_behind(address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> PeerId:
    writer.write(_MULTISTREAM + _TLS)
    greeting = await _read_like(reader, _MULTISTREAM)
    if greeting != _MULTISTREAM:
        said = greeting.split(b"\n")[0].strip()[:20].decode("ascii", errors="replace")
        raise _not_a_peer(address, f"it sent {_quoted(said)}" if said else "it closed the connection")
    if await _read_like(reader, _TLS) != _TLS:
        raise _not_a_peer(address, "it speaks libp2p without TLS")
    certificate = await _server_certificate(reader, writer)
    peer = _peer_in(certificate)
    if peer is None:
        raise _not_a_peer(address, "its certificate has no libp2p key")
    return peer


async def _read_like(reader: asyncio.StreamReader, expected: bytes) -> bytes:
    """What arrives, as far as it agrees with ``expected``; if it does not, with what came instead."""
    received = b""
    while len(received) < len(expected) and expected.startswith(received):
        chunk = await reader.read(len(expected) - len(received))
        if not chunk:
            break
        received += chunk
    return received


async def _server_certificate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The server's certificate (DER) from a TLS 1.3 handshake; empty if it shows none.

    We finish our side without a certificate of our own, which libp2p then turns down: it does not matter any more.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # Self-signed by design; what counts is the key in the extension.
    context.set_alpn_protocols(["libp2p"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing)
    received = 0
    while True:
        try:
            session.do_handshake()
            return session.getpeercert(binary_form=True) or b""
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
        chunk = await reader.read(16_384)
        received += len(chunk)
        if not chunk or received > _MAX_HANDSHAKE_BYTES:
            raise ConnectionResetError("the TLS handshake did not end")
        incoming.write(chunk)


def _peer_in(certificate: bytes) -> PeerId | None:
    """The peer id in a certificate's libp2p extension: SEQUENCE { OCTET STRING public key, OCTET STRING signature }."""
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        extension = extensions.get_extension_for_oid(_LIBP2P_EXTENSION).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None
    assert isinstance(extension, x509.UnrecognizedExtension)
    key = _der_body(0x04, _der_body(0x30, extension.value))
    return peer_id_of(key) if 0 < len(key) <= _MAX_KEY_BYTES else None


def _der_body(tag: int, data: bytes) -> bytes:
    """The content of the DER element at the start of ``data``; empty if it is not a whole element with that tag."""
    if len(data) < 2 or data[0] != tag:
        return b""
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
    return data[start : start + size] if start + size <= len(data) else b""


def _timed_out(address: Address, stage: str, timeout_s: float) -> UnreachableError:
    if stage == "resolve":
        return UnreachableError(f"The name {address.host} was not resolved in {timeout_s:.3g} s.", hint="Try again.")
    if stage == "connect":
        return UnreachableError(
            f"{address} did not answer in {timeout_s:.3g} s.",
            hint="A firewall or NAT may drop the packets, or the machine is off. "
            f"Check that port {address.port} is open there.",
        )
    return _not_a_peer(address, f"it said nothing in {timeout_s:.3g} s")


def _not_a_peer(address: Address, why: str) -> UnreachableError:
    return UnreachableError(
        f"{address} answered, but not as a decentral peer ({why}).", hint="Check the port with the worker's owner."
    )


def _quoted(text: str) -> str:
    return '"' + "".join(c if c.isprintable() else "?" for c in text) + '"'


def _brief(peer: PeerId) -> str:
    return f"..{short_id(peer)}"
