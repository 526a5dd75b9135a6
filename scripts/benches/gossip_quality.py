"""What gossip costs in quality: real swarms of NoLoCo and of DiLoCo at the same tokens, and how far replicas are apart.

    scripts/bench gossip-quality --variant "name=noloco inner_steps=10" --variant "name=local-sgd" [--workers 4] ...
    scripts/bench gossip-quality         # writes page and plot anew from the raw numbers

A variant is a list of settings of ``[method]``, or of any other section by the whole key. Appends to OUT.json and
writes OUT.md and OUT.png anew; the section "Findings" of OUT.md is written by hand and kept.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.engine.options import Outcome
from decentral.monitor.events import Pulled, RoundMixed
from decentral.schedule.inner_lr import warmup_cosine
from decentral.state.average import Replica, RunningMean, survey
from scripts.benches.lib.command import enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, kept, places
from scripts.benches.lib.stats import bars, gaps, grouped, listed, spread
from scripts.benches.lib.tables import table
from scripts.benches.lib.training import Play, drawn_ids
from scripts.benches.lib.variants import Run, by_variant, run_variants, set_up

CODECS = ("bf16", "int8-b128", "int4-b128", "e3m0-b128")
#: From this share of a run on the spread is compared with the learning rate; before, it grows from nothing.
SETTLED = 0.25
#: A correlation of fewer rounds says nothing.
_LEAST = 8
#: In the first, workers have other ids with every seed, and so other pairs; in the others they have the same.
_DRAWN, _METHODS, _CODECS = "Pairs drawn by seed", "Methods", "Codecs of anchors and pulls"


class Spreads:
    """How far apart the replicas are after each round, from the parameters themselves."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._loads = [0] * workers
        self._means: defaultdict[int, RunningMean] = defaultdict(RunningMean)
        self._counts: defaultdict[int, int] = defaultdict(int)
        self.by_round: dict[int, float] = {}

    def watch(self, worker: int, parameters: Mapping[str, Tensor]) -> None:
        """A worker's anchor after its next round."""
        round_ = self._loads[worker]
        self._loads[worker] += 1
        self._means[round_].add(parameters)
        self._counts[round_] += 1
        if self._counts[round_] == self._workers:
            self.by_round[round_] = self._means.pop(round_).spread()


def measure(run: Run) -> Record:
    """One swarm from its start to its end."""
    spreads = Spreads(run.workers)
    play = run.play(spreads.watch, ids=drawn_ids(run.seed))
    outcomes, method, rounds = play.outcomes, play.swarm.method, play.swarm.run.rounds
    mixed = [member.mixed() for member in play.members.values()]
    if any(len(events) != rounds for events in mixed):
        raise AssertionError(f"{run.variant}: {[len(events) for events in mixed]} of {rounds} rounds")
    found = survey(
        [Replica(peer, "", made.round, partial(anchors, made)) for peer, made in outcomes.items()], play.loss
    )
    if method.name != "noloco" and found.differ:
        raise AssertionError(f"{run.variant}: the final anchors differ")
    one, other, *_ = outcomes.values()
    return {
        **run.record(play),
        "ids": "drawn",
        "losses": [row.loss for row in found.rows],
        "average_loss": found.average_loss,
        "codecs": [method.codec, method.mean_codec, method.anchor_codec, method.pull_codec],
        "sent_bytes_a_round": statistics.mean(member.sent_a_round() for member in play.members.values()),
        "alone": statistics.mean(len(event.members) == 1 for events in mixed for event in events),
        "swaps": sum(isinstance(event, Pulled) for member in play.members.values() for _, event in member.events),
        "learning_rate": [learning_rate(play, round_) for round_ in range(rounds)],
        "spread": [spreads.by_round[round_] for round_ in range(rounds)] if found.differ else [],
        "spread_seen": spread_seen(play) if found.differ else [],
        "codec_errors": codec_errors(one.anchors, other.anchors) if found.differ else {},
    }


def anchors(outcome: Outcome) -> Mapping[str, Tensor]:
    """What a worker leaves."""
    return outcome.anchors


def learning_rate(play: Play, round_: int) -> float:
    """Of the last inner step of a round."""
    inner_steps, optimizer = play.swarm.method.inner_steps, play.swarm.task.settings["optimizer"]
    return warmup_cosine(
        (round_ + 1) * inner_steps - 1,
        peak=optimizer["learning_rate"],
        warmup_steps=optimizer["warmup_steps"],
        total_steps=play.swarm.run.rounds * inner_steps,
        floor_fraction=optimizer["floor_fraction"],
    )


