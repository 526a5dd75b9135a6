"""What a worker tells other tools: an endpoint for Prometheus (``worker.metrics``), experiment loggers (``log_to``)."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from decentral.config.schema import SwarmConfig, WorkerConfig, flatten
from decentral.errors import ConfigError
from decentral.metrics import loggers
from decentral.metrics.log_to import LogTo
from decentral.monitor.listen import parse
from decentral.monitor.report import StatusReport
from decentral.run.connection import Connection
from decentral.types import PeerId, short_id

_log = logging.getLogger(__name__)


class Taker(Protocol):
    """What wants to know how a swarm does."""

    def take(self, report: StatusReport) -> None:
        """The newest report; returns at once."""
        ...

    def close(self) -> None:
        """There will be no more."""
        ...


def check(own: WorkerConfig) -> None:
    """Find out before anything is begun whether the libraries are there, and a port that there can be.

    Raises:
        ConfigError: one is not, and which extra has it; or there is no such port.
    """
    try:
        parse(own.metrics or "0")
    except ValueError as err:
        raise ConfigError(f"--metrics {err}.", hint="Give PORT or HOST:PORT, such as 9090 or 0.0.0.0:9090.") from err
    if own.metrics and importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError(
            "--metrics needs prometheus-client, not installed here.", hint="pip install 'decentral[metrics]'"
        )
    loggers.check(own.log_to)


def takers_of(connection: Connection) -> list[Taker]:
    """Begin to serve and to log what this worker is told to; each is to be closed.

    Raises:
        ConfigError: the metrics cannot be served there.
    """
    own, peer = connection.own, connection.node.identity.peer_id
    takers: list[Taker] = []
    if own.metrics:
        from decentral.metrics.endpoint import Endpoint  # needs what may not be installed

        endpoint = Endpoint(*parse(own.metrics), peer)
        _log.info("metrics: %s", endpoint.url)
        takers.append(endpoint)
    if own.log_to:
        takers.append(log_to(own.log_to, connection.run_id, Path(own.out or "."), connection.swarm, peer))
    return takers


def log_to(names: Sequence[str], run: str, folder: Path, swarm: SwarmConfig, own: PeerId | None) -> LogTo:
    """Experiment loggers by name.

    Args:
        names: that ``check`` has seen.
        run: id of the run.
        folder: for what is kept on this machine.
        swarm: its configuration.
        own: the worker that is logged; ``None`` for the swarm as a whole.
    """
    about = loggers.About(run, short_id(own) if own else "swarm", folder, flatten(swarm))
    return LogTo(names, about, own)
