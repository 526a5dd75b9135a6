"""What DiLoCo's outer settings cost in quality: N replicas against one process with the same global batch and tokens.

The replicas train one after the other in this process, with the real trainer and the real outer rule; the network and
the codec are left out. All runs start from the same weights and are measured on the same held-out windows.

    scripts/bench-quality --tokens 1600000 --outer 0.7:0.9 --outer 1.0:0.0 --inner-steps 25

writes docs/benchmarks/quality.json (raw numbers, one record a run) and, from all records, docs/benchmarks/quality.md.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from decentral.config.resolve import resolve_task
from decentral.config.schema import leaves, show
from decentral.config.settings import load
from decentral.outer.diloco import DiLoCo
from decentral.outer.rule import Mixed
from decentral.ports.trainer import Seat
from decentral.tensors.layout import Layout
from decentral.types import PeerId
from decentral.workers.lm.corpus import Corpus, load_corpus
from decentral.workers.lm.settings import LmSettings, read_settings
from decentral.workers.lm.trainer import LmTrainer
from decentral.workers.settings import write as written
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, places, read, stamp, write
from scripts.benches.lib.stats import gaps, grouped
from scripts.benches.lib.tables import table

SCRIPT = "bench-quality"


class Experiment:
    """All runs of one seed.

    Args:
        options: of the command.
        settings: of the task.
        corpus: all take from.
        seed: of weights and data.
    """

    def __init__(self, options: argparse.Namespace, settings: LmSettings, corpus: Corpus, seed: int) -> None:
        self._options = options
        self._settings = settings
        self._corpus = corpus
        self._seed = seed
        self._step_tokens = options.workers * settings.batch_sequences * settings.model.context
        self.num_steps: int = options.tokens // self._step_tokens

    def baseline(self) -> Iterator[Record]:
        """One process that takes the batches of all workers in every step."""
        settings, workers = self._settings, self._options.workers
        batches = max(1, settings.val_batches // workers)
        wide = replace(settings, batch_sequences=settings.batch_sequences * workers, val_batches=batches)
        trainer = self._trainer(wide, 0)
        for first in range(0, self.num_steps, self._options.every):
            count = min(self._options.every, self.num_steps - first)
            trainer.train_steps(first, count)
            yield self._point(first + count, trainer)

    def swarm(self, outer: str, inner_steps: int) -> Iterator[Record]:
        """Workers that meet every ``inner_steps`` steps; the last round may be shorter."""
        lr, momentum = map(float, outer.split(":"))
        rule = DiLoCo(lr, momentum)
        trainers = [self._trainer(self._settings, index) for index in range(self._options.workers)]
        members = tuple(PeerId(str(index)) for index in range(len(trainers)))
        layout = Layout.of(trainers[0].parameters())
        anchor_N = layout.gather(trainers[0].parameters(), 0)
        state, every = rule.init(anchor_N), self._options.every
        for first in range(0, self.num_steps, inner_steps):
            done = min(first + inner_steps, self.num_steps)
            deltas: list[Tensor] = []
            for trainer in trainers:
                trainer.load(layout.scatter(anchor_N, 0))
                trainer.train_steps(first, done - first)
                deltas.append(anchor_N - layout.gather(trainer.parameters(), 0))
            anchor_N, state = rule.step(anchor_N, Mixed(torch.stack(deltas).mean(0), members), state)
            if done == self.num_steps or done // every > first // every:
                trainers[0].load(layout.scatter(anchor_N, 0))
                yield self._point(done, trainers[0])
        if self._options.sample:
            print(trainers[0].sample("\nclass ", num_bytes=700, seed=self._seed), flush=True)

    def record(self, outer: str, inner_steps: int, run: Iterator[Record]) -> Record:
        """What a run comes to."""
        started = time.perf_counter()
        curve = list(run)
        return {
            "outer": outer,
            "inner_steps": inner_steps,
            "seed": self._seed,
            "workers": self._options.workers,
            "steps": self.num_steps,
            "tokens": curve[-1]["tokens"],
            "val_loss": curve[-1]["val_loss"],
            "curve": curve,
            "seconds": round(time.perf_counter() - started, 1),
            "settings": written(self._settings),
            "held_out": self._corpus.held_out_digest(),
            "data": list(self._options.data),
            **stamp(SCRIPT),
        }

    def _trainer(self, settings: LmSettings, index: int) -> LmTrainer:
        # The stream of a worker's data is one that no other run shares.
        return LmTrainer(settings, Seat(self._seed, 1000 * (self._seed + 1) + index, self.num_steps), self._corpus)

    def _point(self, step: int, trainer: LmTrainer) -> Record:
        return {"step": step, "tokens": step * self._step_tokens, "val_loss": trainer.validate()}


def page(records: list[Record]) -> str:
    """The raw numbers as tables, one for each set-up, best first."""
    parts = [_HEAD]
    for title, runs in grouped(records, set_up).items():
        single = {run["seed"]: run["val_loss"] for run in runs if run["inner_steps"] == 0}
        rows = []
        for run in sorted(runs, key=lambda run: (int(run["seed"]), float(run["val_loss"]))):
            gap = "".join(f"{gap:+.1%}" for gap in gaps({run["seed"]: run["val_loss"]}, single))
            rows.append([run["outer"], run["inner_steps"] or "-", run["seed"], f"{run['val_loss']:.4f}", gap])
        parts.append(f"\n## {title}\n\n{table(_COLUMNS, rows)}\n")
        parts.extend(f"\n{place}\n" for place in places(runs))
        parts.extend(f"\n    {command}\n" for command in dict.fromkeys(run["command"] for run in runs))
    return "".join(parts)


def set_up(record: Record) -> str:
    """What the runs of a table have in common."""
    defaults, settings = dict(leaves(written(LmSettings()))), dict(leaves(record["settings"]))
    other = [f"`{key}={show(value)}`" for key, value in settings.items() if value != defaults[key]]
    size = f"{record['workers']} workers, {record['tokens']:,} tokens, {record['steps']} steps"
    return f"{size}; {', '.join(other) or 'default settings'}"


_HEAD = """# What the outer settings cost in quality

