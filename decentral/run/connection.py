"""A worker's place on the network: how it comes there, and what it has then. Builds no model and imports no torch."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from decentral import __version__
from decentral.adapters.address import parse_address
from decentral.adapters.node import Node, NodeOptions
from decentral.config.resolve import ensure_named_here
from decentral.config.schema import SwarmConfig, WorkerConfig, diff
from decentral.engine.hello import Hello
from decentral.errors import ConfigError, MismatchError, UsageError
from decentral.monitor.report import StatusReport
from decentral.run.access import Access
from decentral.run.asking import report_of
from decentral.run.book import Book
from decentral.run.folder import IDENTITY, RUN, save_config
from decentral.swarm.presence import Presence
from decentral.types import PeerId

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a folder has to go on from."""

    book: Book
    step: int | None
    """Of the newest checkpoint; ``None`` of a model in stages, of which there is none of the whole worker."""
    changes: tuple[str, ...] = ()
    """In words, what is set otherwise from now on, should this worker bring the run back."""
    any_port: bool = True
    """Whether to take another port if that of before is not free."""
    access: Access | None = None
    """The way into the run's swarm, if that is private."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a worker comes into a run."""

    swarm: SwarmConfig | None
    """The run's configuration when founding it or bringing it back; ``None`` when joining."""
    own: WorkerConfig
    """This machine's; ``out`` is an existing folder, or empty to keep nothing on disk."""
    join: Sequence[str] = ()
    """Addresses of workers to join; empty when founding, and when nobody is asked but those in the book."""
    explicit: Mapping[str, Any] = field(default_factory=dict)
    """What the user set, by dotted key; must not contradict the configuration of a swarm that is joined."""
    overwrite: bool = False
    """Whether another run's weights in the folder may be replaced."""
    resumption: Resumption | None = None
    """Of a run that goes on from its folder."""
    builds_task: bool = False
    """Whether the worker will import the task; else a training loop brings the model."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A node of a run. ``await connection.node.close()`` at the end."""

    node: Node
    swarm: SwarmConfig
    """The run's configuration: a founder's own, or the one that a joiner was told."""
    own: WorkerConfig
    run_id: str
    peers: tuple[PeerId, ...]
    """To join; empty when founding."""
    book: Book
    """What is known of others; kept in the folder, if there is one."""
    access: Access | None = None
    """Its way into a private swarm."""
    is_back: bool = False
    """Whether it comes back to a run of its folder, and goes on from what is there."""

    @property
    def stream_seed(self) -> int:
        """Drawn from run and identity: different on every worker. Below 2**48."""
        text = f"{self.run_id}/{self.node.identity.peer_id}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())

    @property
    def total_steps(self) -> int:
        """Inner steps of the whole run."""
        return self.swarm.run.rounds * self.swarm.method.inner_steps

    @property
    def address(self) -> str:
        """For others to join. In a private swarm it has the token, which is not to be logged."""
        place = self.node.addresses()[0]
        return place if self.access is None else f"{place}#{self.access.invitation.token()}"

    def report(self, workers: Iterable[tuple[Presence, float]]) -> StatusReport:
        """See ``report_of``."""
        return report_of(self.swarm, self.run_id, __version__, workers, self.node.transport.banned())


def opened(
    node: Node,
    swarm: SwarmConfig,
    own: WorkerConfig,
    book: Book,
    peers: Sequence[PeerId],
    access: Access | None,
    *,
    is_back: bool = False,
) -> Connection:
    """The connection of an open node to its run, written down in the worker's folder.

    Raises:
        ConfigError: that cannot be done. Who comes back has it all there from before, and goes on.
    """
    book.port = own.port if own.announce else parse_address(node.addresses()[0]).port
    if own.out:
        policy = node.gate.policy
        if access is not None and policy is not None:
            access = replace(access, policy=policy.data)
        try:
            _write_down(Path(own.out), book, swarm, own, access)
        except ConfigError as err:
            if not is_back:
                raise
            _log.error("%s Training goes on with what is there from before.", err.message)
        if access is not None:
            kept = access
            node.gate.on_policy.append(lambda newer: kept.keep(newer, Path(own.out)))
    return Connection(node, swarm, own, book.run, tuple(peers), book, access, is_back)


def _write_down(folder: Path, book: Book, swarm: SwarmConfig, own: WorkerConfig, access: Access | None) -> None:
    save_config(folder, book.run, swarm, own)
    try:
        book.save(folder)
        if access is not None:
            access.save(folder)
    except OSError as err:
        raise ConfigError(f"Cannot write {folder / RUN}: {err}.", hint="Choose another folder with --out.") from err


def node_options(own: WorkerConfig, initial: Sequence[str], access: Access | None) -> NodeOptions:
    """A worker's node on this machine, which begins with the peers at these full multiaddrs.

    Raises:
        UsageError: see ``_announced``.
    """
    identity = own.identity or (str(Path(own.out) / IDENTITY) if own.out else "")
    return NodeOptions(
        identity_path=Path(identity) if identity else None,
        host=own.host,
        port=own.port,
        announce=(_announced(own),) if own.announce else (),
        initial_peers=tuple(initial),
        max_upload_bytes_per_s=own.max_upload or None,
        held=access.held() if access is not None else None,
        allow=tuple(PeerId(peer) for peer in own.allow),
        deny=tuple(PeerId(peer) for peer in own.deny),
        relay=_relay_ports(own.relay),
    )


def _relay_ports(text: str) -> Sequence[int] | None:
    """Of ``worker.relay``, whose form has been checked.

    Raises:
        UsageError: there are no such ports.
    """
    if text in ("", "any"):
        return () if text else None
    first, _, last = text.partition("-")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65_535:
        raise UsageError(f'--relay "{text}" is no range of ports.', hint="Such as --relay 31400-31431, or --relay any.")
    return ports


def _announced(own: WorkerConfig) -> str:
    """The address to announce; a host alone stands for that host and the port we listen on.

    Raises:
        UsageError: a host alone, but the port is chosen at the start.
    """
    if own.announce.startswith("/") or ":" in own.announce:
        return own.announce
    if not own.port:
        raise UsageError(
            f'--announce "{own.announce}" has no port, and this worker listens on any free one.',
            hint=f"Give both: --port 31337 --announce {own.announce}.",
        )
    return f"{own.announce}:{own.port}"


def joined_config(hello: Hello, start: Start) -> SwarmConfig:
    """The swarm's configuration, if it does not contradict what the user set.

    Raises:
        MismatchError: lists every key that differs.
        ConfigError: it names a task that nobody has named on this machine.
    """
    swarm = SwarmConfig.from_json(hello.config)
    differences = diff(start.explicit, swarm)
    if differences:
        raise MismatchError(
            "This worker was told otherwise than the swarm trains:\n  " + "\n  ".join(differences),
            hint="Leave these settings out to take the swarm's, or found a swarm of your own with --new.",
        )
    if start.builds_task:
        ensure_named_here(swarm, start.own)
    return swarm
