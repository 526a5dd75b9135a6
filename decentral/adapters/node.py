"""One peer on the network: identity, libp2p daemon, transport and directory, opened and closed together.

Open this file first. It turns whatever can go wrong at the start into errors for a user's eyes, and knows nothing of
what the peer is for. Call ``open_node`` on the main thread's event loop: the daemon dies with the thread that
started it (see ``leash``).
"""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from decentral.adapters.address import Address, parse_address
from decentral.adapters.admission import guarded
from decentral.adapters.daemon import Daemon, DaemonError, DaemonGone, DaemonOptions, start_daemon
from decentral.adapters.directory import HivemindDirectory, open_directory
from decentral.adapters.gate import Gate, Pass
from decentral.adapters.identity import IdentityFile, KeyIdentity
from decentral.adapters.port import ensure_free, free_port
from decentral.adapters.reach import Reached, Way, asked_reach, serve_reach
from decentral.adapters.relay import RELAYED, Relay, Tunnel
from decentral.adapters.runtime_dir import RuntimeDir
from decentral.adapters.speed import serve_speed
from decentral.adapters.transport import HivemindTransport
from decentral.adapters.whereabouts import Self, Whereabouts
from decentral.errors import AdmissionError, DecentralError, IdentityError, UnreachableError, UsageError
from decentral.types import PeerId, short_id

T = TypeVar("T")
_log = logging.getLogger(__name__)
#: A peer that is alive is found much sooner.
_FIND_TIMEOUT_S = 5.0
#: Of those it joins, so many are asked whether they reach it.
_NUM_ASKED = 3


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How a peer appears on the network."""

    identity_path: Path | None = None
    """File with the private key, created if it is missing; ``None`` for an identity that ends with the node."""
    host: str = "0.0.0.0"
    """Address of the network interface to listen on; ``0.0.0.0`` for all of IPv4, ``::`` for all there are."""
    port: int = 0
    """TCP port to listen on; 0 for any free one."""
    announce: tuple[str, ...] = ()
    """``host:port`` or multiaddrs at which others reach this peer, if they differ from where it listens."""
    initial_peers: tuple[str, ...] = ()
    """Full multiaddrs (with peer id) of peers to join; empty to found a swarm."""
    asker: bool = False
    """Only call others: do not listen, serve or keep records."""
    max_upload_bytes_per_s: float | None = None
    """The most that calls and replies may put on the uplink, with overhead; ``None`` for no limit."""
    held: Pass | None = None
    """What lets it into a private swarm; ``None`` for a public one."""
    allow: tuple[PeerId, ...] = ()
    """If there are any, only these are let in here."""
    deny: tuple[PeerId, ...] = ()
    """These are not let in here."""
    relay: Sequence[int] | None = None
    """Ports for peers that nobody reaches otherwise, to which this one passes on what comes there; empty for any free
    ones, ``None`` to relay for nobody."""


class Node:
    """An open node. Made by ``open_node``; ``close`` it."""

    def __init__(
        self,
        *,
        transport: HivemindTransport,
        directory: HivemindDirectory | None,
        identity: KeyIdentity,
        addresses: tuple[str, ...],
        daemon: Daemon,
        reached: Reached,
        whereabouts: Whereabouts | None,
        resources: contextlib.AsyncExitStack,
    ) -> None:
        self.transport = transport
        self.directory = directory
        """``None`` for an asker."""
        self.gate = transport.gate
        """Who is let in."""
        self.identity = identity
        self._addresses = addresses
        self.daemon = daemon
        self._reached = reached
        self._whereabouts = whereabouts
        self._resources = resources

    @property
    def reached(self) -> Reached:
        """How others reach it."""
        return self._reached if self._whereabouts is None else self._whereabouts.reached

    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs for others to paste, best first; empty for an asker."""
        place = None if self._whereabouts is None else self._whereabouts.place
        found = self._addresses if place is None else (place.multiaddr(), *self._addresses)
        return tuple(dict.fromkeys(found))

    async def finds(self, peer: PeerId) -> bool:
        """Whether ``peer`` is alive and can be reached, wherever the swarm says it is; answers within 5 s."""
        try:
            async with asyncio.timeout(_FIND_TIMEOUT_S):
                await self.daemon.connect(peer, [])
        except (DaemonError, DaemonGone, TimeoutError):
            return False
        return True

    async def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Full multiaddrs of another peer as far as this one can find out, best first; answers within 10 s."""
        try:
            return _pasteable(await self.daemon.addresses_of(peer), peer)
        except (DaemonError, DaemonGone, TimeoutError, UsageError):  # they are the peer's own words
            return ()

    async def dial(self, address: str) -> PeerId | None:
        """Connect to the peer at a full multiaddr; ``None`` if it is not there. Answers within 5 s.

        Raises:
            UsageError: it is no such address.
        """
        known = _known_peer(address)
        try:
            async with asyncio.timeout(_FIND_TIMEOUT_S):
                failure = await _dial(self.daemon, known)
        except TimeoutError:
            return None
        return None if failure else known.peer

    async def failed(self) -> DecentralError:
        """Wait until this node is deaf for good, because its daemon has ended by itself or the swarm has put it out.

        Cancel this before ``close``, which ends the daemon as well.
        """
        put_out = asyncio.Event()
        self.gate.on_policy.append(lambda _: put_out.set() if self.gate.own_objection() else None)
        if self.gate.own_objection() is not None:
            put_out.set()
        ends = [asyncio.create_task(self.daemon.exited()), asyncio.create_task(put_out.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        objection = self.gate.own_objection()
        if objection is not None:
            return AdmissionError(objection)
        status = self.daemon.process.returncode
        return DecentralError(
            "This worker lost its connection to the network: the libp2p daemon ended with status "
            f"{status}: {self.daemon.last_words()}",
            hint="Start it again with the same --out: it rejoins under the same identity.",
        )

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work`` to its end, or until this node is deaf for good, which cancels it.

        Raises:
            DecentralError: see ``failed``.
            Exception: what ``work`` raises.
        """
        working, dying = asyncio.create_task(work), asyncio.create_task(self.failed())
        try:
            await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise dying.result()
            return working.result()
        finally:
            for task in (working, dying):
                task.cancel()
            await asyncio.gather(working, dying, return_exceptions=True)

    async def close(self) -> None:
        """Close everything; nothing outlives it. Idempotent."""
        await self._resources.aclose()


