"""Eight real workers gossip while at random moments one is killed and restarted and another is stopped for a while.

Nobody else may notice: the tokens a second of every worker that is not struck, from its own journal and by wall time,
stay within a tolerance of what they were before the first fault, and nobody waits beyond the deadline that it had set
itself. Who was killed or stopped must come back; at the end nothing may be left running. Any violation ends the run
with exit code 1. Moments and victims follow from the seed, which is printed. Inner steps sleep, so that eight workers
fit on few cores and a pace is not a matter of who gets the processor.

    scripts/bench chaos-gossip --iterations 6 --stop-s 15

writes docs/benchmarks/chaos-gossip.json and, from it, docs/benchmarks/chaos-gossip.md.
"""

import random
import statistics
import time
from collections.abc import Collection
from pathlib import Path

from scripts.benches.lib.chaos import chaos_options, run_chaos, verdict, violations_in
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.links import LOOPBACK
from scripts.benches.lib.processes import Event, Swarm, Worker
from scripts.benches.lib.report import Record, signature
from scripts.benches.lib.stats import between, spread
from scripts.benches.lib.tables import head, row, table

SCRIPT = "chaos-gossip"
STEP_S, INNER_STEPS = 0.2, 50
#: Faults of one iteration come this long after each other at most, those of the next so long after both are back.
APART_S, QUIET_S = 6.0, 20.0
#: By how much a timer on a busy machine may be late.
LATE_S = 1.0

SETTINGS = {
    "task.factory": "tests.process.paced:build",
    "task.settings.numel": 20_000,
    "task.settings.step_s": STEP_S,
    "task.settings.hurry": "/nonexistent/hurry",
    "method.name": "noloco",
    "method.inner_steps": INNER_STEPS,
    "run.rounds": 100_000,
}


def pace(worker: Worker, begin: float, end: float) -> float:
    """Tokens a second of wall time, syncs included, from the first to the last stretch that ended in a window.

    Raises:
        BenchError: fewer than two did.
    """
    ends = [event for event in worker.named("stretch_done") if begin <= event["time"] <= end]
    if len(ends) < 2:
        raise BenchError(f"worker {worker.index} did not train in a window of {end - begin:.0f} s")
    tokens: int = sum(event["tokens"] for event in ends[1:])
    return tokens / float(ends[-1]["time"] - ends[0]["time"])


def longest_wait(worker: Worker, begin: float, end: float) -> float:
    """Of a worker's syncs in a window, seconds.

    Raises:
        BenchError: it was beyond the worker's own deadline.
    """
    waits = [event for event in worker.mixed() if begin <= event["time"] <= end]
    for event in waits:
        if event["waiting_s"] > event["deadline_s"] + LATE_S:
            raise BenchError(f"worker {worker.index} waited beyond its deadline: {event}")
    return max((event["waiting_s"] for event in waits), default=0.0)


def have_mixed(workers: Collection[Worker], since: float) -> bool:
    """Whether all of them have mixed with somebody since a moment."""
    return all(any(e["time"] > since and len(e["members"]) > 1 for e in worker.mixed()[-5:]) for worker in workers)


def strike(swarm: Swarm, chance: random.Random, stop_s: float, before: list[float]) -> Event:
    """Kill and restart one worker, stop and wake another one, and see what the others make of it.

    Args:
        swarm: all of it there.
        chance: decides everything.
        stop_s: how long a stopped worker stays so.
        before: tokens a second of every worker when there were no faults.
    """
    victim, sleeper, *others = chance.sample(swarm.workers, len(swarm.workers))
    with_daemon = chance.random() < 0.5
    begin = time.time()
    swarm.kill(victim)
    time.sleep(chance.uniform(0, APART_S))
    waking = sleeper.stop(stop_s, with_daemon=with_daemon)
    time.sleep(chance.uniform(0, APART_S))
    victim.start("--join", chance.choice(others).address())
    victim.address()
    waking.join()
    awake = time.time()
    back_s = swarm.until(lambda: have_mixed((victim, sleeper), awake), "both back")
    time.sleep(chance.uniform(0, QUIET_S))
    end = time.time()
    return {
        "killed": victim.index,
        "stopped": sleeper.index,
        "daemon_stopped": with_daemon,
        "window_s": round(end - begin, 1),
        "back_s": back_s,
        "paces": {worker.index: round(pace(worker, begin, end) / before[worker.index], 4) for worker in others},
        "longest_wait_s": round(max(longest_wait(worker, begin, end) for worker in others), 2),
    }


