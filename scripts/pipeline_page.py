"""The record of the benches on pipelines and the page made of it."""

import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from scripts.seats import write

Record = dict[str, Any]

_INTRO = """# How busy a pipeline is

Written by `scripts/bench-pipeline` and `scripts/bench-activations`; the raw record is `pipeline.json`. A head and four
stages, each on a machine of its own behind a link of 100 Mbit/s up and down, 25 ms one way between any two; and the
same without limits. What a batch consists of, and the formula behind "formula": [pipeline](../algorithms/pipeline.md).

Blocks **sleep** for 50 ms forwards and 100 ms backwards instead of computing (`scripts/sleeping.py`), as five machines'
work does not fit on the cores of one. All else is real: activations of 4 x 256 x 256 values, packing, packets, commits,
steps. *Utilisation* is the time of a stage's passes over that of a batch, M x 150 ms / batch; *of unlimited* is the
speed beside the same pipeline without limits.
"""


def stamp() -> Record:
    """Where, when and by which command something was measured."""
    return {
        "command": shlex.join([f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "versions": f"Python {platform.python_version()}",
        "date": datetime.date.today().isoformat(),
    }


def keep(out: Path, part: str, value: Record) -> None:
    """Put a part of the record in the place of the old one, and write record and page anew."""
    path = out.with_suffix(".json")
    record: Record = json.loads(path.read_text()) if path.exists() else {}
    write(out, record := {**record, part: value}, page(record))


def page(record: Record) -> str:
    """For people."""
    parts = [_INTRO]
    if "virtual" in record:
        parts.append(_virtual(record["virtual"]))
    runs = {name.removeprefix("run "): run for name, run in record.items() if name.startswith("run ")}
    if runs:
        parts.append(_real(runs))
    if "history" in record:
        parts.append(_history(record["history"]))
    if "activations" in record:
        parts.append(_activations(record["activations"]))
    stamped = [part for part in record.values() if "command" in part]
    stamps = {f"    {part['command']}": part for part in stamped}
    last = stamped[-1]
    parts.append("\n".join([f"{last['machine']}; {last['versions']}; {last['date']}\n", *stamps]) + "\n")
    return "\n".join(parts)


def _virtual(virtual: Record) -> str:
    rows = []
    for entry in virtual["cases"]:
        linked, unlimited = entry["emulated"], entry["unlimited"]
        rows.append(
            f"| {_described(entry['case'])} | {linked['batch_s']:.2f} | {linked['predicted_s']:.2f} "
            f"| {linked['utilisation']:.1%} | {unlimited['batch_s']:.2f} | {unlimited['utilisation']:.1%} "
            f"| {unlimited['batch_s'] / linked['batch_s']:.1%} |"
        )
    return f"""## In virtual time

Production processes on the [simulator](../simulator.md): what the protocol makes of links, without a busy machine's
noise, and without the time of packing and of libp2p. Links are first come, first served.

{_HEADER}
{_rows(rows)}
"""


_HEADER = (
    "| codec | values | healing | M | window | batch (s) | formula (s) | utilisation | unlimited: batch (s) "
    "| unlimited: utilisation | of unlimited |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def _described(case: Record) -> str:
    values = f"{case['sequences']} x {case['context']} x {case['width']}"
    return f"{case['codec']} | {values} | {case['healing']} | {case['microbatches']} | {case['in_flight'] or 'all'}"


def _rows(rows: list[str]) -> str:
    return "\n".join(rows)


def _real(runs: Record) -> str:
    rows = []
    for name, run in runs.items():
        batch = {kind: _median(run[kind]) for kind in ("emulated", "unlimited")}
        busy_s = run["case"]["microbatches"] * (run["case"]["forward_s"] + run["case"]["backward_s"])
        share = "" if run["gpt"] else f"{busy_s / batch['emulated']:.1%}"
        without = batch["unlimited"]
        rest = ["", "", ""]
        if without:
            rest = [f"{without:.2f}", "" if run["gpt"] else f"{busy_s / without:.1%}"]
            rest.append(f"{without / batch['emulated']:.1%}")
        load = max(load for kind in ("emulated", "unlimited") for one in run[kind] for load in one["load"])
        what = "language model | | | 8 | all" if run["gpt"] else _described(run["case"])
        rows.append(f"| {name} | {what} | {batch['emulated']:.2f} | {share} | {' | '.join(rest)} | {load:.0f} |")
    return f"""## Real processes

Five `decentral worker`s in network namespaces behind [emulated links](../link-emulator.md), and behind links without
limits; the median of the batches after the first two. *Load* is the machine's highest load average during the runs, on
two cores: figures at a load far above 2 are of a machine that other work kept busy, and too slow.

| | codec | values | healing | M | window | batch (s) | utilisation | unlimited: batch (s) | unlimited: utilisation \
| of unlimited | load |
|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
{_rows(rows)}
"""


def _history(part: Record) -> str:
    rows = [
        f"| {one['what']} | {one['virtual_8_s']} | {one['virtual_16_s']} | {one['virtual_32_s']} | {one['real_8_s']} "
        f"| {one['dropped_packets']} | {one['load']} |"
        for one in part["rows"]
    ]
    calls = "\n".join(f"| {call['what']} | {call['best_ms']} | {call['median_ms']} |" for call in part["calls"])
    return f"""## What turns and pieces changed

Seconds a batch with bf16, a window of the whole batch, on links; of earlier states of the code. In virtual time the
first two rows are at a sixteenth of size and rate. Of real processes there is one run of each, at loads that were far
from equal, and drops are those of whole runs, which went on for different times: neither column can rank the rows. That
pieces help a pipeline is so far shown of single calls alone, and they come in bursts that full queues drop from.

| | M 8, virtual | M 16, virtual | M 32, virtual | M 8, real | packets dropped | load |
|---|---:|---:|---:|---:|---:|---:|
{_rows(rows)}

One peer calls another over such a link, every 0.15 s; milliseconds until the answer, of 12:

| call | best | median |
|---|---:|---:|
{calls}
"""


def _median(runs: list[Record]) -> float:
    return statistics.median(run["batch_s"] for run in runs) if runs else 0.0


def _activations(part: Record) -> str:
    asked = part["asked"]
    losses: dict[str, dict[int, float]] = {}
    for run in part["runs"]:
        losses.setdefault(run["codec"], {})[run["seed"]] = run["val_loss"]
    exact, rows = losses["fp32"], []
    for codec, by_seed in losses.items():
        gaps = [by_seed[seed] / exact[seed] - 1 for seed in by_seed if seed in exact]
        each = ", ".join(f"{loss:.4f}" for loss in by_seed.values())
        rows.append(f"| {codec} | {statistics.mean(by_seed.values()):.4f} | {statistics.mean(gaps):+.2%} | {each} |")
    return f"""## What codecs of activations cost in loss

Four stages and a head in one process, all that passes between them packed and unpacked, activations and gradients
alike: the default language model, {asked["steps"]} steps of {asked["batch_sequences"]} x 128 bytes in
{asked["microbatches"]} micro-batches; loss on held-out text, in nats a byte.

| codec | loss | beside fp32 of the same seed | by seed |
|---|---:|---:|---|
{_rows(rows)}
"""
