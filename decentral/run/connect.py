"""A worker's way onto the network: an open node that knows which run it is of. Builds no model and imports no torch."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decentral import __version__
from decentral.adapters.address import parse_address
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.config.pipeline import check_joiner
from decentral.config.schema import SwarmConfig, WorkerConfig, diff
from decentral.engine.hello import Hello, ask_hello
from decentral.errors import ConfigError, MismatchError, UsageError
from decentral.monitor.report import StatusReport
from decentral.run.asking import HELLO_TIMEOUT_S, find, report_of
from decentral.run.book import Book, read_book
from decentral.run.folder import IDENTITY, RUN, clear_run, has_run, run_of, save_config
from decentral.swarm.presence import Presence
from decentral.types import PeerId

#: To find a worker at the addresses given.
_FIND_TIMEOUT_S = 10.0
#: Everything that ``connect`` does has a deadline of its own; together they end sooner.
CONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class Start:
    """How a worker comes into a run."""

    swarm: SwarmConfig | None
    """The run's configuration when founding; ``None`` when joining."""
    own: WorkerConfig
    """This machine's; ``out`` is an existing folder, or empty to keep nothing on disk."""
    join: Sequence[str] = ()
    """Addresses of workers to join; empty when founding."""
    explicit: Mapping[str, Any] = field(default_factory=dict)
    """What the user set, by dotted key; must not contradict the configuration of a swarm that is joined."""
    overwrite: bool = False
    """Whether another run's weights in the folder may be replaced."""


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


async def connect(start: Start) -> Connection:
    """Open a node, as a founder or as a joiner.

    Raises:
        DecentralError: the node cannot be opened, nobody answers, the swarm trains otherwise than the user said, or
            another run lies in the folder.
    """
    swarm, own = start.swarm, start.own
    initial, peers = [], []
    if start.join:
        address, peer = await find(start.join, option="--join", timeout_s=_FIND_TIMEOUT_S)
        initial, peers = [address], [peer]
    node = await open_node(node_options(own, initial))
    try:
        if swarm is None:
            hello = await ask_hello(node.transport, peers[0], node.identity.verify, timeout_s=HELLO_TIMEOUT_S)
            swarm, run_id = joined_config(hello, start.explicit), hello.run_id
            check_joiner(own.stage, swarm.pipeline.stages)
        else:
            # Not of the identity: a run founded anew under it is another one, and nobody owes it residuals.
            run_id = f"{swarm.run.name}-{secrets.token_hex(4)}"
        book = _book(own, run_id, overwrite=start.overwrite)
        book.heard(initial)
        return opened(node, swarm, own, book, peers)
    except BaseException:
        await node.close()
        raise


def opened(node: Node, swarm: SwarmConfig, own: WorkerConfig, book: Book, peers: Sequence[PeerId]) -> Connection:
    """The connection of an open node to its run, written down in the worker's folder.

    Raises:
        ConfigError: that cannot be done.
    """
    if own.out:
        folder = Path(own.out)
        save_config(folder, book.run, swarm, own)
        book.port = own.port or (0 if own.announce else parse_address(node.addresses()[0]).port)
        try:
            book.save(folder)
        except OSError as err:
            raise ConfigError(f"Cannot write {folder / RUN}: {err}.", hint="Choose another folder with --out.") from err
    return Connection(node, swarm, own, book.run, tuple(peers), book)


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


def run_there(folder: Path, run_id: str) -> UsageError:
    """What to say to somebody who would write over the run in a folder: the ways out."""
    return UsageError(
        f"There is a run in {folder}" + (f": {run_id}." if run_id else "."),
        hint=f"To go on with it: --resume {folder}, or decentral.resume in a loop of your own. To begin another one: "
        "another folder, or --overwrite (overwrite=True), which removes its weights, checkpoints and journal.",
    )


def _book(own: WorkerConfig, run_id: str, *, overwrite: bool) -> Book:
    """The address book of this run, as the folder has it; what is there of another run is not written over.

    Raises:
        UsageError: see ``run_there``.
        ConfigError: the folder cannot be read or written.
    """
    new, folder = Book(run_id, 0), Path(own.out)
    if not own.out:
        return new
    if overwrite:
        clear_run(folder)
    known = read_book(folder)
    if known is not None and known.run == run_id:
        return known
    there = run_of(folder) if known is None else known.run
    if has_run(folder) and there != run_id:
        raise run_there(folder, there)
    return new


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
