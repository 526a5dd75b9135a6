"""How long a worker spends in a sync, by the size of the swarm: the all-reduce and gossip, measured and predicted.

    scripts/bench gossip                                    # everything; the largest swarms take some ten minutes each
    scripts/bench gossip --method noloco --workers 8 --workers 64
    scripts/bench gossip --page                             # page and plot anew from the raw numbers

Production workers on the simulator, whose messages take log-normal times as in the NoLoCo paper. All take the same
time for their inner steps, so that what is left is the sync. Writes docs/benchmarks/gossip.json, into which a part of
the cases is merged, and from it gossip.md and gossip.png.
"""

import concurrent.futures
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import framed_nbytes
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.wire import Wire
from decentral.monitor.events import RoundAborted, RoundMixed
from decentral.outer.noloco import NoLoCo
from decentral.schedule.plan import SyncPlan
from decentral.sim.network import FRAME_BYTES, Conditions, Line
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.world import Machine, peer_id
from decentral.swarm.message import to_wire
from decentral.swarm.timing import Timing
from decentral.types import SyncKey
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, places, read, stamp, write
from scripts.benches.lib.stats import grouped
from scripts.benches.lib.tables import row, table

SCRIPT = "gossip"
#: Mean and sigma of the log-normal time of a message; sigma^2 = 0.5 as in the paper.
LATENCY_S, SIGMA = 0.1, math.sqrt(0.5)
INNER_STEPS, STEP_S = 10, 1.0
#: The first round, into which all go at the same moment, and others, into which they go when they come.
ROUNDS = 12
#: From this round on where a worker enters depends on the rounds before, not on the start.
SETTLED = 4
#: So many workers at least are looked at, in several swarms if one has fewer.
SAMPLE = 1024
CODEC = make_codec("fp32")
METHODS: dict[str, dict[str, Any]] = {
    "allreduce": {},
    "noloco": {"rule": NoLoCo(), "mixing": GossipOptions(CODEC, CODEC)},
}
#: Signs of life are few and nobody dies; what waits for a line waits, and is not sent again.
TIMING = Timing(
    beat_s=120.0, ttl_s=480.0, min_patience_s=60.0, transfer_timeout_s=600.0, grace_s=60.0, min_rate_bytes_per_s=1_000.0
)

