"""What a worker keeps in its folder: its journal, the weights, and what it still has to send."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from torch import Tensor

from decentral import __version__
from decentral.engine.options import Outcome
from decentral.monitor.events import Saved, Started
from decentral.monitor.journal import FanOut, Journal, JsonLinesJournal, StagedJournal
from decentral.ports.clock import Clock
from decentral.run.connect import Connection
from decentral.run.disk import Disk
from decentral.run.folder import JOURNAL, MODEL, RESIDUAL
from decentral.state.files import bytes_of, load_weights, save_weights

_log = logging.getLogger(__name__)


def open_journal(connection: Connection, clock: Clock, told: StagedJournal, resources: AsyncExitStack) -> StagedJournal:
    """Where events go: to people, and to a file if there is a folder. The first event is that this worker is up.

    Args:
        connection: of the run.
        clock: for the times of events.
        told: the journal for people.
        resources: what closes the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    own, journal = connection.own, told
    if own.out:
        lines = JsonLinesJournal(Path(own.out) / JOURNAL, clock.wall, own.journal_bytes)
        resources.callback(lines.close)
        journal = FanOut(lines, told)
    peer, digest = connection.node.identity.peer_id, connection.swarm.digest()
    journal.record(Started(connection.run_id, peer, __version__, own.device, digest))
    return journal


def residuals_of(out: Path, run_id: str) -> Mapping[str, Tensor]:
    """What this worker still had to send when it last took part in this run."""
    path = out / RESIDUAL
    try:
        residuals, metadata = load_weights(path)
    except FileNotFoundError:
        return {}
    except OSError as err:
        _log.warning("cannot read %s: %s; what it still had to send is lost", path, err)
        return {}
    return residuals if metadata.get("run") == run_id else {}


def saver(out: Path, run_id: str, journal: Journal, disk: Disk) -> Callable[[Outcome], None]:
    """Writes the anchors and the residuals to ``out``."""

    def save(outcome: Outcome) -> None:
        path = out / MODEL
        metadata = {"run": run_id, "round": str(outcome.round), "digest": outcome.digest, "decentral": __version__}

        def write() -> None:
            save_weights(path, outcome.anchors, metadata)
            if outcome.residuals:
                save_weights(out / RESIDUAL, outcome.residuals, metadata)
            else:
                (out / RESIDUAL).unlink(missing_ok=True)

        if disk.write(path, bytes_of(outcome.anchors) + bytes_of(outcome.residuals), write):
            journal.record(Saved(str(path), outcome.round))

    return save