async def open_node(options: NodeOptions) -> Node:
    """Start a node and join the initial peers (0.5 to 1 s).

    Raises:
        PortTakenError: the port belongs to another program.
        IdentityError: the identity file is unusable, or a live worker runs under it.
        UnreachableError: none of the initial peers could be reached; says why for each.
        UsageError: host, port or an address makes no sense.
        DecentralError: the daemon did not start; carries its last words.
    """
    initial = [_known_peer(text) for text in options.initial_peers]
    if options.host == "::" and not options.port:
        options = replace(options, port=free_port(options.host))  # the same one for both families
    if not options.asker:
        ensure_free(options.host, options.port)
    resources = contextlib.AsyncExitStack()
    try:
        return await _open(options, initial, resources)
    except BaseException:
        await resources.aclose()
        raise


async def _open(options: NodeOptions, initial: list[Address], resources: contextlib.AsyncExitStack) -> Node:
    folder = RuntimeDir()
    resources.callback(folder.close)
    if options.identity_path is None:
        key_path = folder.path / "key"
        identity = KeyIdentity.generate()
        identity.save(key_path)
    else:
        key_path = options.identity_path
        file = IdentityFile(key_path)
        resources.callback(file.close)
        identity = file.identity
        if initial and not file.is_new:
            await _ensure_unused(identity.peer_id, options)
    started = _daemon_options(options, folder.path, key_path)
    begun = await _begin(options, started, identity.peer_id, initial)
    reached = await _reached(options, begun, initial)
    better = await _better(options, started, begun, reached, initial)
    if better is not None:  # what a daemon does about it is decided at its start
        place = begun.tunnel.place
        await begun.resources.aclose()
        begun = await _begin(options, better, identity.peer_id, initial, place)
        if place is not None:
            reached = replace(reached, way=Way.RELAYED)
        elif reached.way is Way.NONE and await begun.daemon.wait_for_relay():
            reached = replace(reached, way=Way.INTRODUCED)
    resources.push_async_callback(begun.resources.aclose)
    directory = whereabouts = None
    addresses: tuple[str, ...] = ()
    if not options.asker:
        p2p = await begun.daemon.attach_p2p(guarded(begun.transport.admission))
        resources.push_async_callback(p2p.shutdown)
        directory = await open_directory(p2p, begun.joined)
        resources.push_async_callback(_leave, directory, begun.daemon)
        _, listening = await begun.daemon.identify()
        addresses = _pasteable(listening, identity.peer_id)
        if not ipaddress.ip_address(options.host).is_loopback:
            own = _self(options, begun, identity, addresses)
            whereabouts = Whereabouts(own, begun.transport, begun.daemon, directory, begun.tunnel, reached, initial)
            if reached.way in (Way.NONE, Way.INTRODUCED):  # A relay that nobody of those whom it joins is may be known.
                await whereabouts.look()
            keeping = asyncio.create_task(whereabouts.run())
            resources.callback(keeping.cancel)
    return Node(
        transport=begun.transport,
        directory=directory,
        identity=identity,
        addresses=addresses,
        daemon=begun.daemon,
        reached=reached,
        whereabouts=whereabouts,
        resources=resources,
    )