Times = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What is simulated."""

    method: str
    workers: int
    values: int
    mbit: float
    """Of every line, each way; infinite for none."""

    @property
    def name(self) -> str:
        """The key of the record."""
        return f"{self.method} {self.workers} {self.values} {self.mbit:g}"

    @property
    def bytes_per_s(self) -> float:
        """Of a line."""
        return self.mbit * 1e6 / 8

    @property
    def swarms(self) -> int:
        """How many are simulated."""
        return max(1, SAMPLE // self.workers)

    def scenario(self, seed: int) -> Scenario:
        """One swarm."""
        line = Machine(line=Line(self.bytes_per_s, self.bytes_per_s))
        return Scenario(
            seed,
            num_workers=self.workers,
            rounds=ROUNDS,
            min_workers=self.workers,
            together=True,
            plan=SyncPlan(inner_steps=INNER_STEPS),
            step_s=STEP_S,
            timing=TIMING,
            conditions=Conditions(latency_s=LATENCY_S, jitter=SIGMA),
            machines={peer_id(number): line for number in range(self.workers)},
            num_values=self.values,
            **METHODS[self.method],
        )


# -- measured ---------------------------------------------------------------------------------------------------------


def measure(case: Case) -> Record:
    """Simulate and read the journals."""
    torch.set_num_threads(1)
    began, aborted, alone, mixed = time.process_time(), 0, 0, 0
    first: list[list[float]] = []
    later: list[list[float]] = []
    for seed in range(case.swarms):
        syncs: list[list[float]] = [[] for _ in range(ROUNDS)]
        journals = simulate(case.scenario(seed)).journals
        for event in (event for lives in journals.values() for life in lives for event in life.events):
            aborted += isinstance(event, RoundAborted)
            if isinstance(event, RoundMixed):
                syncs[event.round].append(event.waiting_s + event.transfer_s)
                alone += len(event.members) == 1
                mixed += 1
        first.append(syncs[0])
        later += syncs[SETTLED:]
    return {
        "first": figures(first),
        "later": figures(later),
        "mixed": mixed,
        "aborted": aborted,
        "alone": alone,
        "swarms": case.swarms,
        "cpu_s": round(time.process_time() - began, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def figures(rounds: list[list[float]]) -> dict[str, float]:
    """Seconds in a sync over workers and rounds; the error is from the rounds, whose workers wait for each other."""
    syncs = [sync for round_ in rounds for sync in round_]
    means = [float(np.mean(round_)) for round_ in rounds if round_]
    return {
        "mean": float(np.mean(syncs)),
        "error": float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan,
        "median": float(np.median(syncs)),
        "p95": float(np.quantile(syncs, 0.95)),
    }


# -- predicted --------------------------------------------------------------------------------------------------------

Draw = Callable[[int], Times]


def draw_from(seed: int) -> Draw:
    """Times of messages without their bytes."""
    rng = np.random.default_rng(seed)
    return lambda count: rng.lognormal(math.log(LATENCY_S) - SIGMA**2 / 2, SIGMA, count)


def queued(arrivals: Times, each_s: float) -> Times:
    """When a line is done with messages that reach it at ``arrivals`` and take ``each_s``: first come, first served."""
    order = np.argsort(arrivals, kind="stable")
    place = np.arange(len(arrivals))
    done = np.empty_like(arrivals)
    done[order] = (place + 1) * each_s + np.maximum.accumulate(arrivals[order] - place * each_s)
    return done


def star(case: Case, starts: Times, draw: Draw) -> Times:
    """When each worker has the mean, if it enters the all-reduce at ``starts``.

    All call the leader, which answers with the participants when the last has called; all send each shard to its
    reducer, which answers when the last has sent. Leader and reducers reach themselves at once. Worker 0 is the leader,
    the next are the reducers: who they are makes no difference.
    """
    members = tuple(peer_id(number) for number in range(case.workers))
    participants = Participants(SyncKey(0, 0), members[0], 0, "0" * 32, members)
    participants_bytes, rate = len(to_wire(participants)), case.bytes_per_s
    parts = Wire((case.values,), CODEC, CODEC).parts(participants.key, members)

    def times(size: float, itself: int) -> tuple[Times, float]:
        travel = draw(case.workers)
        travel[itself] = 0.0
        return travel, (size + FRAME_BYTES) / rate

    travel, _ = times(0, 0)
    called = (starts + travel).max()
    travel, each_s = times(participants_bytes, 0)
    have_roll = queued(np.full(case.workers, called), each_s) + travel
    done = np.zeros(case.workers)
    for place, part in enumerate(parts):
        reducer = (part.index + 1) % case.workers
        size = framed_nbytes(CODEC, part.numel)
        travel, each_s = times(size + participants_bytes, reducer)
        closed = queued(have_roll + place * each_s + travel, each_s).max()
        travel, each_s = times(size + case.workers / 8, reducer)
        done = np.maximum(done, queued(np.full(case.workers, closed), each_s) + travel)
    return done


def pairs(case: Case, starts: Times, draw: Draw) -> Times:
    """When each worker has its pair's mean: the guest sends to the host, which answers when both are there.

    Anchors travel during the inner steps. Pairs are drawn anew in every round.
    """
    each_s = (framed_nbytes(CODEC, case.values) + FRAME_BYTES) / case.bytes_per_s
    order = np.argsort(draw(case.workers))
    host, guest = order[::2], order[1::2]
    done = np.empty_like(starts)
    done[host] = np.maximum(starts[host], starts[guest] + draw(len(guest)) + each_s)
    # The answer is a mean and a pull.
    done[guest] = done[host] + draw(len(guest)) + 2 * each_s
    return done


def predict(case: Case) -> dict[str, float]:
    """Mean seconds in the first and in later syncs, by Monte Carlo."""
    model = star if case.method == "allreduce" else pairs
    first, later = [], []
    for seed in range(max(8, 8_000 // case.workers)):
        draw, starts = draw_from(seed), np.zeros(case.workers)
        for round_ in range(ROUNDS):
            done = model(case, starts, draw)
            if round_ == 0:
                first.append((done - starts).mean())
            elif round_ >= SETTLED:
                later.append((done - starts).mean())
            starts = done
    return {"first": float(np.mean(first)), "later": float(np.mean(later))}


def later_of_two_s() -> float:
    """E[max(t1, t2)] of two messages, without their bytes: (1 + erf(sigma / 2)) exp(mu + sigma^2 / 2)."""
    return LATENCY_S * (1 + math.erf(SIGMA / 2))


def paper_s(method: str, workers: int) -> float:
    """What the paper reckons with: a message to and fro for a pair, and for every level of a tree all-reduce."""
    return 2 * later_of_two_s() * (math.log2(workers) if method == "allreduce" else 1)


# -- written ----------------------------------------------------------------------------------------------------------


def networks(report: Record) -> dict[str, list[list[Record]]]:
    """By the lines of the network in words, the cases of each method by size of the swarm."""
    cases = sorted(report["cases"].values(), key=lambda c: (c["mbit"] is not None, c["values"], c["method"]))
    by_network = grouped(cases, lambda case: network(case["values"], case["mbit"]))
    return {
        name: [sorted(own, key=lambda case: int(case["workers"])) for own in grouped(found, _method).values()]
        for name, found in by_network.items()
    }


def _method(case: Record) -> str:
    return str(case["method"])


def network(values: int, mbit: float | None) -> str:
    """A setting in words."""
    lines = "lines without limit" if mbit is None else f"lines of {mbit:g} Mbit/s"
    return f"{values:,} values, {lines}"


def cells(case: Record) -> list[str]:
    """One case in the page."""
    first, later, predicted = case["first"], case["later"], case["predicted"]
    seconds = [f"{first['mean']:.3f}", f"{predicted['first']:.3f}", f"{later['mean']:.3f} ± {later['error']:.3f}"]
    seconds += [f"{predicted['later']:.3f}", f"{later['mean'] / predicted['later'] - 1:+.1%}"]
    seconds += [f"{each:.3f}" for each in (later["median"], later["p95"], case["paper"])]
    share = f"{case['alone'] / case['mixed']:.1%}"
    return [case["method"], f"{case['workers']:,}", *seconds, share, str(case["aborted"])]


_COLUMNS = (
    "method | workers: | first, s: | predicted: | later, s: | predicted: | off: | median: | 95 %: | paper: | alone: "
    "| aborted:"
)


def growth(cases: list[Record]) -> str:
    """How a sync of the largest swarm compares with those of the smaller ones."""
    last = cases[-1]
    against = [
        f"{case['workers']:,}: {last['first']['mean'] / case['first']['mean']:.2f} and "
        f"{last['later']['mean'] / case['later']['mean']:.2f} times"
        for case in cases[:-1]
    ]
    return f"* {last['method']}, {last['workers']:,} workers against " + "; ".join(against) + "."


def page(report: Record) -> str:
    """The page for people."""
    found = networks(report)
    tables = [
        f"## {name}\n\n{table(_COLUMNS, [cells(case) for cases in methods for case in cases])}"
        for name, methods in found.items()
    ]
    summary = [f"{name}:\n\n{growth(cases)}" for name, methods in found.items() for cases in methods if len(cases) > 1]
    largest = max(report["cases"].values(), key=lambda case: int(case["workers"]))
    return f"""# A sync, by the size of the swarm