def judge(swarm: Swarm, report: Record) -> None:
    """Each worker's pace over all windows in which it was not struck, against its own before the faults."""
    kept, records = {}, report["iterations"]
    for worker in swarm.workers:
        windows = [(r["window_s"], r["paces"][worker.index]) for r in records if worker.index in r["paces"]]
        if windows:
            kept[worker.index] = sum(s * pace for s, pace in windows) / sum(s for s, _ in windows)
            if kept[worker.index] < 1 - report["tolerance"]:
                report["violations"].append(f"worker {worker.index} kept {kept[worker.index]:.1%} of its pace")
    mixed = [event for worker in swarm.workers for event in worker.mixed()]
    report |= {
        "kept": kept,
        "syncs": len(mixed),
        "alone": sum(len(event["members"]) == 1 for event in mixed),
        "one_sided": sum(len(worker.named("one_sided")) for worker in swarm.workers),
    }


_COLUMNS = (
    "iteration: | killed: | stopped | window (s): | pace of the others, lowest to highest | longest wait (s): "
    "| both back after (s):"
)


def cells(record: Event) -> list[object]:
    """A row of the table."""
    stopped = f"{record['stopped']}{' and its daemon' if record['daemon_stopped'] else ''}"
    paces = spread(list(record["paces"].values()), ".1%")
    times = (record["longest_wait_s"], record["back_s"])
    return [record["iteration"], record["killed"], stopped, record["window_s"], paces, *times]


def page(report: Record) -> str:
    """The raw record for people."""
    kept = list(report.get("kept", {}).values()) or [float("nan")]
    held = f"all kept their pace within {report['tolerance']:.0%}, no wait beyond a deadline, no process left."
    return f"""# Killed and stopped workers in a gossip

Written by `scripts/bench chaos-gossip`; the raw record is `chaos-gossip.json`. {report["workers"]} worker processes
gossip on loopback in rounds of {INNER_STEPS} steps that sleep {STEP_S:g} s each. In every iteration, at random moments,
one of them gets `kill -9` and is restarted as a joiner, and another gets SIGSTOP for {report["stop_s"]:g} s (the worker
alone, or its libp2p daemon with it). A window lasts from one kill to the next, at the earliest until both have mixed
with somebody again. The pace of a worker is its tokens a second of wall time from stretch to stretch, syncs included,
over its own in the {report["calm_s"]:g} s before the first fault.

{table(_COLUMNS, map(cells, report["iterations"]))}

* Pace over all windows of workers not struck: {statistics.mean(kept):.1%} of what it was before,
  {between(kept, ".1%")} by worker.
* {report.get("syncs", "?")} syncs, {report.get("alone", "?")} of them alone; {report.get("one_sided", "?")} swaps of
  which one side does not know whether the other has them too.
{verdict(report, held)}

{signature(report)}"""


def main() -> int:
    """Run, write, and say by the exit code whether all held."""
    parser = Parser(SCRIPT, __doc__, "chaos-gossip")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--calm-s", type=float, default=60.0, help="time in which the pace without faults is taken")
    parser.add_argument("--tolerance", type=float, default=0.05, help="by how much those not struck may be slower")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--stop-s", type=float, default=15.0, help="how long a stopped worker stays so")
    options = chaos_options(parser)
    print(head(_COLUMNS), flush=True)
    stated = {key: getattr(options, key) for key in ("seed", "workers", "calm_s", "stop_s", "tolerance")}
    report: Record = {**stated, "settings": SETTINGS, "iterations": []}

    def play(folder: Path) -> None:
        with violations_in(report), Swarm(folder, [LOOPBACK] * options.workers) as swarm:
            swarm.begin(SETTINGS)
            started = time.time()
            swarm.until(lambda: have_mixed(swarm.workers, started), "everybody mixed")
            begin = time.time()
            time.sleep(options.calm_s)
            before = report["before"] = [pace(worker, begin, time.time()) for worker in swarm.workers]
            chance = random.Random(options.seed)
            for number in range(options.iterations):
                record = {"iteration": number, **strike(swarm, chance, options.stop_s, before)}
                report["iterations"].append(record)
                print(row(*cells(record)), flush=True)
            judge(swarm, report)
            swarm.end()

    return run_chaos(SCRIPT, options, report, play, page)


if __name__ == "__main__":
    enter(main)
