"""Real training on a simulated network, and the files of the benches that measure quality with it.

The workers are the production ones with the configuration's own task; only the network and its time are simulated, so
that a run depends on nothing but its settings. Knows nothing of what a bench looks for.
"""

import argparse
import asyncio
import concurrent.futures
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig
from decentral.config.settings import load
from decentral.engine.local_steps import LocalSteps
from decentral.engine.options import Outcome, Parts
from decentral.engine.worker import Worker
from decentral.monitor.events import RoundMixed
from decentral.monitor.journal import MemoryJournal
from decentral.ports.trainer import StepReport, Trainer
from decentral.run.options import run_options
from decentral.run.tasks import build_trainer
from decentral.sim.loop import run
from decentral.sim.world import SimPeer, World, peer_id

STEP_S = 0.1

Record = dict[str, Any]
#: One run: variant, seed, tokens, workers and settings of all runs.
Measure = Callable[[str, int, int, int, Sequence[str]], Record]
Write = Callable[[Path, list[Record]], None]
#: Told a worker's number and its parameters after every outer step.
Watch = Callable[[int, Mapping[str, Tensor]], None]


class Timed:
    """A trainer whose steps take virtual time, and that says when it is given other parameters.

    Args:
        inner: the real one.
        charge: told the virtual seconds of every stretch.
        loaded: told the parameters that a stretch was followed by.
        step_s: virtual seconds of an inner step.
    """

    def __init__(
        self,
        inner: Trainer,
        charge: Callable[[float], None],
        loaded: Callable[[Mapping[str, Tensor]], None],
        step_s: float,
    ) -> None:
        self._inner = inner
        self._charge = charge
        self._step_s = step_s
        self._loaded = loaded
        self._trained = False
        self.parameters = inner.parameters
        self.validate = inner.validate

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """Take the steps and charge their time."""
        report = self._inner.train_steps(first_step, count)
        self._charge(self._step_s * count)
        self._trained = True
        return report

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named parameters; what is loaded before the first step is no outer step's."""
        self._inner.load(parameters)
        if self._trained:
            self._loaded(parameters)


@dataclass(frozen=True)
class Trained:
    """What became of a swarm."""

    swarm: SwarmConfig
    """With nothing left open."""
    tokens_per_step: int
    """Of one worker."""
    probe: Trainer
    """A trainer that took no part, to validate with."""
    outcomes: list[Outcome]
    """By worker, as are the journals."""
    journals: list[MemoryJournal]
    seconds: float

    def mixed(self, worker: int) -> list[RoundMixed]:
        """A worker's rounds."""
        return [event for event in self.journals[worker].events if isinstance(event, RoundMixed)]

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Validation loss of weights, nats per token."""
        self.probe.load(weights)
        return self.probe.validate()


def train(
    settings: Sequence[str],
    *,
    seed: int,
    tokens: int,
    workers: int,
    watch: Watch = lambda worker, parameters: None,
    step_s: float = STEP_S,
) -> Trained:
    """One swarm from its start to its end, on one thread.

    Args:
        settings: ``key=value`` of the configuration.
        seed: of weights and data.
        tokens: over all workers at most; the run has as many whole rounds as fit.
        workers: all there from the first step.
        watch: see ``Watch``.
        step_s: virtual seconds of an inner step.
    """
    torch.set_num_threads(1)
    swarm = resolve(load(None, [*settings, f"run.seed={seed}", f"run.min_workers={workers}"]).swarm)
    probe = build_trainer(swarm, "cpu", (), 0)
    per_step = probe.train_steps(0, 1).tokens
    rounds = max(1, tokens // (per_step * workers * swarm.method.inner_steps))
    swarm = swarm.model_copy(
        update={"run": swarm.run.model_copy(update={"rounds": rounds}), "eval_every_rounds": 10**6}
    )
    options = run_options(swarm, f"bench-{seed}", probe.parameters())
    peers = [peer_id(number) for number in range(workers)]
    journals = [MemoryJournal() for _ in peers]
    outcomes: dict[int, Outcome] = {}

    async def play() -> None:
        world = World(seed)

        async def main(peer: SimPeer) -> None:
            number = peers.index(peer.peer_id)
            inner = build_trainer(swarm, "cpu", (), 1000 * (seed + 1) + number)
            trainer = Timed(inner, peer.clock.charge, lambda parameters: watch(number, parameters), step_s)
            inner = LocalSteps(trainer, peer.clock)
            parts = Parts(peer.transport, peer.directory, peer.clock, peer.identity, trainer, inner, journals[number])
            worker = Worker(options, parts)
            await (worker.join(peers[:1]) if number else worker.found())
            outcomes[number] = await worker.run(asyncio.Event())

        for peer in peers:
            world.start(peer, main)
            await asyncio.sleep(1.0)
        await world.ended()

    began = time.perf_counter()
    run(play(), until_s=1e7)
    seconds = time.perf_counter() - began
    return Trained(swarm, per_step, probe, [outcomes[number] for number in range(workers)], journals, seconds)


def stamp() -> dict[str, str]:
    """Where and when a record was made."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def main(description: str, out: Path, measure: Measure, write: Write, say: Callable[[Record], str]) -> None:
    """A bench's command line: run every variant with every seed, print, write; without variants only write.

    Args:
        description: the bench's.
        out: of its files, without their suffix, unless it is told another.
        measure: makes one record.
        write: told all records so far after each.
        say: a record in a line.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", default=[], metavar="SETTINGS")
    parser.add_argument("--seed", action="append", type=int, default=[])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each run at most, over all workers")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    if not options.variant:
        write(options.out, read_records(options.out))
        return
    common = (options.tokens, options.workers, options.set)
    jobs = [(variant, seed) for seed in options.seed or [0, 1, 2] for variant in options.variant]
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(measure, variant, seed, *common) for variant, seed in jobs]
        for future in concurrent.futures.as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            record = future.result()
            print(f"seed {record['seed']}  {record['variant']}  {say(record)}  {record['seconds']:.0f} s", flush=True)
            write(options.out, [*read_records(options.out), record])


def read_records(out: Path) -> list[Record]:
    """The raw numbers so far."""
    raw = out.with_suffix(".json")
    found: list[Record] = json.loads(raw.read_text()) if raw.exists() else []
    return found


def write_records(out: Path, records: Sequence[Record], page: str) -> None:
    """Raw numbers and page, each by way of a temporary file."""
    lines = ",\n".join(json.dumps(each) for each in records)
    for path, text in ((out.with_suffix(".json"), f"[\n{lines}\n]\n"), (out.with_suffix(".md"), page)):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)