Written by `scripts/bench gossip`; the raw record is `gossip.json`. Production workers on the
[simulator](../simulator.md), {ROUNDS} rounds of {INNER_STEPS} inner steps of {STEP_S:g} s, the same for all, so that
what is left is the sync: `waiting_s` plus `transfer_s` of `RoundMixed` in the journals. A message takes a log-normal
time of mean {LATENCY_S:g} s and sigma^2 = {SIGMA**2:.1f}, the paper's, plus its bytes over the lines. Codec `fp32`;
of small swarms several are simulated.

* **first**: mean seconds in the first sync, into which all go at the same moment; this is the paper's setting.
* **later**: mean over rounds {SETTLED} to {ROUNDS - 1}. A worker that came out of the last sync late goes into the next
  one late, and whoever mixes with it waits for that as well. After ± the standard error of the mean, taken from the
  means of the rounds. **median**, **95 %**: of workers and rounds.
* **predicted**: by Monte Carlo of the messages alone. *allreduce*: all call the leader, the leader answers all when the
  last has called, all send to the reducers, which answer when the last has sent: in the first round
  E[max_N t] + E[max_N (t + t')] + E[t], later 2 E[max_N (t + t')], and the bytes queue at the lines of leader and
  reducers. *noloco*: the guest sends to its host, the host answers.
  Left out is that a call is answered "not yet" after `hold_s` = {TIMING.hold_s:g} s and made again with the
  participants in it, 18 kB at 2,048 workers, which costs a round that long on narrow lines a quarter and more. (256
  workers at 1.5 Mbit/s: 6.6 s where 4.8 s are predicted; 4.8 s with `hold_s` = 60.)
