"""What slow machines cost: an all-reduce that waits for them, one that does not, and servers with and without DyLU.

    scripts/bench asynchronous            # everything, some ten minutes
    scripts/bench asynchronous --page     # page and plot anew from the raw numbers

Production workers on the simulator, toy trainers. Writes docs/benchmarks/async.json, .md and .png.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import framed_nbytes
from decentral.exchange.server.options import ServerOptions
from decentral.monitor.events import RoundMixed, StretchDone
from decentral.outer.diloco import DiLoCo
from decentral.outer.follow import Follow
from decentral.ports.trainer import StepReport
from decentral.schedule.plan import SyncPlan
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record as Simulated
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.trainer import ToyProblem, ToyTrainer
from decentral.swarm.timing import Timing
from scripts.benches.lib.command import DOCS, Parser, enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, places, read, stamp, write
from scripts.benches.lib.tables import table

SCRIPT, OUT = "asynchronous", DOCS / "async"
WORKERS, INNER_STEPS, STEP_S = 64, 10, 1.0
#: In its first round an all-reduce waits for everybody, since no pace is known: it is left out of throughput.
FROM_S, DURATION_S = 100.0, 300.0
NUM_VALUES, CODEC = 512, "int4-b128"
#: Beats are rarer than usual: they would take most of the simulator's time.
BEATS = {"beat_s": 10.0, "ttl_s": 40.0}
#: Which workers are how many times slower.
STRAGGLERS: dict[str, dict[int, float]] = {
    "a quarter, 10x": dict.fromkeys(range(WORKERS - WORKERS // 4, WORKERS), 10.0),
    "one, 10x": {WORKERS - 1: 10.0},
    "a quarter, 2x": dict.fromkeys(range(WORKERS - WORKERS // 4, WORKERS), 2.0),
    "one, 2x": {WORKERS - 1: 2.0},
}
USUAL = Timing(**BEATS)
LOSS = 0.02
PATIENT = Timing(**BEATS, patience_factor=1000.0, max_patience_s=1e5)
#: With 0.9 the toy, a quadratic with little noise, rings.
LR, MOMENTUM = 0.7, 0.5
METHODS: dict[str, dict[str, Any]] = {
    "all-reduce, waits": {"rule": DiLoCo(LR, MOMENTUM), "timing": PATIENT},
    "all-reduce": {"rule": DiLoCo(LR, MOMENTUM), "timing": USUAL},
    "async": {"rule": Follow(), "mixing": ServerOptions(LR, MOMENTUM, dylu=False), "timing": USUAL},
    "async, DyLU": {"rule": Follow(), "mixing": ServerOptions(LR, MOMENTUM, dylu=True), "timing": USUAL},
}
#: Second question: which momentum. Speeds of the paper's toy notebook, seconds a step.
SPEEDS_S = (0.58, 0.75, 1.51, 3.33)
RULES: dict[str, Callable[[float], ServerOptions]] = {
    "Nesterov with every push": lambda lr: ServerOptions(lr, 0.9, every=1, dylu=False),
    "no momentum": lambda lr: ServerOptions(lr, 0.0, every=1, dylu=False),
    "delayed Nesterov": lambda lr: ServerOptions(lr * FEW, 0.9, dylu=False),
    "delayed Nesterov, DyLU": lambda lr: ServerOptions(lr * FEW, 0.9, dylu=True),
}
FEW = 16
#: Of one push: delayed Nesterov divides its rate by the number of workers.
RATES = (0.00625, 0.0125, 0.025, 0.05, 0.1)


class Log:
    """What happened when: seconds of inner steps of all workers, and the loss of the anchors that one took in."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, int]] = []
        self.losses: list[tuple[float, float]] = []