@dataclass(frozen=True, slots=True)
class _Begun:
    """A daemon that has joined, and what speaks through it."""

    daemon: Daemon
    transport: HivemindTransport
    tunnel: Tunnel
    joined: list[PeerId]
    resources: contextlib.AsyncExitStack


async def _begin(
    options: NodeOptions, started: DaemonOptions, own: PeerId, initial: list[Address], place: Address | None = None
) -> _Begun:
    """Start it and join.

    Args:
        options: of the node.
        started: those of its daemon.
        own: its identity.
        initial: whom to join.
        place: that it has at a relay.
    """
    gate = Gate(own, options.held, options.allow, options.deny)
    async with contextlib.AsyncExitStack() as resources:
        daemon = await start_daemon(started)
        resources.push_async_callback(daemon.stop)
        transport = HivemindTransport(daemon, own, options.max_upload_bytes_per_s, gate)
        resources.push_async_callback(transport.close)
        tunnel = Tunnel(transport, daemon, options.host, await _port(started, daemon), place)
        if not options.asker:
            # Those who hear of us by the directory may ask to be let in at once.
            await transport.listen({RELAYED: tunnel.receive})
            await serve_reach(transport, tunnel.seen_at)
            await serve_speed(transport)
        if options.relay is not None:
            relay = Relay(transport, options.host, options.relay)
            await relay.serve()
            resources.push_async_callback(relay.close)
        joined = await _join(daemon, initial)
        return _Begun(daemon, transport, tunnel, joined, resources.pop_all())


async def _port(started: DaemonOptions, daemon: Daemon) -> int:
    """On which the daemon listens; 0 if on none. What it announces may be another one."""
    chosen = int(started.listen[0].rpartition("/")[2]) if started.listen else 0
    places = _places((await daemon.identify())[1]) if started.listen and not chosen else []
    return places[0].port if places else chosen


async def _reached(options: NodeOptions, begun: _Begun, initial: list[Address]) -> Reached:
    """How those whom it joined reach it: one of them is enough."""
    if options.asker or ipaddress.ip_address(options.host).is_loopback:
        return Reached(Way.UNKNOWN)
    if options.announce:
        port = parse_address(options.announce[0], option="announce").port
    else:
        port = _places((await begun.daemon.identify())[1])[0].port
    peers = dict.fromkeys(address.relay or address.peer for address in initial if address.peer in begun.joined)
    asked = [peer for peer in peers if peer is not None][:_NUM_ASKED]
    return await asked_reach(begun.transport, asked, port)


async def _better(
    options: NodeOptions, started: DaemonOptions, begun: _Begun, reached: Reached, initial: list[Address]
) -> DaemonOptions | None:
    """How the daemon should have been started, as is known now that others have dialled it; ``None`` if it was so.

    Who is not reached asks those whom it joins for a place, and has it in the tunnel if one gives it.
    """
    sight = reached.sight
    if sight is None or sight.place is None or options.announce:
        return None
    started = replace(started, listen=_listening_addresses(replace(options, port=sight.port)))
    own = _places((await begun.daemon.identify())[1])
    if reached.way is Way.NONE:
        relays = list(dict.fromkeys(_listener(address) for address in initial))
        for relay in relays[:_NUM_ASKED]:
            if (outer := await begun.tunnel.open(relay, sight.port)) is not None:
                break
        else:
            return replace(started, relays=tuple(relay.multiaddr() for relay in relays))
    elif sight.place.host in {address.host for address in own}:
        return None
    else:
        # A router passes on what comes to its address. libp2p itself believes that when four others have seen it there.
        outer = replace(sight.place, port=sight.port)
    return replace(started, announce=tuple(replace(address, peer=None).multiaddr() for address in (outer, *own)))


