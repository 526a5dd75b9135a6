"""What waiting for the slowest costs: a barrier of all, random pairs, and pairs with a deadline.

    scripts/bench stragglers                # the arithmetic, seconds
    scripts/bench stragglers --workers 16   # and production workers on the simulator, minutes

Inner steps take log-normal times as in the NoLoCo paper; in the arithmetic messages take none. Writes
docs/benchmarks/stragglers.json, .md and .png; what is not measured again stays.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decentral.codecs.codec import make_codec
from decentral.exchange.gossip.options import GossipOptions
from decentral.monitor.events import RoundMixed, StretchDone
from decentral.outer.noloco import NoLoCo
from decentral.schedule.plan import SyncPlan
from decentral.sim.network import Conditions
from decentral.sim.scenario import Scenario, simulate
from decentral.swarm.timing import Timing
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, read, stamp, write
from scripts.benches.lib.tables import table

SCRIPT = "stragglers"
#: Of an inner step, as in the paper.
MU, SIGMA = 1.0, math.sqrt(0.5)
INNER_STEPS = 100
WORKERS = (16, 64, 256, 1024)
OUTER_STEPS = (250, 500)
#: The deadline of gossip (docs/algorithms/gossip.md): so many times the lateness that nine of the last partners did
#: not exceed, at least so much of the own inner steps, within a budget: a share of them in the long run, and at once.
FACTOR, QUANTILE, REMEMBERED, AT_LEAST = 1.5, 0.9, 32, 0.1
SHARE, AT_MOST = 0.03, 0.25

Times = NDArray[np.float64]


@dataclass
class Swarm:
    """Workers and when each has ended its last outer step, seconds."""

    rng: np.random.Generator
    ends: Times
    lateness: Times
    """Of each worker's last partners, in a ring [worker, REMEMBERED]; NaN while there were fewer."""
    budget: Times
    """What each worker may wait, seconds."""
    alone: int = 0
    skipped: int = 0
    rounds: int = 0

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A random perfect matching."""
        order = self.rng.permutation(len(self.ends))
        return order[::2], order[1::2]


def barrier(swarm: Swarm, ready: Times, stretch: Times) -> Times:
    """All wait for the last."""
    return np.full_like(ready, ready.max())


def pairs(swarm: Swarm, ready: Times, stretch: Times) -> Times:
    """Each pair waits for the later of the two."""
    one, other = swarm.pairs()
    ends = ready.copy()
    ends[one] = ends[other] = np.maximum(ready[one], ready[other])
    return ends


def apart(swarm: Swarm, ready: Times, stretch: Times) -> Times:
    """As ``pairs``, but all begin every outer step at the same moment: nobody carries lateness on."""
    return pairs(swarm, stretch, stretch)


def with_deadline(swarm: Swarm, ready: Times, stretch: Times) -> Times:
    """As ``pairs``, but a partner that is later than one's own deadline is not waited for: both step alone at once.

    Who has fallen behind the median by the time of an outer step goes on with the round that the others are in.
    """
    lag = ready - np.median(ready)
    behind = lag > np.median(stretch)
    swarm.skipped += int(behind.sum())
    ready = np.where(behind, ready - np.median(stretch), ready)
    one, other = swarm.pairs()
    late = np.empty_like(ready)
    late[one], late[other] = ready[other] - ready[one], ready[one] - ready[other]
    usual = np.sort(np.where(np.isnan(swarm.lateness), np.inf, swarm.lateness), axis=1)
    known = np.isfinite(usual).sum(axis=1)
    place = np.minimum(np.maximum(known - 1, 0), (QUANTILE * known).astype(int))
    swarm.budget = np.minimum(AT_MOST * stretch, swarm.budget + SHARE * stretch)
    limit = np.maximum(AT_LEAST * stretch, FACTOR * usual[np.arange(len(ready)), place])
    deadline = np.where(known > 0, np.minimum(swarm.budget, limit), swarm.budget)
    waits = (late > 0) & (late <= deadline)
    too_late = late > deadline
    swarm.lateness[:, swarm.rounds % REMEMBERED] = np.maximum(late, 0.0)
    partner_gone = np.zeros_like(too_late)
    partner_gone[one], partner_gone[other] = too_late[other], too_late[one]
    swarm.alone += int((too_late | partner_gone).sum())
    waited = np.where(waits, late, 0.0)
    swarm.budget -= waited
    return ready + waited


RULES: dict[str, Callable[[Swarm, Times, Times], Times]] = {
    "barrier": barrier,
    "pairs": pairs,
    "pairs, in step": apart,
    "pairs, deadline": with_deadline,
}


def play(rule: str, workers: int, outer_steps: int, seed: int) -> Record:
    """A whole run: where the time of its workers went."""
    rng = np.random.default_rng(seed)
    swarm = Swarm(rng, np.zeros(workers), np.full((workers, REMEMBERED), np.nan), np.full(workers, np.inf))
    computed = idle = 0.0
    for _ in range(outer_steps):
        stretch = rng.lognormal(MU, SIGMA, (workers, INNER_STEPS)).sum(axis=1)
        ready = swarm.ends + stretch
        ends = RULES[rule](swarm, ready, stretch)
        computed += stretch.sum()
        idle += np.maximum(ends - (stretch if rule == "pairs, in step" else ready), 0.0).sum()
        swarm.ends = ends
        swarm.rounds += 1
    return {
        "idle": idle / (computed + idle),
        "overhead": idle / computed,
        "alone": swarm.alone / (workers * outer_steps),
        "skipped": swarm.skipped / (workers * outer_steps),
    }


def single_steps(rng: np.random.Generator) -> Record:
    """Means of one inner step and of the later of two, drawn and by formula."""
    steps = rng.lognormal(MU, SIGMA, (2_000_000, 2))
    mean = math.exp(MU + SIGMA**2 / 2)
    return {
        "mean": mean,
        "mean_drawn": float(steps.mean()),
        "later_of_two": mean * (1 + math.erf(SIGMA / 2)),
        "later_of_two_drawn": float(steps.max(axis=1).mean()),
        "stretch_spread": math.sqrt((math.exp(SIGMA**2) - 1) / INNER_STEPS),
    }


def measure(seeds: int) -> Record:
    """All cases, mean over the seeds."""
    began = time.process_time()
    cases = []
    for outer_steps, workers, rule in itertools.product(OUTER_STEPS, WORKERS, RULES):
        runs = [play(rule, workers, outer_steps, seed) for seed in range(seeds)]
        means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        cases.append({"rule": rule, "workers": workers, "outer_steps": outer_steps, **means})
    return {
        "single": single_steps(np.random.default_rng(0)),
        "cases": cases,
        "seeds": seeds,
        "cpu_s": round(time.process_time() - began, 1),
        **stamp(SCRIPT),
    }


def produce(method: str, workers: int, outer_steps: int) -> Record:
    """The same of production workers on the simulator; their messages take 0.1 s in a stretch of 100 s."""
    codec, num_chunks = make_codec("fp32"), 10
    gossip: dict[str, Any] = {"rule": NoLoCo(), "mixing": GossipOptions(codec, codec)}
    # A few chunks whose sum varies as that of all inner steps does.
    chunk_sigma = math.sqrt(math.log1p(num_chunks * (math.exp(SIGMA**2) - 1) / INNER_STEPS))
    scenario = Scenario(
        1,
        num_workers=workers,
        rounds=outer_steps,
        min_workers=workers,
        together=True,
        plan=SyncPlan(inner_steps=num_chunks),
        step_s=10.0,
        step_sigma=chunk_sigma,
        timing=Timing(beat_s=2000.0, ttl_s=8000.0),
        conditions=Conditions(latency_s=0.1, jitter=SIGMA),
        **(gossip if method == "noloco" else {}),
    )
    lives = [life for lives in simulate(scenario).journals.values() for life in lives]
    stretches = [event.seconds for life in lives for event in life.events if isinstance(event, StretchDone)]
    mixed = [event for life in lives for event in life.events if isinstance(event, RoundMixed)]
    return {
        "method": method,
        "workers": workers,
        "outer_steps": outer_steps,
        "overhead": sum(event.waiting_s + event.transfer_s for event in mixed) / sum(stretches),
        "alone": sum(len(event.members) == 1 for event in mixed) / len(mixed),
        "skipped": 1 - len(mixed) / (workers * outer_steps),
    }


def found(report: Record) -> dict[tuple[str, int, int], Record]:
    """Cases by rule, workers and outer steps."""
    return {(case["rule"], case["workers"], case["outer_steps"]): case for case in report["cases"]}


def page(report: Record) -> str:
    """The page for people."""
    single, rows, cases = report["single"], [], found(report)
    for outer_steps, workers in itertools.product(OUTER_STEPS, WORKERS):
        ours = cases["pairs, deadline", workers, outer_steps]
        waiting = [f"{cases[rule, workers, outer_steps]['overhead']:.1%}" for rule in RULES]
        rows.append([outer_steps, f"{workers:,}", *waiting, f"{ours['alone']:.1%}", f"{ours['skipped']:.2%}"])
    all_of, two, in_step, ours = (cases[rule, WORKERS[-1], OUTER_STEPS[-1]] for rule in RULES)
    columns = " | ".join(f"{name}:" for name in ("outer steps", "workers", *RULES, "alone", "skipped"))
    produced = [
        [case["method"], case["workers"], case["outer_steps"], *(f"{case[key]:{form}}" for key, form in _SHARES)]
        for case in report["production"].values()
    ]
    return f"""# What waiting for the slowest costs

