"""Arms of a comparison at equal steps of a worker: one worker alone, data-parallel training, and swarms.

The controls are one process each; of a swarm the network alone is simulated. Knows nothing of what a bench looks for,
nor of how its page looks.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from decentral.config.schema import SwarmConfig
from decentral.ports.trainer import Seat, Trainer
from decentral.sim.network import Conditions
from decentral.sim.world import peer_id
from decentral.types import PeerId
from decentral.workers.lm.corpus import Corpus, load_corpus
from decentral.workers.lm.settings import read_settings
from decentral.workers.lm.trainer import LmTrainer
from scripts.benches.lib.report import Record, stamp, write
from scripts.benches.lib.training import Make, Play, Watch, configured, unwatched, with_rounds

ALONE, DATA_PARALLEL = "alone", "data-parallel"
_RATE, _BATCH = "task.settings.optimizer.learning_rate", "task.settings.batch_sequences"
_WORKERS = "workers="


@dataclass(frozen=True)
class Run:
    """What is to be run."""

    arm: str
    """``alone``, ``data-parallel``, or a swarm's settings: of ``[method]``, or of any other section by the whole key.
    A word that is no setting: ``workers=1``, for another number of workers."""
    seed: int
    rate: float
    """Learning rate."""
    steps: int
    """Of a worker at most; a swarm takes as many whole rounds as fit."""
    workers: int
    settings: Sequence[str]
    """``key=value``, of all arms."""

    @property
    def key(self) -> list[object]:
        """What tells it from others."""
        return [self.arm, self.seed, self.rate, self.steps, self.workers, list(self.settings)]

    @property
    def is_control(self) -> bool:
        """Whether it is no swarm."""
        return self.arm in (ALONE, DATA_PARALLEL)

    def configured(self, *settings: str, workers: int = 1) -> SwarmConfig:
        """The configuration of so many workers, with further settings."""
        return configured([*self.settings, f"{_RATE}={self.rate}", *settings], seed=self.seed, workers=workers)

    def control(self, corpus: Corpus) -> Record:
        """Train in one process; alone it draws the stream of the first worker, data-parallel one of its own."""
        batch = self.configured().task.settings["batch_sequences"]
        own = [] if self.arm == ALONE else [f"{_BATCH}={batch * self.workers}"]
        swarm = with_rounds(self.configured("method.inner_steps=1", *own), self.steps)
        trainer = made(swarm, 1000 * (self.seed + 1) + (self.arm != ALONE) * self.workers, corpus)
        trainer.train_steps(0, self.steps)
        # Validated as all others are, with the same windows.
        probe = made(self.configured(), 0, corpus)
        probe.load(trainer.parameters())
        values = sum(value.numel() for value in trainer.parameters().values())
        per_step = 2 * (self.workers - 1) / self.workers * 4 * values
        return {
            "val_loss": probe.validate(),
            "values": values,
            "sent_bytes": 0 if self.arm == ALONE else per_step * self.steps,
        }

    def play(
        self,
        make: Make,
        watch: Watch = unwatched,
        ids: Callable[[int], PeerId] = peer_id,
        conditions: Conditions | None = None,
    ) -> Play:
        """Production workers from their start to their end; see ``Play``."""
        words = self.arm.split()
        workers = next((int(word.removeprefix(_WORKERS)) for word in words if word.startswith(_WORKERS)), self.workers)
        settings = [word for word in words if not word.startswith(_WORKERS)]
        stated = [word if "." in word.partition("=")[0] else f"method.{word}" for word in settings]
        swarm = self.configured(*stated, workers=workers)
        swarm = with_rounds(swarm, max(1, self.steps // swarm.method.inner_steps))
        play = Play(swarm, watch=watch, make=make, ids=ids, conditions=conditions)
        play.run()
        return play


def made(swarm: SwarmConfig, stream: int, corpus: Corpus) -> Trainer:
    """The trainer of a stream."""
    steps = swarm.run.rounds * swarm.method.inner_steps
    return LmTrainer(read_settings(swarm.task.settings), Seat(swarm.run.seed, stream, steps), corpus)


def corpus_for(settings: Sequence[str]) -> Corpus:
    """The text that all arms with these settings train on."""
    return load_corpus((), read_settings(configured(settings, seed=0, workers=1).task.settings).window)


def grow(
    script: str,
    out: Path,
    records: list[Record],
    runs: Iterable[Run],
    how: Callable[[Run], Record],
    page: Callable[[Path, list[Record]], str],
) -> None:
    """Play runs, each when all before it are in the records; these and their page are written after every one.

    So a bench that was stopped goes on with what is missing.
    """
    for run in runs:
        began = time.perf_counter()
        record = {"key": run.key, **how(run), "seconds": round(time.perf_counter() - began, 1), **stamp(script)}
        told = f"seed {run.seed}  lr {run.rate:g}  {run.arm}  {record['val_loss']:.4f}  {record['seconds']:.0f} s"
        print(told, flush=True)
        records.append(record)
        write(out, records, page(out, records))
    write(out, records, page(out, records))


def set_up(record: Record) -> str:
    """What the runs of a table have in common."""
    _, _, _, steps, workers, settings = record["key"]
    named = ", ".join(f"`{setting}`" for setting in settings) or "default settings"
    return f"{steps:,} steps of {workers} workers, {record['values']:,} parameters; {named}"


def by_seed(runs: Sequence[Record]) -> dict[int, float]:
    """Losses."""
    return {record["key"][1]: record["val_loss"] for record in runs}


def share_kept(losses: Mapping[int, float], alone: Mapping[int, float], dense: Mapping[int, float]) -> list[float]:
    """What is kept of the gain of data-parallel training over one worker alone, of every seed that all three have."""
    both = [seed for seed in losses if seed in alone and seed in dense]
    return [(alone[seed] - losses[seed]) / (alone[seed] - dense[seed]) for seed in both]