def _self(options: NodeOptions, begun: "_Begun", identity: KeyIdentity, addresses: Sequence[str]) -> Self:
    """What its whereabouts are to know of this node."""
    at = [parse_address(text, option="listening") for text in addresses]
    port = begun.tunnel.port if not options.announce else at[0].port
    return Self(identity, port, at[0] if options.relay is not None else None, bool(options.announce))


async def _leave(directory: HivemindDirectory, daemon: Daemon) -> None:
    if daemon.process.returncode is None:  # A daemon that is gone would not answer, and there is nothing to leave.
        await directory.close()


async def _ensure_unused(peer: PeerId, options: NodeOptions) -> None:
    """Ask the swarm, under another identity, whether a live peer already has ours: two would steal each other's mail.

    Raises:
        IdentityError: it does.
    """
    asker = await open_node(NodeOptions(initial_peers=options.initial_peers, asker=True))
    try:
        if await asker.finds(peer):
            raise IdentityError(
                f"Identity {options.identity_path} (..{short_id(peer)}) is in use by a live worker of this swarm.",
                hint="Give each worker an identity file of its own; a missing one is created.",
            )
    finally:
        await asker.close()


async def _join(daemon: Daemon, initial: list[Address]) -> list[PeerId]:
    """Connect to all initial peers at once; those that answered. One is enough."""
    failures = await asyncio.gather(*(_dial(daemon, address) for address in initial))
    joined = [address.peer for address, failure in zip(initial, failures, strict=True) if not failure and address.peer]
    if initial and not joined:
        raise UnreachableError(f"No worker could be reached. {' '.join(failures)}")
    for failure in filter(None, failures):
        _log.warning("joined without %s", failure)
    if joined:
        await daemon.wait_for_routing()
    return joined


async def _dial(daemon: Daemon, address: Address) -> str:
    """Connect to one peer; why it failed, or nothing."""
    try:
        await daemon.connect(address.peer or PeerId(""), [replace(address, peer=None).multiaddr()])
    except TimeoutError:
        return f"{address}: no answer."
    except (DaemonError, DaemonGone) as err:
        return f"{address}: {' '.join(str(err).split())}."
    return ""


def _known_peer(text: str) -> Address:
    address = parse_address(text, option="initial_peers")
    if address.peer is None:
        raise UsageError(f'"{text}" does not say which peer is there; probe it first.')
    return address


def _daemon_options(options: NodeOptions, folder: Path, key_path: Path) -> DaemonOptions:
    if options.asker:
        return DaemonOptions(folder=folder, identity_path=key_path, listen=())
    return DaemonOptions(
        folder=folder,
        identity_path=key_path,
        listen=_listening_addresses(options),
        announce=tuple(parse_address(text, option="announce").multiaddr() for text in options.announce),
        map_port=not ipaddress.ip_address(options.host).is_loopback,
    )


def _listening_addresses(options: NodeOptions) -> tuple[str, ...]:
    """TCP only: averaging over QUIC hung or failed where TCP did not (measured with hivemind 1.1.12)."""
    hosts = ("::", "0.0.0.0") if options.host == "::" else (options.host,)
    return tuple(f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/{options.port}" for host in hosts)


def _listener(address: Address) -> Address:
    """Who listens there: the relay, if the address leads through one."""
    return replace(address, peer=address.relay or address.peer, relay=None)


def _places(listening: Sequence[str]) -> list[Address]:
    """Where a daemon says that it is; what is no TCP is left out."""
    direct = [text for text in listening if "/tcp/" in text and "/p2p/" not in text]
    relayed = [text for text in listening if "/tcp/" in text and text.endswith("/p2p-circuit")]
    return [parse_address(text, option="listening") for text in (*relayed, *direct)]


def _pasteable(listening: Sequence[str], peer: PeerId) -> tuple[str, ...]:
    """Full multiaddrs, those that reach furthest first; through a relay before any, for who has one needs it."""
    return tuple(address.with_peer(peer).multiaddr() for address in sorted(_places(listening), key=_reach))


def _reach(address: Address) -> int:
    if address.relay:
        return -1
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        return 0  # A host name was announced on purpose.
    return 3 if ip.is_loopback else 2 if ip.is_link_local else 1 if ip.is_private else 0
