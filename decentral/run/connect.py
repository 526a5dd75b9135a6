"""A worker's way onto the network: an open node that knows which run it is of. Builds no model and imports no torch."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decentral import __version__
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.config.pipeline import check_joiner
from decentral.config.schema import SwarmConfig, WorkerConfig, diff
from decentral.engine.hello import Hello, ask_hello
from decentral.errors import MismatchError, UsageError
from decentral.monitor.report import StatusReport
from decentral.run.asking import HELLO_TIMEOUT_S, find, report_of
from decentral.run.folder import IDENTITY, save_config
from decentral.swarm.presence import Presence
from decentral.types import PeerId

#: To find a worker at the addresses given.
_FIND_TIMEOUT_S = 10.0
#: Everything that ``connect`` does has a deadline of its own; together they end sooner.
CONNECT_S = 60.0


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


async def connect(
    swarm: SwarmConfig | None, own: WorkerConfig, join: Sequence[str], explicit: Mapping[str, Any]
) -> Connection:
    """Open a node, as a founder or as a joiner.

    Args:
        swarm: the run's configuration when founding; ``None`` when joining.
        own: this machine's configuration; ``out`` is an existing folder, or empty to keep nothing on disk.
        join: addresses of workers to join; empty when founding.
        explicit: what the user set, by dotted key; must not contradict the swarm's configuration.

    Raises:
        DecentralError: the node cannot be opened, nobody answers, or the swarm trains otherwise than the user said.
    """
    initial, peers = [], []
    if join:
        address, peer = await find(join, option="--join", timeout_s=_FIND_TIMEOUT_S)
        initial, peers = [address], [peer]
    identity = own.identity or (str(Path(own.out) / IDENTITY) if own.out else "")
    options = NodeOptions(
        identity_path=Path(identity) if identity else None,
        host=own.host,
        port=own.port,
        announce=(_announced(own),) if own.announce else (),
        initial_peers=tuple(initial),
        max_upload_bytes_per_s=own.max_upload or None,
    )
    node = await open_node(options)
    try:
        if swarm is None:
            hello = await ask_hello(node.transport, peers[0], node.identity.verify, timeout_s=HELLO_TIMEOUT_S)
            swarm, run_id = _joined_config(hello, explicit), hello.run_id
            check_joiner(own.stage, swarm.pipeline.stages)
        else:
            # Not of the identity: a run founded anew under it is another one, and nobody owes it residuals.
            run_id = f"{swarm.run.name}-{secrets.token_hex(4)}"
        if own.out:
            save_config(Path(own.out), run_id, swarm, own)
        return Connection(node, swarm, own, run_id, tuple(peers))
    except BaseException:
        await node.close()
        raise


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


def _joined_config(hello: Hello, explicit: Mapping[str, Any]) -> SwarmConfig:
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
