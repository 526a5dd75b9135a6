"""What a checkpoint costs the training loop: for how long it stands still, and how much there is to write beside it.

A worker alone with AdamW, whose loop sleeps in place of computing: what it waits for is seen, what it computes is not.
Checkpoints come as ``worker.checkpoint_every`` asks, and never so often that writing takes more than a tenth of it.

    scripts/bench checkpoint --values 100000000 --minutes 8

writes docs/benchmarks/checkpoint.json and, from it, docs/benchmarks/checkpoint.md.
"""

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

import decentral
from decentral.monitor.journal import JournalReader
from decentral.run.folder import JOURNAL
from decentral.state.checkpoints.checkpoint import read
from decentral.state.checkpoints.manifest import CHECKPOINTS, LATEST, pointed_at
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, load_average, signature, stamp, write
from scripts.benches.lib.stats import spread
from scripts.benches.lib.tables import table

SCRIPT = "checkpoint"
#: Of a step's time, amortised, the least that is promised.
LIMIT = 0.02
_LAYERS = 12
_STEP_S = 0.05


def checkpoints(values: int, minutes: float, folder: Path) -> Record:
    """All checkpoints of a run that lasts so long.

    Args:
        values: of the model, in twelve parameters.
        minutes: of the run.
        folder: new; holds them.
    """
    layers = [torch.nn.Parameter(torch.randn(values // _LAYERS)) for _ in range(_LAYERS)]
    optimizer = torch.optim.AdamW(layers, lr=0.0)
    for layer in layers:
        layer.grad = torch.zeros_like(layer)
    optimizer.step()
    optimizer.zero_grad()
    settings = {"worker.host": "127.0.0.1", "method.inner_steps": 1000, "worker.keep": 1}
    named = {f"layers.{index}": layer for index, layer in enumerate(layers)}
    began, copies = time.monotonic(), list[float]()
    with decentral.found(named, rounds=1_000_000, settings=settings, optimizer=optimizer, out=folder) as swarm:
        while time.monotonic() < began + 60 * minutes:
            time.sleep(_STEP_S)
            swarm.step(tokens=1)
            if not copies and time.monotonic() > began + 10:
                copies = [_copy_s(layers) for _ in range(3)]
        events = JournalReader(folder / JOURNAL).read()
    saved = [event for event in events if event["event"] == "saved"]
    times = [began_at(events), *(event["time"] for event in saved)]
    reading = time.perf_counter()
    read(folder / CHECKPOINTS / pointed_at(folder, LATEST))
    return {
        "values": values,
        "bytes": saved[-1]["nbytes"],
        "held_s": [round(event["held_s"], 4) for event in saved],
        "interval_s": [round(later - earlier, 2) for earlier, later in pairwise(times)],
        "copy_s": [round(each, 4) for each in copies],
        "read_s": round(time.perf_counter() - reading, 2),
        "load": load_average(),
    }


def began_at(events: list[Record]) -> float:
    """When the worker came up, seconds since 1970."""
    return float(next(event["time"] for event in events if event["event"] == "started"))


def _copy_s(layers: list[torch.nn.Parameter]) -> float:
    """Seconds of a plain copy of what is copied at a checkpoint: local parameters and two moments of each."""
    began = time.perf_counter()
    copies = [layer.detach().clone() for layer in layers for _ in range(3)]
    seconds = time.perf_counter() - began
    del copies
    return seconds


def shares(report: Record) -> list[float]:
    """Of the time since the last checkpoint, what the loop stood still for each."""
    return [held / interval for held, interval in zip(report["held_s"], report["interval_s"], strict=True)]


def page(report: Record) -> str:
    """The report for people."""
    rows = [
        [
            f"{each['values']:,}",
            f"{each['bytes'] / 1e6:,.0f}",
            len(each["held_s"]),
            spread([1000 * held for held in each["held_s"]], ".0f", statistics.median),
            spread([1000 * copy for copy in each["copy_s"]], ".0f", statistics.median),
            spread(each["interval_s"], ".0f", statistics.median),
            spread([100 * share for share in shares(each)], ".2f", statistics.median),
            f"{each['read_s']:.1f}",
        ]
        for each in report["runs"]
    ]
    columns = "values: | MB: | checkpoints: | held up (ms): | copy (ms): | apart (s): | share (%): | read (s):"
    return f"""# What a checkpoint costs

Written by `scripts/bench checkpoint`; the raw record is `checkpoint.json`. Medians, in brackets least and greatest.

A worker alone, method `local-sgd`, AdamW, `worker.checkpoint_every` at its default (1 min): the loop stands still while
local parameters and the optimizer's moments are copied; anchors are references. All else is done on other threads, and
the next checkpoint waits until ten times as long has passed as the last one took to write. **Share** is the standstill
over the time since the checkpoint before: what it costs a step on average. Required is less than {100 * LIMIT:.0f} %.
A plain copy of as many bytes between two steps stands beside it. **Read** is the time to read it back, every byte
compared.

{table(columns, rows)}

{signature(report)}"""


def main() -> None:
    """Measure what is asked for."""
    parser = Parser(SCRIPT, __doc__, "checkpoint")
    parser.repeated("--values", int, (1_000_000, 100_000_000))
    parser.add_argument("--minutes", type=float, default=6.0, help="of each run")
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    report: Record = {"runs": [], **stamp(SCRIPT)}
    for values in options.values:
        with tempfile.TemporaryDirectory(prefix="decentral-checkpoint-") as folder:
            report["runs"].append(checkpoints(values, options.minutes, Path(folder)))
            print(report["runs"][-1], flush=True)
    write(options.out, report, page(report))


if __name__ == "__main__":
    enter(main)