Written by `scripts/bench stragglers`; the raw record is `stragglers.json`. Arithmetic first, no protocol:
{INNER_STEPS} inner steps of log-normal times (mu = {MU:g}, sigma^2 = {SIGMA**2:.1f}, as in the NoLoCo paper) between
two outer steps, messages that take no time, all workers equally fast on average; mean of {report["seeds"]} seeds.

Waiting, in proportion to computing:

{table(columns, rows)}

* **barrier**: all wait for the last, as in an all-reduce.
* **pairs**: drawn anew for every outer step; both wait for the later one, and go on from there. Who waited for a late
  partner is late for the next.
* **pairs, in step**: the same if all began every outer step at the same moment, as in the paper's formula for a single
  step; no real swarm does.
* **pairs, deadline**: what gossip does ([deadlines](../algorithms/gossip.md)), without looking for another partner. One
  later than {FACTOR:g} times what nine of the last {REMEMBERED} partners were late at most (and than a tenth of one's
  own inner steps), or than the budget of {SHARE:.0%} in the long run allows, is not waited for: both take the outer
  step **alone**. Who is a whole outer step behind the median goes on with the others' round (**skipped**).

![overhead](stragglers.png)

## Production workers

On the [simulator](../simulator.md), with all their rules, the search for another partner included; messages take 0.1 s
on average, a stretch of inner steps 100 s:

