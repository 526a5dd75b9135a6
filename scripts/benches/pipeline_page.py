"""The record of the benches on pipelines and the page made of it."""

import statistics
from pathlib import Path

from scripts.benches.lib.report import Record, kept, places, read, write
from scripts.benches.lib.stats import gaps, grouped, listed
from scripts.benches.lib.tables import table
from scripts.benches.pipeline_sim import Case

_HISTORY = "What turns and pieces changed"
_CASE = "codec | values | healing | M: | window:"
_TIMES = "utilisation: | unlimited: batch (s): | unlimited: utilisation: | of unlimited:"


def keep(out: Path, part: str, value: Record) -> None:
    """Put a part of the record in the place of the old one, and write record and page anew."""
    record: Record = {**read(out, {}), part: value}
    write(out, record, page(out, record))


def page(out: Path, record: Record) -> str:
    """For people."""
    parts = [_INTRO]
    if "virtual" in record:
        parts.append(_virtual(record["virtual"]))
    runs = {name.removeprefix("run "): run for name, run in record.items() if name.startswith("run ")}
    if runs:
        parts.append(_real(runs))
    if "history" in record:
        parts.append(kept(out, _HISTORY))
    if "activations" in record:
        parts.append(_activations(record["activations"]))
    stamped = [part for part in record.values() if "command" in part]
    commands = dict.fromkeys(f"    {part['command']}" for part in stamped)
    parts.append("\n".join([*places(stamped[-1:]), "", *commands]) + "\n")
    return "\n".join(parts)


def _described(case: Record) -> list[object]:
    values = f"{case['sequences']} x {case['context']} x {case['width']}"
    return [case["codec"], values, case["healing"], case["microbatches"], case["in_flight"] or "all"]


def _virtual(virtual: Record) -> str:
    rows: list[list[object]] = []
    for entry in virtual["cases"]:
        linked, unlimited = entry["emulated"], entry["unlimited"]
        rows.append([*_described(entry["case"]), f"{linked['batch_s']:.2f}", f"{linked['predicted_s']:.2f}"])
        rows[-1] += [f"{linked['utilisation']:.1%}", f"{unlimited['batch_s']:.2f}", f"{unlimited['utilisation']:.1%}"]
        rows[-1].append(f"{unlimited['batch_s'] / linked['batch_s']:.1%}")
    return f"""## In virtual time

Production processes on the [simulator](../simulator.md): what the protocol makes of links, without a busy machine's
noise, and without the time of packing and of libp2p. Links are first come, first served.

{table(f"{_CASE} | batch (s): | formula (s): | {_TIMES}", rows)}
"""


def _real(runs: Record) -> str:
    rows = []
    for name, run in runs.items():
        linked_s, unlimited_s = (_median(run[kind]) for kind in ("emulated", "unlimited"))
        busy_s = Case(**run["case"]).busy_s
        what = ["language model", "", "", 8, "all"] if run["gpt"] else _described(run["case"])
        shares = ["" if run["gpt"] or not wall_s else f"{busy_s / wall_s:.1%}" for wall_s in (linked_s, unlimited_s)]
        beside = [f"{unlimited_s:.2f}", shares[1], f"{unlimited_s / linked_s:.1%}"] if unlimited_s else ["", "", ""]
        load = max(load for kind in ("emulated", "unlimited") for one in run[kind] for load in one["load"])
        rows.append([name, *what, f"{linked_s:.2f}", shares[0], *beside, f"{load:.0f}"])
    return f"""## Real processes

Five `decentral worker`s in network namespaces behind [emulated links](../link-emulator.md), and behind links without
limits; the median of the batches after the first two. *Load* is the machine's highest load average during the runs, on
two cores: figures at a load far above 2 are of a machine that other work kept busy, and too slow.

{table(f" | {_CASE} | batch (s): | {_TIMES} | load:", rows)}
"""


def _median(runs: list[Record]) -> float:
    return statistics.median(run["batch_s"] for run in runs) if runs else 0.0


def _activations(part: Record) -> str:
    asked = part["asked"]
    losses = {
        codec: {run["seed"]: run["val_loss"] for run in runs}
        for codec, runs in grouped(part["runs"], lambda run: run["codec"]).items()
    }
    rows = []
    for codec, own in losses.items():
        gap = statistics.mean(gaps(own, losses["fp32"]))
        rows.append([codec, f"{statistics.mean(own.values()):.4f}", f"{gap:+.2%}", listed(own.values(), ".4f")])
    return f"""## What codecs of activations cost in loss

Four stages and a head in one process, all that passes between them packed and unpacked, activations and gradients
alike: the default language model, {asked["steps"]} steps of {asked["batch_sequences"]} x 128 bytes in
{asked["microbatches"]} micro-batches; loss on held-out text, in nats a byte.

{table("codec | loss: | beside fp32 of the same seed: | by seed", rows)}
"""


_INTRO = """# How busy a pipeline is

Written by `scripts/bench pipeline` and `scripts/bench activations`; the raw record is `pipeline.json`. A head and four
stages, each on a machine of its own behind a link of 100 Mbit/s up and down, 25 ms one way between any two; and the
same without limits. What a batch consists of, and the formula behind "formula": [pipeline](../algorithms/pipeline.md).

Blocks **sleep** for 50 ms forwards and 100 ms backwards instead of computing (`scripts/benches/lib/sleeping.py`), as
five machines' work does not fit on the cores of one. All else is real: activations of 4 x 256 x 256 values, packing,
packets, commits, steps. *Utilisation* is the time of a stage's passes over that of a batch, M x 150 ms / batch; *of
unlimited* is the speed beside the same pipeline without limits.
"""
