"""One ``p2pd``, the Go libp2p daemon that hivemind ships: start it, command it, open and accept streams, end it.

We start the daemon ourselves and speak its control protocol with hivemind's message types, instead of through
``hivemind.P2P.create``: that hides why a start failed, leaves the daemon behind when the parent is killed, puts
sockets where others can reach them, and leaks a socket for every call that fails or is cancelled
(``docs/adr/0001-hivemind-as-a-daemon.md``). The DHT gets a ``P2P`` object attached to the same daemon.

This module knows nothing of calls, methods or records. Every wait is bounded by its callers or by a constant here.
"""

import asyncio
import contextlib
import os
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from decentral.adapters.hivemind_light import P2P, P2PD_FILENAME, DecodeError, Multiaddr, PeerID, p2pd_pb2
from decentral.adapters.hivemind_light import read_pbmsg_safe as _read_message
from decentral.adapters.hivemind_light import write_pbmsg as _write_message
from decentral.adapters.leash import leashed
from decentral.errors import DecentralError
from decentral.types import PeerId

#: Called for every incoming stream with the authenticated sender.
StreamHandler = Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 3.0
_CONTROL_TIMEOUT_S = 10.0
_ROUTING_TIMEOUT_S = 3.0
_ROUTING_PAUSE_S = 0.02
_RELAY_TIMEOUT_S = 3.0
_RELAY_PAUSE_S = 0.1
_LAST_WORDS_BYTES = 4096
#: Whoever is forgotten is known again when it opens the next stream.
_MAX_SEEN = 1024


class DaemonError(Exception):
    """The daemon refused a command; the message is its own."""