{table("method | workers: | outer steps: | waiting: | alone: | skipped:", produced)}

## Beside the paper

| | paper | here |
|---|---:|---:|
| mean of an inner step, exp(mu + sigma^2 / 2) | 3.49 s | {single["mean"]:.2f} s ({single["mean_drawn"]:.2f} drawn) |
| later of two, (1 + erf(sigma / 2)) times that | 4.83 s | {single["later_of_two"]:.2f} s \
({single["later_of_two_drawn"]:.2f} drawn) |
| barrier of 1,024 workers, {INNER_STEPS} inner steps | about 20 % | {all_of["overhead"]:.1%} of computing, \
{all_of["idle"]:.1%} of all time |

* **Agrees**: the formula for two. The cost of a barrier does if the paper means a share of all time; it does not
  depend on the number of outer steps.
* **Does not carry over**: the later of two takes {single["later_of_two"] / single["mean"] - 1:.0%} longer than one for
  a *single* inner step. Between two outer steps there are {INNER_STEPS}, whose sum varies by
  {single["stretch_spread"]:.1%}: a pair in step waits {in_step["overhead"]:.1%}.
* **Not free either**: lateness is handed on from pair to pair, so that random pairs that always wait lose
  {two["overhead"]:.1%} with {WORKERS[-1]:,} workers, {two["overhead"] / in_step["overhead"]:.1f} times what the formula
  says, against {all_of["overhead"]:.1%} at a barrier. It grows with the number of workers, but slowly.
* **A deadline by itself is no cure**: it brings waiting down to {ours["overhead"]:.1%}, but {ours["alone"]:.0%} of the
  steps are taken alone. Who steps alone waits for nobody, so it runs ahead of the pairs, up to ten rounds in the end,
  and meets nobody any more: a deadline needs a search for partners that are there at that moment.
* **Not measured here**: the paper's "up to 4 % faster convergence" is about loss. Its ten times faster sync is about
  messages: see [gossip](gossip.md).

{report["cpu_s"]:.0f} s of CPU time; {report["versions"]}; {report["date"]}
"""


_SHARES = (("overhead", ".1%"), ("alone", ".1%"), ("skipped", ".2%"))


def plot(report: Record, path: Path) -> None:
    """Overhead against workers."""
    cases = found(report)
    with figure(path, 6.5, 4) as [axes]:
        for number, rule in enumerate(RULES):
            for outer_steps, style in zip(OUTER_STEPS, (":", "-"), strict=True):
                overhead = [100 * cases[rule, workers, outer_steps]["overhead"] for workers in WORKERS]
                label = f"{rule}, {outer_steps} outer steps"
                axes.plot(WORKERS, overhead, style, marker="o", color=f"C{number}", label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("workers")
        axes.set_ylabel("waiting, % of computing")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")


def main() -> None:
    """Compute, write."""
    parser = Parser(SCRIPT, __doc__, "stragglers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.repeated("--workers", int, help="production workers; repeatable")
    parser.add_argument("--outer-steps", type=int, default=150, help="of production workers")
    options = parser.parse_args()
    known = read(options.out, {"production": {}})["production"]
    report = measure(options.seeds) | {"production": known}
    for workers in options.workers:
        for method in ("allreduce", "noloco"):
            known[f"{method} {workers}"] = produce(method, workers, options.outer_steps)
    write(options.out, report, page(report))
    plot(report, options.out)
    print(page(report))


if __name__ == "__main__":
    enter(main)