class LoggedTrainer(ToyTrainer):
    """Tells when it trains and what it goes on from; its steps are noisy."""

    def __init__(self, log: Log, worker: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._log = log
        self._worker = worker
        self._dice = torch.Generator().manual_seed(worker)

    def train_steps(self, first_step: int, count: int) -> StepReport:
        """See ``Trainer``."""
        now = asyncio.get_running_loop().time()
        self._log.steps.append((now, now + self._step_s * count, count))
        report = super().train_steps(first_step, count)
        for value in self.parameters().values():
            value.add_(torch.randn(value.shape, generator=self._dice), alpha=0.003 * count**0.5)
        return report

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """See ``Trainer``."""
        super().load(parameters)
        if self._worker == 0:
            self._log.losses.append((asyncio.get_running_loop().time(), self.validate()))


@dataclass(frozen=True)
class LoggedProblem(ToyProblem):
    """Its trainers tell. Ten inner steps bring a worker a tenth of the way."""

    spread: float = 0.2
    inner_lr: float = 0.01
    log: Log = field(default_factory=Log)

    def _made(self, worker: int, *given: Any) -> ToyTrainer:
        return LoggedTrainer(self.log, worker, self, *given)


@dataclass(frozen=True)
class Logged(Scenario):
    """A swarm that founds itself at once and whose trainers tell."""

    plan: SyncPlan = field(default_factory=lambda: SyncPlan(INNER_STEPS))
    together: bool = True
    step_s: float = STEP_S
    conditions: Conditions = field(default_factory=lambda: Conditions(latency_s=0.05, jitter=0.3))

    @cached_property
    def problem(self) -> LoggedProblem:
        """What the swarm learns."""
        return LoggedProblem(self.seed, self.num_workers, num_values=self.num_values)


def stragglers(name: str, method: str) -> Record:
    """Throughput, and the loss over time."""
    paces = STRAGGLERS[name]
    slowest = max(paces.values(), default=1.0)
    round_s = INNER_STEPS * STEP_S * (slowest if METHODS[method]["timing"] is PATIENT else 1.0)
    scenario = Logged(
        1,
        WORKERS,
        rounds=int(DURATION_S / round_s) + 2,
        min_workers=WORKERS,
        paces=paces,
        codec=CODEC,
        num_values=NUM_VALUES,
        **METHODS[method],
    )
    began = time.process_time()
    record, log = simulate(scenario), scenario.problem.log
    first = min(start for start, _, _ in log.steps)
    since, until = first + FROM_S, first + DURATION_S
    taken = sum(count * (share(start, end, until) - share(start, end, since)) for start, end, count in log.steps)
    ideal = (until - since) / STEP_S * sum(1 / paces.get(number, 1.0) for number in range(WORKERS))
    counted, trained = tokens(record)
    return {
        "steps_per_s": taken / (until - since),
        "of_ideal": taken / ideal,
        "counted": counted / trained,
        "losses": [(round(at - first, 1), loss) for at, loss in log.losses if at <= until],
        "cpu_s": time.process_time() - began,
    }


def share(start: float, end: float, until: float) -> float:
    """Of a stretch, how much lay before a moment."""
    return max(0.0, min(1.0, (until - start) / (end - start)))


def tokens(record: Simulated) -> tuple[float, float]:
    """Counted in some anchor, and trained on."""
    counted = trained = 0
    for peer, lives in record.journals.items():
        pending = 0
        for event in lives[0].events:
            if isinstance(event, StretchDone):
                pending += event.tokens
                trained += event.tokens
            elif isinstance(event, RoundMixed) and peer in event.members:
                counted, pending = counted + pending, 0
    return counted, trained


def momentum(rule: str, lr: float) -> Record:
    """How far from the goal a small swarm of unequal machines is in the end."""
    paces = {number: SPEEDS_S[number % len(SPEEDS_S)] / SPEEDS_S[0] for number in range(FEW)}
    scenario = Logged(
        2,
        FEW,
        rounds=60,
        min_workers=FEW,
        paces=paces,
        num_values=240,
        timing=USUAL,
        rule=Follow(),
        mixing=RULES[rule](lr),
    )
    simulate(scenario)
    losses = scenario.problem.log.losses
    return {"settled_s": reached(losses, 0.01), "end": statistics.mean(loss for _, loss in losses[-10:])}


def reached(losses: list[tuple[float, float]], share_of_first: float) -> float | None:
    """When the loss was below a share of the first one for good."""
    limit = losses[0][1] * share_of_first
    above = [at for at, loss in losses if not loss <= limit]
    return next((at for at, _ in losses if at > above[-1]), None) if above else losses[0][0]


def traffic(method: str, workers: int) -> Record:
    """Bytes that the busiest worker and one in the middle move in a round, in times of the framed pseudo-gradient."""
    scenario = Logged(
        3,
        workers,
        rounds=12,
        min_workers=workers,
        conditions=Conditions(),
        codec=CODEC,
        num_values=200_000,
        **METHODS[method],
    )
    record = simulate(scenario)
    unit = scenario.rounds * framed_nbytes(make_codec(CODEC), scenario.num_values)
    traffic = [peer.transport.traffic() for peer in record.world.peers.values()]
    sent, received = sorted(t.sent_bytes / unit for t in traffic), sorted(t.received_bytes / unit for t in traffic)
    middle = workers // 2
    return {"sent": (sent[middle], sent[-1]), "received": (received[middle], received[-1])}


def measure() -> Record:
    """Everything."""
    report: Record = {"stragglers": {}, "momentum": {}, "traffic": {}}
    for workers in (4, 16):
        for method in ("all-reduce", "async, DyLU"):
            case = report["traffic"][f"{workers} | {method}"] = traffic(method, workers)
            print(workers, method, case, flush=True)
    for name in STRAGGLERS:
        for method in METHODS:
            case = report["stragglers"][f"{name} | {method}"] = stragglers(name, method)
            print(
                f"{name:15} {method:18} {case['of_ideal']:.1%} of ideal, counted {case['counted']:.1%}, "
                f"loss {case['losses'][-1][1]:.2e}, {case['cpu_s']:.0f} s",
                flush=True,
            )
    for rule in RULES:
        for lr in RATES:
            case = report["momentum"][f"{rule} | {lr}"] = momentum(rule, lr)
            print(f"{rule:32} {lr:7} to 1 % after {case['settled_s']} s, end {case['end']:.2e}", flush=True)
    return report | stamp(SCRIPT)


def first_below(losses: list[list[float]], limit: float) -> str:
    """When the loss was first below a limit."""
    return next((f"{at:.0f} s" for at, loss in losses if loss <= limit), "not")


def page(report: Record) -> str:
    """The page for people."""
    rows = []
    for name in STRAGGLERS:
        cases = [report["stragglers"][f"{name} | {method}"] for method in METHODS]
        shares = [f"{case['of_ideal']:.0%}" for case in cases]
        rows.append([name, *shares, *(first_below(case["losses"], LOSS) for case in cases)])
    momenta = []
    for rule in RULES:
        cases = [report["momentum"][f"{rule} | {lr}"] for lr in RATES]
        settled = ["not" if case["settled_s"] is None else f"{case['settled_s']:.0f} s" for case in cases]
        momenta.append([rule, *(f"{when} / {case['end']:.0e}" for when, case in zip(settled, cases, strict=True))])
    moved = []
    for key, case in report["traffic"].items():
        (sent, most_sent), (received, most_received) = case["sent"], case["received"]
        moved.append([*key.split(" | "), *(f"{times:.1f}" for times in (sent, received, most_sent, most_received))])
    columns = [f"{what}, {method}:" for what in ("throughput", "loss") for method in METHODS]
    return f"""# Servers and slow workers

Written by `scripts/bench asynchronous`; the raw record is `async.json`. Production workers on the
[simulator](../simulator.md) with toy trainers: what takes time is inner steps and messages ({INNER_STEPS} steps of
{STEP_S:g} s, messages of 0.05 s).

## Throughput and loss

{WORKERS} workers, some of them slower. *Throughput*: inner steps a second from {FROM_S:.0f} s to {DURATION_S:.0f} s, of
what all workers could do together if nobody ever waited. *Loss*: when the anchor that a fast worker holds was first
below {LOSS:g}; it is 0.5 at the start. Outer learning rate {LR}, momentum {MOMENTUM}, codec {CODEC}.

{table(" | ".join(["slow", *columns]), rows)}

*all-reduce, waits* waits for everybody, as a barrier does; *all-reduce* is this project's, which does not wait for
known stragglers and drops nothing: their work enters the round that is open when they come. *async* pushes to a server,
with and without fewer steps for slow workers (DyLU).

![loss over time](async.png)

## Which momentum

{FEW} workers of four speeds ({", ".join(f"{speed:g}" for speed in SPEEDS_S)} s a step in the paper's notebook), every
rate of one push that is named; for delayed Nesterov the outer learning rate is {FEW} times that. When the loss was
below 1 % of the first one for good, and the mean of the last ten:

{table(" | ".join(["rule", *(f"{lr:g}:" for lr in RATES)]), momenta)}

**The paper's finding does not show here**: on this quadratic Nesterov with every push, at the best of its rates, is the
fastest. A momentum of 0.9 for each push of sixteen workers is forgotten within a round, so it is rather a ten times
larger rate than a momentum, and there is little noise to be amplified. A momentum of 0.9 by the round, as delayed
Nesterov has it, overshoots on a quadratic, less so with DyLU. What momentum does to a language model needs real
training; that is not measured yet.

## The server's line

Bytes in a round, in units of one framed pseudo-gradient, of the worker in the middle and of the busiest one:

{table("workers: | method | sent: | received: | most sent: | most received:", moved)}

{places([report])[0]}
"""


def plot(report: Record, path: Path) -> None:
    """Loss against time."""
    with figure(path, 9, 4, 2, sharey=True) as panels:
        for axes, name in zip(panels, ("a quarter, 10x", "one, 10x"), strict=True):
            for method in METHODS:
                times, losses = zip(*report["stragglers"][f"{name} | {method}"]["losses"], strict=True)
                axes.plot(times, losses, label=method, marker=".", markersize=3)
            axes.set_yscale("log")
            axes.set_title(f"{WORKERS} workers, {name} slower", fontsize="medium")
            axes.set_xlabel("virtual seconds")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("loss of the anchor")
        panels[0].legend(fontsize="small")


def main() -> None:
    """Measure, write."""
    parser = Parser(SCRIPT, __doc__)
    parser.add_argument("--page", action="store_true", help="from the raw numbers that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = read(OUT, {}) if arguments.page else measure()
    write(OUT, report, page(report))
    plot(report, OUT)


if __name__ == "__main__":
    enter(main)
