"""What the engine costs: tokens per second of one worker alone against the same trainer in a bare loop.

Both run at the same time, in processes of their own with the same settings and number of steps, each bound to one core
and with one thread; which has which core alternates. The bare loop begins when the worker has ended its first stretch,
so that each has the other beside it nearly all the time, and whatever else slows the machine slows both. The worker's
time is taken from its journal, from the start of its first inner step to the end of its last outer step: rounds,
presence, outer optimizer and its libp2p daemon are in it. The start of the process and validation are not, nor is the
codec: a worker alone sends nothing. The bare loop calls the trainer for one round of steps at a time and nothing else.

    scripts/bench overhead --pairs 8 --rounds 60

writes docs/benchmarks/overhead.json and, from it, docs/benchmarks/overhead.md. Exit code 0: the ratio is what it must
be; 1: it is not; 2: the pairs differ too much to tell.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from decentral.config.resolve import resolve_task
from decentral.config.schema import WorkerConfig
from decentral.config.settings import load
from decentral.monitor.journal import JournalReader
from decentral.run.tasks import build_trainer
from scripts.benches.lib.command import BenchError, Parser, enter, set_words
from scripts.benches.lib.links import LOOPBACK
from scripts.benches.lib.processes import DEADLINE_S, Process, Worker, python
from scripts.benches.lib.report import Record, signature, stamp, write
from scripts.benches.lib.tables import table

SCRIPT = "overhead"
#: What a worker alone must at least reach of the bare loop.
REQUIRED = 0.97
_TIMEOUT_S = 900.0


def measure(rounds: int, settings: list[str], own: int, other: int, folder: Path) -> Record:
    """A worker and the bare loop beside it.

    Args:
        rounds: of both.
        settings: ``key=value``, of both.
        own: the worker's core.
        other: the bare loop's core.
        folder: new.
    """
    worker = Worker(0, folder / "worker", LOOPBACK.on_core(own))
    # Validation is the task's own cost, and how often it happens is the user's choice.
    worker.start("--new", *set_words([f"run.rounds={rounds}", "eval_every_rounds=1000000", *settings]))
    words = ("--bare", str(worker.folder / "journal.jsonl"), "--rounds", str(rounds), *set_words(settings))
    loop = Process(folder / "bare", python("-m", "scripts.benches.overhead", *words), LOOPBACK.on_core(other))
    try:
        bare = loop.result(_TIMEOUT_S)
        worker.life.wait_for(lambda: worker.life.popen.poll() is not None, "the end", _TIMEOUT_S)
    finally:
        loop.end()
        worker.life.end()
    stretches, mixed = worker.named("stretch_done"), worker.mixed()
    began = stretches[0]["time"] - stretches[0]["seconds"]
    tokens_per_s = sum(event["tokens"] for event in stretches) / (max(event["time"] for event in mixed) - began)
    return {
        "worker_tokens_per_s": round(tokens_per_s, 1),
        "bare_tokens_per_s": round(bare, 1),
        "ratio": round(tokens_per_s / bare, 4),
        "worker_core": own,
    }


def bare_loop(rounds: int, settings: list[str], journal: Path) -> float:
    """Tokens per second of the trainer in a loop, begun when the worker of a journal has ended its first stretch."""
    torch.set_num_threads(1)
    swarm = resolve_task(load(assignments=settings).swarm)
    trainer = build_trainer(swarm, WorkerConfig(), 1)
    inner_steps, tokens = swarm.method.inner_steps, 0
    reader, until = JournalReader(journal), time.monotonic() + DEADLINE_S
    while not any(event["event"] == "stretch_done" for event in reader.read()):
        if time.monotonic() > until:
            raise BenchError(f"the worker did not begin to train within {DEADLINE_S:.0f} s")
        time.sleep(0.02)
    began = time.perf_counter()
    for round_ in range(rounds):
        tokens += trainer.train_steps(round_ * inner_steps, inner_steps).tokens
    return tokens / (time.perf_counter() - began)


def judged(name: str, records: list[Record]) -> Record:
    """Median and quartiles of a ratio of this name, and whether they are what is required."""
    ratios = [record[name] for record in records]
    lower, median, upper = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    verdict = "met" if lower >= REQUIRED else "missed" if upper < REQUIRED else "open"
    found = {"median": round(median, 4), "quartiles": [round(lower, 4), round(upper, 4)], "verdict": verdict}
    print(f"{name}: {in_words(found)}")
    return found


def in_words(found: Record) -> str:
    """What was ``judged``."""
    lower, upper = found["quartiles"]
    return f"median {found['median']:.3f}, quartiles {lower:.3f} and {upper:.3f}: {found['verdict']}"


def exit_code(found: Record) -> int:
    """Of a bench."""
    return {"met": 0, "missed": 1, "open": 2}[found["verdict"]]


def summed_up(options: argparse.Namespace, records: list[Record]) -> Record:
    """The report."""
    swarm = resolve_task(load(assignments=[f"run.rounds={options.rounds}", *options.set]).swarm)
    return {
        **judged("ratio", records),
        "pairs": records,
        "config": swarm.model_dump(mode="json"),
        **stamp(SCRIPT),
    }


def page(report: Record) -> str:
    """The report for people."""
    speeds = ("worker_tokens_per_s", "bare_tokens_per_s")
    rows = [
        [pair["worker_core"], *(f"{pair[key]:,.0f}" for key in speeds), f"{pair['ratio']:.3f}"]
        for pair in report["pairs"]
    ]
    rounds, inner_steps = report["config"]["run"]["rounds"], report["config"]["method"]["inner_steps"]
    return f"""# What the engine costs

Written by `scripts/bench overhead`; the raw record is `overhead.json`. Tokens per second of one worker alone
(`decentral worker --new`), over its rounds as its journal has them, against the same trainer called in a bare loop.
Both at the same time, each in a process bound to one core, with one thread, {rounds} rounds of {inner_steps} steps;
they change cores from pair to pair. Rounds, presence, outer optimizer and the libp2p daemon are in the worker's time;
the start of the process and validation are not, nor is the codec, which a worker alone does not use. Required is a
ratio of at least {REQUIRED}.

{table("core of the worker | worker (tokens/s): | bare loop (tokens/s): | ratio:", rows)}

{in_words(report).capitalize()}.

{signature(report)}"""


def main() -> int:
    """Measure all pairs, or with ``--bare`` be the bare loop of one."""
    parser = Parser(SCRIPT, __doc__, "overhead")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60)
    parser.settings("as of decentral worker")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare_loop(options.rounds, options.set, options.bare)))
        return 0
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("this bench needs two cores, one for each side")
    records: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="decentral-overhead-") as folder:
        for number in range(options.pairs):
            own, other = cores[number % 2], cores[1 - number % 2]
            record = measure(options.rounds, options.set, own, other, Path(folder, str(number)))
            speeds = "   ".join(f"{side} {record[f'{side}_tokens_per_s']:8.0f} tokens/s" for side in ("worker", "bare"))
            print(f"{speeds}   ratio {record['ratio']:.3f}", flush=True)
            records.append(record)
    report = summed_up(options, records)
    write(options.out, report, page(report))
    return exit_code(report)


if __name__ == "__main__":
    enter(main)
