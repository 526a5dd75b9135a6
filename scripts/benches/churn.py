"""What churn costs a gossip: 32 real workers of which half leave while others join, against 32 that stay.

    scripts/bench churn --seed 0 --seed 1 --seed 2     # a steady run and one with churn for each seed
    scripts/bench churn                                # page and plot anew from the raw numbers

The workers are the production ones with the language model trainer; only the network and its time are simulated. The
run with churn has the number of rounds at which the swarm comes nearest to the tokens of the steady run, those of lost
work included.
Exit code 1 if a worker spent longer in a sync than the deadline that it had set itself. Appends to OUT.json and writes
OUT.md and OUT.png anew.
"""

import argparse
import functools
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from decentral.config.schema import SwarmConfig
from decentral.monitor.events import OneSided, StretchDone
from decentral.ports.trainer import Seat
from decentral.sim.loop import virtual_loop
from decentral.sim.world import peer_id
from decentral.state.average import RunningMean
from decentral.workers.lm.corpus import Corpus, load_corpus
from decentral.workers.lm.settings import read_settings
from decentral.workers.lm.trainer import LmTrainer
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, places, read, stamp, write
from scripts.benches.lib.stats import listed, spread
from scripts.benches.lib.tables import table
from scripts.benches.lib.training import Play, configured, with_rounds

SCRIPT = "churn"
STEP_S = 0.5
#: Nobody leaves or joins in the first and the last twentieth of the run.
CALM = 0.05
#: Points of a curve.
BINS = 32
SETTINGS = (
    "method.name=noloco",
    "method.inner_steps=20",
    "task.settings.model.d_model=64",
    "task.settings.model.num_layers=2",
    "task.settings.model.context=32",
    "task.settings.batch_sequences=1",
    "task.settings.val_batches=256",
)


@functools.cache
def corpus(window: int) -> Corpus:
    """The text, read once for all workers."""
    return load_corpus((), window)


def make_trainer(swarm: SwarmConfig, stream: int) -> LmTrainer:
    """The task's trainer on the one text."""
    settings = read_settings(swarm.task.settings)
    seat = Seat(swarm.run.seed, stream, swarm.run.rounds * swarm.method.inner_steps, "cpu", ())
    return LmTrainer(settings, seat, corpus(settings.window))


def changes(play: Play) -> list[tuple[float, Callable[[], None]]]:
    """Half of the workers go, every other one by a crash, and as many new ones come, each at its own moment.

    The run is cut in as many equal slots; one goes and one comes in each of them.
    """
    run, workers = play.swarm.run, play.swarm.run.min_workers
    dice, half = random.Random(f"churn {run.seed}"), workers // 2
    begin_s, length_s = virtual_loop().time(), STEP_S * play.swarm.method.inner_steps * run.rounds
    slot_s = length_s * (1 - 2 * CALM) / half
    found = []
    for number, victim in enumerate(dice.sample(range(workers), half)):
        start_s = begin_s + CALM * length_s + number * slot_s
        end = (play.leave, play.crash)[number % 2]
        found.append((start_s + dice.random() * slot_s, functools.partial(end, victim)))
        found.append((start_s + dice.random() * slot_s, functools.partial(play.start, workers + number)))
    return sorted(found, key=lambda change: change[0])


def played(swarm: SwarmConfig, churn: bool) -> Play:
    """A run."""
    play = Play(swarm, STEP_S, make=make_trainer)
    play.run((lambda: changes(play)) if churn else tuple)
    return play


def measure(seed: int, options: argparse.Namespace, steady: Record | None = None) -> Record:
    """A steady run of ``options.rounds`` rounds; given its record, the run with churn that has as many tokens."""
    settings, rounds, began = [*SETTINGS, *options.set], options.rounds, time.perf_counter()
    swarm = with_rounds(configured(settings, seed=seed, workers=options.workers), rounds)
    play = played(swarm, steady is not None)
    if steady is not None and (missing := round((steady["tokens"] / play.tokens - 1) * rounds)):
        rounds += missing
        play = played(with_rounds(swarm, rounds), True)
    mean, losses = RunningMean(), []
    for outcome in play.outcomes.values():
        losses.append(play.loss(outcome.anchors))
        mean.add(outcome.anchors)
    return {
        "seed": seed,
        "churn": steady is not None,
        "workers": options.workers,
        "settings": settings,
        "rounds": rounds,
        "tokens": play.tokens,
        "at_the_end": len(losses),
        "newcomers": sum(peer >= peer_id(options.workers) for peer in play.outcomes),
        "average_loss": play.loss(mean.mean()),
        "replica_losses": losses,
        "spread": mean.spread(),
        **syncs(play),
        "curve": curve(play),
        "seconds": round(time.perf_counter() - began, 1),
        **stamp(SCRIPT),
    }


def stretches(play: Play) -> list[StretchDone]:
    """Of all workers, in the order in which they ended."""
    found = [(at_s, peer, event) for peer, member in play.members.items() for at_s, event in member.events]
    found.sort(key=lambda stretch: stretch[:2])
    return [event for _, _, event in found if isinstance(event, StretchDone)]


