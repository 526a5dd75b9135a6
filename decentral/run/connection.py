"""A worker's place on the network: how it comes there, and what it has then. Builds no model and imports no torch."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decentral import __version__
from decentral.adapters.address import parse_address
from decentral.adapters.node import Node, NodeOptions
from decentral.config.schema import SwarmConfig, WorkerConfig, diff
from decentral.engine.hello import Hello
from decentral.errors import ConfigError, MismatchError, UsageError
from decentral.monitor.report import StatusReport
from decentral.run.asking import report_of
from decentral.run.book import Book
from decentral.run.folder import IDENTITY, RUN, save_config
from decentral.swarm.presence import Presence
from decentral.types import PeerId


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
        """For others to join."""
        return self.node.addresses()[0]

    def report(self, workers: Iterable[tuple[Presence, float]]) -> StatusReport:
        """See ``report_of``."""
        return report_of(self.swarm, self.run_id, __version__, workers)


def opened(
    node: Node,
    swarm: SwarmConfig,
    own: WorkerConfig,
    book: Book,
    peers: Sequence[PeerId],
    *,
    is_back: bool = False,
) -> Connection:
    """The connection of an open node to its run, written down in the worker's folder.

    Raises:
        ConfigError: that cannot be done.
    """
    book.port = own.port if own.announce else parse_address(node.addresses()[0]).port
    if own.out:
        folder = Path(own.out)
        save_config(folder, book.run, swarm, own)
        try:
            book.save(folder)
        except OSError as err:
            raise ConfigError(f"Cannot write {folder / RUN}: {err}.", hint="Choose another folder with --out.") from err
    return Connection(node, swarm, own, book.run, tuple(peers), book, is_back)


def node_options(own: WorkerConfig, initial: Sequence[str]) -> NodeOptions:
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
    )


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


def joined_config(hello: Hello, explicit: Mapping[str, Any]) -> SwarmConfig:
    """The swarm's configuration, if it does not contradict what the user set.

    Raises:
        MismatchError: lists every key that differs.
    """
    swarm = SwarmConfig.from_json(hello.config)
    stated = {key: value for key, value in explicit.items() if not key.startswith("worker.")}
    differences = diff(stated, swarm)
    if differences:
        raise MismatchError(
            "This worker was told otherwise than the swarm trains:\n  " + "\n  ".join(differences),
            hint="Leave these settings out to take the swarm's, or found a swarm of your own with --new.",
        )
    return swarm