def spread_seen(play: Play) -> list[float | None]:
    """By round, the mean over workers of what they learn of the spread from their swaps."""
    seen: list[list[float]] = [[] for _ in range(play.swarm.run.rounds)]
    for _, event in (event for member in play.members.values() for event in member.events):
        if isinstance(event, RoundMixed | Pulled) and event.round < len(seen) and event.spread == event.spread:
            seen[event.round].append(event.spread)
    return [statistics.mean(found) if found else None for found in seen]


def codec_errors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """By codec, its RMS error on an anchor and on the difference of two, each over the RMS of that difference."""
    one_N, other_N = (torch.cat([weights[name].flatten() for name in sorted(one)]) for weights in (one, other))
    difference_N = other_N - one_N

    def error(name: str, x_N: Tensor) -> float:
        codec = make_codec(name)
        return float((codec.decode(codec.encode(x_N, 0), x_N.numel()) - x_N).norm() / difference_N.norm())

    return {name: [error(name, one_N), error(name, difference_N)] for name in CODECS}


# -- written ----------------------------------------------------------------------------------------------------------


def page(out: Path, records: list[Record]) -> str:
    """The page, and the plot beside it."""
    groups = grouped(records, title)
    names = sorted(groups, key=lambda name: [not name.startswith(_DRAWN), not name.startswith(_METHODS)])
    plot(out, groups[min(names, key=lambda name: not name.startswith(_METHODS))])
    tables = [section(name, groups[name]) for name in names]
    return "\n".join([_HEAD, kept(out), *tables])


def title(record: Record) -> str:
    """Of the table that a run is in."""
    pairs = _DRAWN if record.get("ids") else _CODECS if "anchor_codec=" in record["variant"] else _METHODS
    return f"{pairs}: {set_up(record)}"


def section(name: str, records: list[Record]) -> str:
    """One set-up."""
    variants = by_variant(records)
    reference = by_seed(next(iter(variants.values())))
    rows = []
    for variant, runs in variants.items():
        size = [variant, f"{runs[0]['rounds']} x {runs[0]['inner_steps']}", f"{mean_of(runs, sent_mb):.3g}"]
        averages, above = by_seed(runs), gaps(by_seed(runs), reference)
        losses = [spread([loss for run in runs for loss in run["losses"]], ".4f"), listed(averages.values(), ".4f")]
        losses += [f"{statistics.mean(averages.values()):.4f}", spread(above, "+.2%") if above else ""]
        rows.append([*size, *losses, *spread_cells(runs)])
    seeds = ", ".join(map(str, sorted({run["seed"] for run in records})))
    stamps = "".join(f"\n{place}\n" for place in places(records))
    return f"## {name}\n\n{table(_COLUMNS, rows)}\n{errors(records)}\nSeeds {seeds}.\n{stamps}"


def by_seed(runs: list[Record]) -> dict[int, float]:
    """Losses of the averages."""
    return {run["seed"]: run["average_loss"] for run in runs}


def mean_of(runs: list[Record], figure: Callable[[Record], float]) -> float:
    """Over the seeds."""
    return statistics.mean(figure(run) for run in runs)


def sent_mb(run: Record) -> float:
    """What a worker sends in a run."""
    return float(run["sent_bytes_a_round"] * run["rounds"] / 1e6)


def spread_cells(runs: list[Record]) -> list[object]:
    """Spread at its highest and at the end, what workers saw of it, its correlation with the learning rate, alone."""
    if not runs[0]["spread"]:
        return [0, 0, "", "", ""]
    highest, last = mean_of(runs, lambda run: max(run["spread"])), mean_of(runs, lambda run: float(run["spread"][-1]))
    correlations = [value for run in runs if (value := correlation(run)) is not None]
    together = f"{statistics.mean(correlations):.2f}" if correlations else "-"
    alone = "-" if runs[0]["swaps"] else f"{mean_of(runs, lambda run: float(run['alone'])):.1%}"
    return [f"{highest:.1%}", f"{last:.1%}", f"{mean_of(runs, seen):.2f}", together, alone]


def seen(run: Record) -> float:
    """What swaps say of the spread over the spread before them: the mean over settled rounds."""
    pairs = zip(run["spread_seen"][1:], run["spread"], strict=False)
    return float(statistics.mean([told / exact for told, exact in pairs if told is not None][settled(run) :]))


def settled(run: Record) -> int:
    """The first round that counts."""
    rounds: int = run["rounds"]
    return round(SETTLED * rounds)