def syncs(play: Play) -> Record:
    """What the journals of all workers say of their syncs, of those who left or crashed as well."""
    mixed = [event for member in play.members.values() for event in member.mixed()]
    whole = [event.waiting_s + event.transfer_s for event in mixed]
    trained_s = sum(event.seconds for event in stretches(play))
    return {
        "syncs": len(mixed),
        "alone": sum(len(event.members) == 1 for event in mixed),
        "one_sided": sum(isinstance(event, OneSided) for m in play.members.values() for _, event in m.events),
        "mean_sync_s": statistics.mean(whole),
        "longest_sync_s": max(whole),
        "sync_share": sum(whole) / (sum(whole) + trained_s),
        "longest_of_deadline": max(whole_s / event.deadline_s for whole_s, event in zip(whole, mixed, strict=True)),
        "late": sum(event.waiting_s > event.deadline_s for event in mixed),
    }


def curve(play: Play) -> list[tuple[int, float]]:
    """Mean training loss of the swarm's stretches as they ended, by tokens so far."""
    ended = stretches(play)
    losses: list[list[float]] = [[] for _ in range(BINS)]
    total, width = 0, sum(event.tokens for event in ended) // BINS
    for event in ended:
        losses[min(BINS - 1, total // width)].append(event.loss)
        total += event.tokens
    return [((number + 1) * width, statistics.mean(found)) for number, found in enumerate(losses) if found]


def page(records: list[Record]) -> str:
    """The raw numbers for people."""
    pairs = list(zip(records[::2], records[1::2], strict=True))
    rows = [
        [
            run["seed"],
            "churn" if run["churn"] else "steady",
            run["rounds"],
            f"{run['tokens']:,}",
            f"{run['average_loss']:.4f}",
            spread(run["replica_losses"], ".4f"),
            f"{run['spread']:.4f}",
            f"{run['alone']} of {run['syncs']}",
            run["one_sided"],
            f"{run['mean_sync_s']:.2f}",
            f"{run['longest_sync_s']:.2f}",
            f"{run['longest_of_deadline']:.0%}",
            f"{run['sync_share']:.1%}",
        ]
        for run in records
    ]
    gaps = [churned["average_loss"] / steady["average_loss"] - 1 for steady, churned in pairs]
    replicas = [statistics.mean(run["replica_losses"]) for run in records]
    replica_gaps = [churned / steady - 1 for steady, churned in zip(replicas[::2], replicas[1::2], strict=True)]
    late, total = sum(record["late"] for record in records), sum(record["syncs"] for record in records)
    last = records[-1]
    return f"""# Churn

Written by `scripts/bench churn`; the raw numbers are in `churn.json`. {last["workers"]} production workers gossip and
train the language model; the network alone is simulated ({STEP_S:g} virtual seconds a step). In the runs with churn
half of them go at random moments, every other one by a crash, and as many new ones join: one goes and one comes in each
of {last["workers"] // 2} equal slots of time. A run with churn has the number of rounds that comes nearest to the
tokens of the steady run of its seed; tokens whose work was lost with a worker count. Loss in nats per byte on held-out
text, of the average of the replicas there at the end and of each of them (mean, lowest to highest).

![training loss over tokens](churn.png)

{table(_COLUMNS, rows)}

* Loss of the average with churn against without: {listed(gaps, "+.2%")}; on average
  {statistics.mean(gaps):+.2%}. Mean loss of the replicas: {listed(replica_gaps, "+.2%")}.
* Of {total:,} syncs of all workers, those that left or crashed included, {late} waited beyond the deadline that the
  worker had set itself. One-sided: swaps of which a worker does not know whether the other side has them too.
* Settings: {", ".join(f"`{setting}`" for setting in last["settings"])}.

{"; ".join(places(records))}
"""


_COLUMNS = (
    "seed: | run | rounds: | tokens: | loss of the average: | loss of replicas | spread: | alone: | one-sided: "
    "| mean sync (s): | longest (s): | longest of its deadline: | time in syncs:"
)


def plot(path: Path, records: list[Record]) -> None:
    """Training loss over tokens, a line for each seed."""
    with figure(path, 8, 4.5) as [axes]:
        for churn, colour in ((False, "tab:blue"), (True, "tab:orange")):
            label = "with churn" if churn else "steady"
            for record in (record for record in records if record["churn"] is churn):
                axes.plot(*zip(*record["curve"], strict=True), color=colour, linewidth=1, label=label)
                label = "_"
        axes.set_xlabel("tokens of the swarm")
        axes.set_ylabel("training loss, nats a byte")
        axes.legend()


def main() -> int:
    """Run, print, write; 1 if anybody waited too long."""
    parser = Parser(SCRIPT, __doc__, "churn")
    parser.repeated("--seed", int)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=24, help="of the steady run")
    parser.settings()
    options = parser.parse_args()
    records: list[Record] = read(options.out, [])
    for seed in [*options.seed, None]:
        if seed is not None:
            steady = measure(seed, options)
            churned = measure(seed, options, steady)
            for record in (steady, churned):
                hidden = ("curve", "settings", "replica_losses")
                print(json.dumps({key: value for key, value in record.items() if key not in hidden}), flush=True)
            print(f"seed {seed}: {churned['average_loss'] / steady['average_loss'] - 1:+.2%}", flush=True)
            records = [record for record in records if record["seed"] != seed] + [steady, churned]
        records.sort(key=lambda record: (record["seed"], record["churn"]))
        write(options.out, records, page(records))
        plot(options.out, records)
    return int(any(record["late"] for record in records))


if __name__ == "__main__":
    enter(main)