* **paper**: without bytes, 2 E[max(t1, t2)] = 2 (1 + erf(sigma / 2)) exp(mu + sigma^2 / 2) for a pair, which both send
  and both wait, and log2(N) times as much for an all-reduce over a tree. Ours is a star: two gatherings of all instead
  of log2(N) levels.
* **alone**: share of rounds that a worker mixed with itself only. **aborted**: rounds without a result.

{(chr(10) * 2).join(tables)}

![seconds in a sync](gossip.png)

## Growth

Mean of the first sync, and of later ones, of the largest swarm over those of smaller ones.

{(chr(10) * 2).join(summary)}

The largest swarm, of {largest["workers"]:,} workers, took {largest["cpu_s"]:.0f} s of CPU time and
{largest["peak_gb"]:.1f} GB.

{places([report])[0]}
"""


def plot(report: Record, path: Path) -> None:
    """Mean seconds against workers, measured and predicted, one panel for each network."""
    found = networks(report)
    colours = {"allreduce": "tab:red", "noloco": "tab:blue"}
    with figure(path, 1 + 4.5 * len(found), 4.5, len(found), sharey=True) as panels:
        for axes, (name, methods) in zip(panels, found.items(), strict=True):
            for cases in methods:
                method, workers = cases[0]["method"], [case["workers"] for case in cases]
                lines: list[tuple[str, str, list[float], Record]] = [
                    ("o", f"{method}, measured", [case["later"]["mean"] for case in cases], {}),
                    ("-", "predicted", [case["predicted"]["later"] for case in cases], {}),
                    ("o", "first round", [case["first"]["mean"] for case in cases], {"mfc": "none"}),
                    (":", "predicted", [case["predicted"]["first"] for case in cases], {}),
                    ("--", "paper, no bytes", [case["paper"] for case in cases], {"alpha": 0.4}),
                ]
                for style, label, values, how in lines:
                    axes.plot(workers, values, style, color=colours[method], label=label, **how)
            axes.set_title(name, fontsize="medium")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("workers")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("seconds in a sync, mean")
        panels[0].legend(fontsize="x-small")


def save(out: Path, report: Record) -> None:
    """All three files."""
    write(out, report, page(report))
    plot(report, out)


def main() -> None:
    """Measure what is asked for, write everything."""
    parser = Parser(SCRIPT, __doc__, "gossip")
    parser.repeated("--method", default=tuple(METHODS), choices=METHODS, help="repeatable; all if left out")
    parser.repeated("--workers", int, (8, 64, 512, 2048), help="repeatable; 8, 64, 512 and 2048 if left out")
    nets = ((24, math.inf), (24, 100.0), (16_384, 100.0))
    parser.repeated("--net", net, nets, help="VALUES:MBIT (inf for no limit), repeatable")
    parser.add_argument("--jobs", type=int, default=1, help="swarms at the same time")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    report: Record = read(options.out, {"cases": {}})
    cases = [
        Case(method, workers, values, mbit)
        for values, mbit in options.net
        for workers in options.workers
        for method in options.method
    ]
    # A process for each, so that memory is given back and its peak is that of the case.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=1) as pool:
        runs = {pool.submit(measure, case): case for case in ([] if options.page else cases)}
        for run in concurrent.futures.as_completed(runs):
            case = runs[run]
            made = report["cases"][case.name] = {
                "method": case.method,
                "workers": case.workers,
                "values": case.values,
                "mbit": None if case.mbit == math.inf else case.mbit,
                **run.result(),
                "predicted": predict(case),
                "paper": paper_s(case.method, case.workers),
            }
            report |= stamp(SCRIPT)
            print(network(case.values, made["mbit"]), row(*cells(made)), flush=True)
            save(options.out, report)
    save(options.out, report)


def net(text: str) -> tuple[int, float]:
    """``24:inf``."""
    values, _, mbit = text.partition(":")
    return int(values), float(mbit)


if __name__ == "__main__":
    enter(main)
