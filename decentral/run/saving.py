"""What a worker keeps in its folder: its journal and the weights."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from decentral import __version__
from decentral.monitor.events import Started
from decentral.monitor.journal import FanOut, JsonLinesJournal, StagedJournal
from decentral.ports.clock import Clock
from decentral.run.connect import Connection
from decentral.run.disk import Disk
from decentral.run.folder import JOURNAL, MODEL
from decentral.state.files import bytes_of, save_weights
from decentral.state.worker_state import WorkerState, Written


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


def saver(out: Path, run_id: str, disk: Disk) -> Callable[[WorkerState], Written | None]:
    """Writes the anchors to ``out``."""

    def save(state: WorkerState) -> Written | None:
        path, nbytes = out / MODEL, bytes_of(state.anchors)
        metadata = {"run": run_id, "round": str(state.round), "digest": state.digest, "decentral": __version__}
        if not disk.write(path, nbytes, lambda: save_weights(path, state.anchors, metadata)):
            return None
        return Written(str(path), nbytes)

    return save
