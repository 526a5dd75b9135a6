"""Benches of what a method costs in quality: a run for each variant and seed, at equal tokens; records, rows and gaps.

A variant is a list of settings of ``[method]``, or of any other section by the whole key.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from decentral.codecs.codec import make_codec
from decentral.sim.world import peer_id
from decentral.types import PeerId
from scripts.benches.lib.command import Parser
from scripts.benches.lib.report import Record, read, stamp, write
from scripts.benches.lib.stats import grouped
from scripts.benches.lib.training import STEP_S, Play, Watch, configured, made_by_task, unwatched, with_rounds


@dataclass(frozen=True)
class Run:
    """What is to be run."""

    script: str
    variant: str
    seed: int
    tokens: int
    """Over all workers at most; the run has as many whole rounds as fit."""
    workers: int
    settings: Sequence[str]
    """``key=value``, of all variants."""

    def play(self, watch: Watch = unwatched, step_s: float = STEP_S, ids: Callable[[int], PeerId] = peer_id) -> Play:
        """The swarm from its start to its end.

        Args:
            watch: told a worker's number and its parameters after every outer step.
            step_s: virtual seconds of an inner step.
            ids: of the workers, by number.
        """
        words = [word if "." in word.partition("=")[0] else f"method.{word}" for word in self.variant.split()]
        swarm = configured([*self.settings, *words], seed=self.seed, workers=self.workers)
        per_step = made_by_task(swarm, 0).train_steps(0, 1).tokens
        rounds = max(1, self.tokens // (per_step * self.workers * swarm.method.inner_steps))
        play = Play(with_rounds(swarm, rounds), step_s, watch, ids=ids)
        play.run()
        return play

    def record(self, play: Play) -> Record:
        """What all records have."""
        method, [anchors, *_] = play.swarm.method, [outcome.anchors for outcome in play.outcomes.values()]
        numel = sum(value.numel() for value in anchors.values())
        return {
            "variant": self.variant,
            "settings": list(self.settings),
            "seed": self.seed,
            "workers": self.workers,
            "rounds": play.swarm.run.rounds,
            "inner_steps": method.inner_steps,
            "tokens_asked": self.tokens,
            "tokens": play.tokens,
            "numel": numel,
            "bits_up": 8 * make_codec(method.codec).nbytes(numel) / numel,
            "bits_down": 8 * make_codec(method.mean_codec).nbytes(numel) / numel,
            "seconds": play.seconds,
            **stamp(self.script),
        }


def agreed_loss(play: Play) -> float:
    """Validation loss of the final anchors, which must be everybody's, after rounds of all workers."""
    workers, outcomes = play.swarm.run.min_workers, list(play.outcomes.values())
    if len({outcome.digest for outcome in outcomes}) != 1:
        raise AssertionError("the final anchors differ")
    *_, last = play.members.values()
    mixed = last.mixed()
    num_fragments = 1 + max(event.fragment for event in mixed)
    due = play.swarm.run.rounds * num_fragments
    if len(mixed) != due or any(len(event.members) != workers for event in mixed):
        raise AssertionError(f"{len(mixed)} of {due} syncs, not all with everybody")
    return play.loss(outcomes[0].anchors)


def run_variants(
    script: str,
    doc: str | None,
    out: str,
    measure: Callable[[Run], Record],
    page: Callable[[Path, list[Record]], str],
    say: Callable[[Record], str],
) -> None:
    """A bench's command line: run every variant with every seed, print, write; without variants only write.

    Args:
        script: the bench's name.
        doc: of its module.
        out: name of its files.
        measure: makes one record.
        page: told all records so far after each; draws the plot as well.
        say: a record in a line.
    """
    parser = Parser(script, doc, out)
    parser.repeated("--variant", metavar="SETTINGS")
    parser.repeated("--seed", int, [0, 1, 2])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each run at most, over all workers")
    parser.add_argument("--workers", type=int, default=4)
    parser.settings()
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    common = (options.tokens, options.workers, options.set)
    runs = [Run(script, variant, seed, *common) for seed in options.seed for variant in options.variant]
    records: list[Record] = read(options.out, [])
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(measure, run) for run in runs]
        for future in concurrent.futures.as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            record = future.result()
            print(f"seed {record['seed']}  {record['variant']}  {say(record)}  {record['seconds']:.0f} s", flush=True)
            records.append(record)
            write(options.out, records, page(options.out, records))
    write(options.out, records, page(options.out, records))


def set_up(record: Record) -> str:
    """What the runs of a table have in common."""
    size = f"{record['workers']} workers, {record['numel']:,} parameters, {record['tokens_asked']:,} tokens"
    settings = ", ".join(f"`{setting}`" for setting in record["settings"]) or "default settings"
    return f"{size}; {settings}"


def by_variant(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each variant in the order of their seeds."""
    return grouped(sorted(records, key=lambda run: int(run["seed"])), lambda run: str(run["variant"]))