class DaemonGone(Exception):
    """Our own daemon does not answer any more."""


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How to start ``p2pd``."""

    folder: Path
    """For its sockets; private to this node."""
    identity_path: Path
    """Its private key."""
    listen: tuple[str, ...]
    """Multiaddrs to listen on; empty for a client that cannot be called."""
    announce: tuple[str, ...] = ()
    """Multiaddrs to tell others instead of the ones it listens on."""
    map_port: bool = False
    """Ask the router to forward the port (UPnP, NAT-PMP)."""
    relays: tuple[str, ...] = ()
    """Full multiaddrs of peers to be reached through, of a peer that nobody reaches otherwise."""


class Daemon:
    """A running ``p2pd``. Made by ``start_daemon``."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self._control = folder / "control"
        self._incoming = folder / "incoming"
        self._server: asyncio.Server | None = None
        self._tail = b""
        self._seen: OrderedDict[PeerId, str] = OrderedDict()
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read_output())

    async def _read_output(self) -> None:
        """Keep the daemon's output flowing, and remember the end of it."""
        assert self.process.stdout is not None
        while chunk := await self.process.stdout.read(4096):
            self._tail = (self._tail + chunk)[-_LAST_WORDS_BYTES:]
            if b"Peer ID:" in self._tail:
                self._ready.set()
        self._ready.set()

    async def wait_ready(self) -> None:
        """Wait until it takes commands.

        Raises:
            DecentralError: it ended or is silent instead; carries its last words.
        """
        try:
            await asyncio.wait_for(self._ready.wait(), _START_TIMEOUT_S)
        except TimeoutError:
            raise DecentralError(
                f"The libp2p daemon was not ready after {_START_TIMEOUT_S:.0f} s. It said: {self.last_words()}"
            ) from None
        if b"Peer ID:" not in self._tail:
            raise DecentralError(f"The libp2p daemon did not start: {self.last_words()}")

    def last_words(self) -> str:
        """The last lines of its output."""
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-3:]) or "(nothing)"

    async def identify(self) -> tuple[PeerId, list[str]]:
        """Its peer id and the multiaddrs (without the id) at which it believes to be reachable."""
        reply = await self._command(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        addresses = [str(Multiaddr(packed)) for packed in reply.identify.addrs]
        return PeerId(PeerID(reply.identify.id).to_base58()), addresses

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Connect to a peer at any of ``addresses``; without addresses, wherever other peers say it is.

        Args:
            peer: whom to connect to; the handshake makes sure of it.
            addresses: multiaddrs without the peer id.

        Raises:
            DaemonError: it could not.
            TimeoutError: nor did it fail within 10 s.
            DaemonGone: our own daemon is gone.
        """
        request = p2pd_pb2.ConnectRequest(
            peer=_packed_id(peer), addrs=[Multiaddr(text).to_bytes() for text in addresses]
        )
        await self._command(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=request))

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to a peer; the next stream to it makes one anew.

        Raises:
            DaemonError: it could not.
            TimeoutError: nor did it fail within 10 s.
            DaemonGone: our own daemon is gone.
        """
        request = p2pd_pb2.DisconnectRequest(peer=_packed_id(peer))
        await self._command(p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=request))

    async def peers(self) -> list[PeerId]:
        """To whom there is a connection.

        Raises:
            DaemonError: it does not say.
            TimeoutError: nor that within 10 s.
            DaemonGone: our own daemon is gone.
        """
        reply = await self._command(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
        return [PeerId(PeerID(peer.id).to_base58()) for peer in reply.peers]

    async def wait_for_relay(self) -> bool:
        """Wait until one of the relays has a place for this peer, for three seconds at most; whether one has."""
        for _ in range(int(_RELAY_TIMEOUT_S / _RELAY_PAUSE_S)):
            if any(address.endswith("/p2p-circuit") for address in (await self.identify())[1]):
                return True
            await asyncio.sleep(_RELAY_PAUSE_S)
        return False

    async def addresses_of(self, peer: PeerId) -> list[str]:
        """The multiaddrs (without the id) at which a peer says it is, as far as this daemon can find out.

        Raises:
            DaemonError: nobody knows.
            TimeoutError: nobody said so within 10 s.
            DaemonGone: our own daemon is gone.
        """
        question = p2pd_pb2.DHTRequest(type=p2pd_pb2.DHTRequest.FIND_PEER, peer=_packed_id(peer))
        reply = await self._command(p2pd_pb2.Request(type=p2pd_pb2.Request.DHT, dht=question))
        return [str(Multiaddr(packed)) for packed in reply.dht.peer.addrs]

    async def wait_for_routing(self) -> None:
        """Wait until peers can be found through those we are connected to.

        For 10 to 100 ms after a connection was made the daemon does not ask the other side yet, and answers that
        nobody is known. We ask for a peer that does not exist until the answer is another one.
        """
        nobody = PeerId(PeerID(b"\x12\x20" + secrets.token_bytes(32)).to_base58())
        with contextlib.suppress(TimeoutError):  # Somebody is being asked, if slowly.
            async with asyncio.timeout(_ROUTING_TIMEOUT_S):
                for _ in range(int(_ROUTING_TIMEOUT_S / _ROUTING_PAUSE_S)):
                    if not await self._knows_nobody_to_ask(nobody):
                        return
                    await asyncio.sleep(_ROUTING_PAUSE_S)

    async def _knows_nobody_to_ask(self, peer: PeerId) -> bool:
        try:
            await self.connect(peer, [])
        except DaemonError as err:
            return "failed to find any peer in table" in str(err)
        return False

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to ``peer``, which closes it if it does not speak ``protocol``. The caller closes the writer.

        Raises:
            DaemonError: the peer cannot be reached or does not speak it.
            DaemonGone: our own daemon is gone.
        """
        request = p2pd_pb2.StreamOpenRequest(peer=_packed_id(peer), proto=[protocol])
        reader, writer, _ = await self._exchange(
            p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request)
        )
        return reader, writer

    async def serve_streams(self, handlers: Mapping[str, StreamHandler]) -> None:
        """Hand every incoming stream to the handler of its protocol, which closes the writer. Once per daemon."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            info = p2pd_pb2.StreamInfo()
            try:
                async with asyncio.timeout(_CONTROL_TIMEOUT_S):
                    await _read_message(reader, info)
            except (OSError, asyncio.IncompleteReadError, DecodeError, TimeoutError):
                writer.close()
                return
            sender = PeerId(PeerID(info.peer).to_base58())
            self._see(sender, str(Multiaddr(info.addr)))
            await handlers[info.proto](sender, reader, writer)

        self._server = await asyncio.start_unix_server(accept, self._incoming)
        request = p2pd_pb2.StreamHandlerRequest(
            addr=Multiaddr(f"/unix{self._incoming}").to_bytes(), proto=list(handlers), balanced=False
        )
        await self._command(p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=request))

    def _see(self, peer: PeerId, place: str) -> None:
        self._seen[peer] = place
        self._seen.move_to_end(peer)
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)

    def seen_at(self, peer: PeerId) -> str:
        """The multiaddr from which a peer's last stream came, as this machine saw it; empty if it is not known."""
        return self._seen.get(peer, "")

    async def attach_p2p(self, kind: type[P2P] = P2P) -> P2P:
        """A handle of hivemind's own kind on this daemon, as its DHT wants it."""
        # The one private name of hivemind's that we touch: where a P2P object puts the socket it listens on.
        attached: Any = type("_AttachedP2P", (kind,), {"_UNIX_SOCKET_PREFIX": f"/unix{self.folder}/"})
        return await attached.replicate(Multiaddr(f"/unix{self._control}"))

    async def _command(self, request: p2pd_pb2.Request) -> p2pd_pb2.Response:
        async with asyncio.timeout(_CONTROL_TIMEOUT_S):
            _, writer, reply = await self._exchange(request)
        writer.close()
        return reply

    async def _exchange(
        self, request: p2pd_pb2.Request
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, p2pd_pb2.Response]:
        """Send one control request on a connection of its own, which stays open only on success."""
        async with _gone_is_gone(self):
            reader, writer = await asyncio.open_unix_connection(self._control)
            try:
                await _write_message(writer, request)
                reply = p2pd_pb2.Response()
                await _read_message(reader, reply)
                if reply.type == p2pd_pb2.Response.ERROR:
                    raise DaemonError(reply.error.msg)
            except BaseException:
                writer.close()
                raise
            return reader, writer, reply

    async def exited(self) -> int:
        """Wait until the process has ended, for whatever reason; its exit status."""
        return await self.process.wait()

    async def stop(self) -> None:
        """End it, by force if need be. Idempotent."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await self._reading


def _packed_id(peer: PeerId) -> bytes:
    try:
        packed: bytes = PeerID.from_base58(peer).to_bytes()
    except ValueError:
        raise DaemonError(f"{peer!r:.80} is not a peer id") from None
    return packed


@contextlib.asynccontextmanager
async def _gone_is_gone(daemon: Daemon) -> AsyncIterator[None]:
    """Failures of the control socket as ``DaemonGone``."""
    try:
        yield
    except (OSError, asyncio.IncompleteReadError) as err:
        if isinstance(err, TimeoutError):
            raise
        raise DaemonGone(f"our own libp2p daemon is gone: {daemon.last_words()}") from err


async def start_daemon(options: DaemonOptions) -> Daemon:
    """Start ``p2pd`` as a leashed child and wait until it takes commands (0.3 s).

    Raises:
        DecentralError: it did not start; carries its last words.
    """
    binary = files("hivemind.hivemind_cli") / P2PD_FILENAME
    command = [
        str(binary),
        f"-listen=/unix{options.folder / 'control'}",
        f"-id={options.identity_path}",
        "-dhtServer=1" if options.listen else "-dhtClient=1",
        f"-natPortMap={int(options.map_port)}",
        "-autonat=1",  # with it comes hole punching
        "-connManager=1",
        # Else libp2p relays for anybody, member or not, as soon as it believes to be public, and past our upload limit.
        # What is left passes 128 KiB on, by which two peers are introduced to each other.
        "-relayService=0",
    ]
    if options.relays:
        # Without discovery: libp2p's takes three minutes to begin, and asks others than these of its own accord.
        command += ["-forceReachabilityPrivate=1", "-autoRelay=1", "-relayDiscovery=0"]
        command += [f"-trustedRelays={','.join(options.relays)}"]
    command += [f"-hostAddrs={','.join(options.listen)}"] if options.listen else ["-noListenAddrs=1"]
    command += [f"-announceAddrs={','.join(options.announce)}"] if options.announce else []
    try:
        process = await asyncio.create_subprocess_exec(
            *leashed(command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"GOLOG_LOG_LEVEL": "error"},
            start_new_session=True,  # Ctrl-C in a terminal is for us to handle, not for the daemon.
        )
    except OSError as err:
        raise DecentralError(
            f"Cannot run {binary}: {err.strerror}.", hint="Reinstall hivemind for this platform."
        ) from err
    daemon = Daemon(process, options.folder)
    try:
        await daemon.wait_ready()
    except BaseException:
        await daemon.stop()
        raise
    return daemon