Written by `scripts/bench-quality`; the raw numbers with their curves are in `quality.json`. N replicas with the real
trainer and the real outer rule, in one process, against one process that takes the N batches in one step: same
initial weights, same number of steps and tokens, same held-out windows. Loss in nats per byte. The network and the
codec are left out.
"""

_COLUMNS = "outer lr:momentum | H | seed | validation loss | against one process"


def main() -> None:
    """Run the baseline and every pair of outer settings and H, then write the page."""
    parser = Parser(SCRIPT, __doc__, "quality")
    parser.add_argument("--tokens", type=int, default=1_600_000, help="tokens of each run, over all workers")
    parser.add_argument("--workers", type=int, default=4)
    parser.repeated("--outer", metavar="LR:MOMENTUM")
    parser.repeated("--inner-steps", int, [25], metavar="H")
    parser.repeated("--seed", int, [0])
    parser.settings("a setting of the task")
    parser.repeated("--data", metavar="PATH")
    parser.add_argument("--every", type=int, default=50, help="steps between two points of the curve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--sample", action="store_true", help="print text of the swarm's final weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stated = [f"task.settings.{assignment}" for assignment in options.set]
    settings = read_settings(resolve_task(load(None, stated).swarm).task.settings)
    corpus = load_corpus(tuple(options.data), settings.window)
    for seed in options.seed:
        experiment = Experiment(options, settings, corpus, seed)
        print(f"{settings.model.num_parameters:,} parameters, {experiment.num_steps} steps", flush=True)
        runs = [] if options.no_baseline else [("single process", 0, experiment.baseline())]
        for inner_steps in options.inner_steps:
            runs += [(outer, inner_steps, experiment.swarm(outer, inner_steps)) for outer in options.outer]
        for run in runs:
            record = experiment.record(*run)
            named = f"seed {seed}  {record['outer']:>14}  H {record['inner_steps']:>3}"
            print(f"{named}  val {record['val_loss']:.4f}  {record['seconds']:.0f} s", flush=True)
            records = [*read(options.out, []), record]
            write(options.out, records, page(records))


if __name__ == "__main__":
    enter(main)
