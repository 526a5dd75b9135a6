"""A cell of ``attacks`` in which the workers are real: processes of this machine, libp2p daemons, the loopback.

What liars bring to rounds is a lie as in the simulator (``attacks_worker``).
"""

import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from decentral.config.schema import WorkerConfig
from decentral.run.tasks import build_trainer
from decentral.state.files import load_weights
from scripts.benches.attacks_worker import HONEST, KNOWING
from scripts.benches.lib.attacks import VALUES
from scripts.benches.lib.command import BenchError
from scripts.benches.lib.links import LOOPBACK
from scripts.benches.lib.processes import Event, Swarm
from scripts.benches.lib.training import configured, with_rounds

#: For a whole run, on a busy machine.
_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Played:
    """What became of a run."""

    losses: dict[str, float]
    """Of the weights of those who ended, nats per byte, by digest."""
    ended: Sequence[str]
    """Honest peers that came to the end."""
    events: Mapping[str, Sequence[Event]]
    """Of honest peers, as their journals have them."""
    lying: Collection[str]
    """Peers."""
    seconds: float


def play(attack: str, settings: Sequence[str], seed: int, workers: int, rounds: int, liars: Collection[int]) -> Played:
    """One run from its start to its end.

    Args:
        attack: one of ``VALUES``; with anything else nobody lies.
        settings: of the run, ``key=value``.
        seed: of weights and data.
        workers: how many.
        rounds: how many.
        liars: which of them lie.

    Raises:
        BenchError: an honest worker did not come to the end.
    """
    probe = build_trainer(with_rounds(configured(settings, seed=seed, workers=workers), rounds), WorkerConfig(), 0)
    stated = [*settings, f"run.seed={seed}", f"run.min_workers={workers}", f"run.rounds={rounds}"]
    liars, began = liars if attack in VALUES else (), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attacks-") as name, Swarm(Path(name), workers * [LOOPBACK]) as swarm:
        board = Path(name) / "board"
        board.mkdir()
        for worker in swarm.workers:
            if worker.index in liars or attack in KNOWING:
                does = attack if worker.index in liars else HONEST
                worker.entry = ("scripts.benches.attacks_worker", does, board, workers - len(liars), worker.index)
        swarm.begin(dict(setting.split("=", 1) for setting in stated))
        honest = [worker for worker in swarm.workers if worker.index not in liars]
        losses = dict[str, float]()
        for worker in honest:
            worker.life.wait_for(partial(worker.named, "stopped"), "the end", _TIMEOUT_S)
            worker.life.end(_TIMEOUT_S)
            if worker.named("stopped")[-1]["reason"] != "run is done":
                raise BenchError(f"worker {worker.index} did not come to the end:\n{swarm.describe()}")
            probe.load(load_weights(worker.folder / "model.safetensors")[0])
            losses[worker.mixed()[-1]["digest"]] = probe.validate()
        lying = {worker.peer for worker in swarm.workers if worker.index in liars}
        events = {worker.peer: worker.read() for worker in honest}
        return Played(losses, list(events), events, lying, time.monotonic() - began)
