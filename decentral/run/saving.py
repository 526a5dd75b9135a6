"""What a worker keeps in its folder: its journal and its checkpoints; and whether the disk has room for them."""

import logging
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from decentral import __version__
from decentral.errors import ConfigError
from decentral.monitor.events import Started
from decentral.monitor.figures import size
from decentral.monitor.journal import FanOut, JsonLinesJournal, StagedJournal
from decentral.ports.clock import Clock
from decentral.ports.trainer import Lineage, Publisher
from decentral.run.connection import Connection
from decentral.run.disk import Disk
from decentral.run.folder import CHECKPOINTS, JOURNAL
from decentral.state.checkpoints.checkpoint import About, StateError
from decentral.state.checkpoints.folder import Checkpoints, newest
from decentral.state.checkpoints.manifest import found_in
from decentral.state.worker_state import WorkerState, Written

_log = logging.getLogger(__name__)
_VALUE_BYTES = 4
#: Beside the anchor: local parameters, work on its way, residual.
_OWN_COPIES = 3
#: The moments of an AdamW.
_INNER_COPIES = 2


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


def saver(
    out: Path, about: About, keep: int, wall: Callable[[], float], disk: Disk, publish: Publisher | None = None
) -> Callable[[WorkerState], Written | None]:
    """Writes a worker's states to its folder as checkpoints, one at a time, on any thread.

    Args:
        out: the worker's folder.
        about: the run.
        keep: see ``Checkpoints``.
        wall: the time, seconds since 1970.
        disk: told of what cannot be written; the checkpoints from before are then as they were.
        publish: writes what other libraries read of a checkpoint's weights; ``None`` for nothing.
    """

    def beside(folder: Path, state: WorkerState) -> None:
        if publish is not None:
            lineage = Lineage(about.run, about.method, state.round, state.val_loss, state.step, state.tokens)
            publish(folder, lineage, None)

    checkpoints = Checkpoints(out, about, keep, wall, beside)

    def save(state: WorkerState) -> Written | None:
        try:
            return disk.write(out / CHECKPOINTS, state.tensor_bytes, lambda: checkpoints.save(state))
        except StateError as err:
            _log.error("no checkpoint at step %d: %s; the last one is kept", state.step, err)
            return None

    return save


def last_state(out: Path, run_id: str) -> WorkerState | None:
    """What a worker that comes back to a run goes on from; ``None`` if nothing of it in its folder can be used."""
    if not found_in(out):
        return None
    try:
        return newest(out, run_id)[1]
    except ConfigError as err:
        _log.warning("%s This worker comes back without it.", err.message)
        return None


def estimated_bytes(num_values: int, num_buffers: int, keep: int) -> int:
    """What checkpoints take at most, as far as it can be told before the first one.

    That is the newest ``keep``, the best one, and one that is being written. In each there are anchors, the outer
    state, local parameters, work on its way and residual, and the two moments of an AdamW.

    Args:
        num_values: of the model.
        num_buffers: that the outer rule keeps of each value.
        keep: see ``Checkpoints``.
    """
    return _VALUE_BYTES * num_values * (1 + num_buffers + _OWN_COPIES + _INNER_COPIES) * (keep + 2)


def warn_if_short(out: Path, num_bytes: int) -> None:
    """Say at the start, in one line, that the disk will be too small; what earlier checkpoints take is made free.

    Args:
        out: the worker's folder.
        num_bytes: that will be needed.
    """
    free = shutil.disk_usage(out).free + sum(one.manifest.size_bytes for one in found_in(out) if one.manifest)
    if free < num_bytes:
        _log.warning(
            "checkpoints and journal in %s will take about %s, and %s is free: make room, or keep fewer with --keep",
            out,
            size(num_bytes),
            size(free),
        )