def correlation(run: Record) -> float | None:
    """Pearson's, of spread and learning rate by round, from a quarter of the run on; ``None`` without decay."""
    rates, spreads = run["learning_rate"][settled(run) :], run["spread"][settled(run) :]
    if len(rates) < _LEAST or max(rates) < 1.01 * min(rates):
        return None
    return float(np.corrcoef(rates, spreads)[0, 1])


def errors(records: list[Record]) -> str:
    """What a coarse codec would do to an anchor, and to a difference, for all gossip runs of a set-up together."""
    found = [run["codec_errors"] for run in records if run["codec_errors"]]
    if not found:
        return ""
    rows = []
    for name in CODECS:
        anchor, difference = (statistics.mean(of_run[name][i] for of_run in found) for i in (0, 1))
        bits = 8 * make_codec(name).nbytes(1 << 20) / (1 << 20)
        rows.append([name, f"{bits:.3g}", f"{anchor:.1%}", f"{difference:.2%}", f"{anchor / difference:.0f}"])
    return f"\n{_ERRORS}\n{table('codec | bits: | anchor: | difference: | times:', rows)}\n"


def plot(path: Path, records: list[Record]) -> None:
    """Spread over the run with and without decay, and loss of the average against bytes sent."""
    with figure(path, 13, 5, 2) as [left, right]:
        for variant, runs in by_variant(records).items():
            if runs[0]["spread"]:
                steps = runs[0]["inner_steps"] * np.arange(1, runs[0]["rounds"] + 1)
                left.plot(steps, 100 * np.mean([run["spread"] for run in runs], axis=0), label=short(variant))
            losses = list(by_seed(runs).values())
            mean, sent = statistics.mean(losses), mean_of(runs, sent_mb)
            colour = "tab:blue" if runs[0]["spread"] else "tab:red"
            right.errorbar(sent, mean, yerr=bars(losses, mean), fmt="o", capsize=3, color=colour)
            right.annotate(short(variant), (sent, mean), textcoords="offset points", xytext=(5, 4), fontsize=6)
        left.set_xlabel("inner steps")
        left.set_ylabel("spread between replicas, %")
        left.legend(fontsize="x-small")
        right.set_xscale("log")
        right.set_xlabel("MB sent by a worker")
        right.set_ylabel("validation loss of the average")
        right.margins(x=0.15)


def short(variant: str) -> str:
    """A variant for the plot."""
    settings = (word.split("=") for word in variant.split())
    text = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings)
    for old, new in (
        ("diloco nesterov=false", "heavy ball"),
        ("outer_lr=0.7 ", ""),
        ("outer_momentum=", ""),
        ("name=", ""),
        ("inner_steps=", "H="),
        ("floor_fraction=1.0", "without decay"),
    ):
        text = text.replace(old, new)
    return text


def say(record: Record) -> str:
    """A record in a line."""
    last = record["spread"][-1] if record["spread"] else 0.0
    losses = statistics.mean(record["losses"])
    return f"replicas {losses:.4f}  average {record['average_loss']:.4f}  spread {last:.3f}"


_HEAD = """# What gossip costs in quality

Written by `scripts/bench gossip-quality`; the raw numbers, with the spread of every round, are in
`gossip-quality.json`. Production workers train the language model; the network alone is simulated, and all workers are
equally fast. All runs of a table have the same tokens (within a round), data streams and initial weights for a seed.
Loss in nats per byte on held-out text.

* **rounds**: rounds x H inner steps. **MB**: sent by one worker in the whole run, signs of life included.
* **replicas**: mean (best to worst) over the replicas of all seeds. **average**: loss of the mean of a run's replicas,
  by seed, then its mean; with an all-reduce the replicas are equal. **gap**: of that loss to the first row of the table
  with the same seed, mean (least to greatest).
* **most**, **last**: spread, the RMS of the difference of two replicas over all pairs, over the RMS of their mean, from
  the parameters; the highest of all rounds, and that of the last. **seen**: what swaps told the workers of it
  (`RoundMixed.spread`) over the spread before the swap. **with lr**: Pearson's correlation of spread and inner learning
  rate by round. The last two from a quarter of the run on.
* **alone**: share of rounds without a partner.

![spread and loss](gossip-quality.png)
"""

_COLUMNS = (
    "variant | rounds: | MB: | replicas | average by seed | mean: | gap | most: | last: | seen: | with lr: | alone:"
)

_ERRORS = """RMS error of a codec on an anchor, and on the difference of two anchors, both over the RMS of that
difference; final anchors of two replicas, mean over the runs above.
"""


def main() -> None:
    """See ``run_variants``."""
    run_variants("gossip-quality", __doc__, "gossip-quality", measure, page, say)


if __name__ == "__main__":
    enter(main)
