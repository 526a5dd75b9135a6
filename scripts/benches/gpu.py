"""What a swarm costs one GPU: tokens per second, memory and stalls of a loop that syncs by streaming, and a bare one.

Both train the same byte-level GPT of 100 million parameters in bf16 (autocast, weights and AdamW in fp32), in turns, in
processes of their own. The swarm is one worker alone: every fragment goes to the CPU, through an outer step and back,
and nothing is sent.

* tokens/s: of all steps but the first round, from a GPU that has nothing queued to the next such moment.
* memory: the most that tensors took of the GPU (``torch.cuda.max_memory_allocated``).
* launch, landing: milliseconds of the ``swarm.step`` in which a fragment is copied out, or its result is put in place.

    scripts/bench gpu --device cuda --pairs 3

writes docs/benchmarks/gpu.json and, from it, docs/benchmarks/gpu.md, and takes some six minutes at most: each of its
processes is given up after a minute and a half. On a CPU (``--device cpu --layers 2 --width 64``) it shows that the
script runs, and nothing else. Exit code 0: the ratios are what they must be; 1: they are not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import decentral
from decentral.monitor.journal import JournalReader
from decentral.workers.lm.model import GPT, ModelConfig
from scripts.benches.lib.command import ROOT, BenchError, Parser, enter
from scripts.benches.lib.report import Record, load_average, signature, stamp, write
from scripts.benches.lib.stats import spread
from scripts.benches.lib.tables import table

SCRIPT = "gpu"
#: What a worker must at least reach of the bare loop's tokens per second, and take at most of its memory.
REQUIRED, ALLOWED = 0.97, 1.05
_INNER, _ROUNDS = 50, 4
_DEADLINE_S = 90
_MIB = 2**20


def loop(options: argparse.Namespace, folder: Path, *, in_swarm: bool) -> Record:
    """One process: train, and say what it took."""
    device, is_cuda = torch.device(options.device), options.device != "cpu"
    config = ModelConfig(options.width, options.layers, max(1, options.width // 64), context=options.context)
    model = GPT(config, torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    settings = {"worker.host": "127.0.0.1", "method.inner_steps": _INNER, "method.codec": "fp32"}
    swarm = None
    if in_swarm:
        swarm = decentral.found(model, rounds=_ROUNDS, settings=settings, method="streaming", out=folder)
    windows = torch.randint(256, (8, options.batch, options.context + 1), device=device)
    calls_ms, began = [], 0.0
    for step in range(_INNER * _ROUNDS):
        if step == _INNER:
            began = _now(is_cuda)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model.loss(windows[step % len(windows)])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        called = time.perf_counter()
        if swarm is not None:
            swarm.step(loss=loss.detach(), tokens=options.batch * options.context)
        calls_ms.append(1000 * (time.perf_counter() - called))
    seconds = _now(is_cuda) - began
    if swarm is not None:
        swarm.leave()
    return {
        "swarm": in_swarm,
        "tokens_per_s": options.batch * options.context * _INNER * (_ROUNDS - 1) / seconds,
        "peak_mib": torch.cuda.max_memory_allocated(device) / _MIB if is_cuda else 0.0,
        "parameters": config.num_parameters,
        **(_stalls(folder, calls_ms) if in_swarm else {}),
    }


def _now(is_cuda: bool) -> float:
    """Seconds, with nothing left in the GPU's queue."""
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _stalls(folder: Path, calls_ms: list[float]) -> Record:
    """Milliseconds of the calls in which fragments were launched and landed, and the median of all others."""
    events = list(JournalReader(folder / "journal.jsonl").read())
    launched = {(e["round"], e["fragment"]): e["step"] for e in events if e["event"] == "launched"}
    landed = [
        launched[key] + e["delay_steps"]
        for e in events
        if e["event"] == "round_mixed" and (key := (e["round"], e["fragment"])) in launched
    ]
    last = len(calls_ms)  # the end of the run waits for what is under way
    kinds = {"launch_ms": set(launched.values()), "landing_ms": set(landed) - set(launched.values())}
    found: Record = {kind: [round(calls_ms[s - 1], 3) for s in sorted(at) if s < last] for kind, at in kinds.items()}
    others = [ms for step, ms in enumerate(calls_ms, 1) if not any(step in at for at in kinds.values())]
    return {**found, "other_ms": round(statistics.median(others), 4)}


def measure(options: argparse.Namespace, *, in_swarm: bool) -> Record:
    """A process of its own.

    Raises:
        BenchError: it failed, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="decentral-gpu-") as folder:
        given = {key: getattr(options, key) for key in ("device", "width", "layers", "context", "batch")}
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "scripts.benches.gpu", "--loop", folder, *words]
        command += ["--swarm"] if in_swarm else []
        try:
            ran = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=options.deadline_s, check=False
            )
        except subprocess.TimeoutExpired as err:
            raise BenchError(f"a loop took longer than {err.timeout:.0f} s") from err
        if ran.returncode:
            raise BenchError(f"the loop {'in a swarm' if in_swarm else 'by itself'} failed:\n{ran.stderr[-3000:]}")
        found: Record = json.loads((Path(folder) / "found.json").read_text())
        return found


def ratios(report: Record) -> tuple[float, float]:
    """Tokens per second and memory of the swarm, each as a share of the bare loop's: medians of all pairs."""
    bare, own = ([each for each in report["runs"] if each["swarm"] is kind] for kind in (False, True))
    speed = statistics.median(b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(bare, own, strict=True))
    memory = statistics.median(
        b["peak_mib"] / a["peak_mib"] if a["peak_mib"] else 1.0 for a, b in zip(bare, own, strict=True)
    )
    return speed, memory


def page(report: Record) -> str:
    """The report for people."""
    speed, memory = ratios(report)
    rows = []
    for kind, name in ((False, "bare"), (True, "in a swarm")):
        runs = [each for each in report["runs"] if each["swarm"] is kind]
        stalls = [[ms for each in runs for ms in each.get(key, ())] for key in ("launch_ms", "landing_ms")]
        rows.append(
            [
                name,
                spread([each["tokens_per_s"] for each in runs], ",.0f", statistics.median),
                spread([each["peak_mib"] for each in runs], ",.0f", statistics.median),
                *(spread(ms, ".2f", statistics.median) if ms else "" for ms in stalls),
            ]
        )
    return f"""# What a swarm costs a GPU

Written by `scripts/bench gpu`; the raw record is `gpu.json`. {report["device_name"]}, a GPT of
{report["runs"][0]["parameters"]:,} parameters in bf16, {report["batch"]} sequences of {report["context"]} bytes,
method `streaming` with rounds of {_INNER} steps, a worker alone. Medians, in brackets the least and the greatest.

Tokens per second are {speed:.3f} of the bare loop's ({REQUIRED} is required), memory of the GPU {memory:.3f} (at most
{ALLOWED}). A `swarm.step` in which nothing is launched or lands takes
{statistics.median(each["other_ms"] for each in report["runs"] if each["swarm"]):.3f} ms.

{table("| tokens/s: | most memory (MiB): | launch (ms): | landing (ms):", rows)}

{signature(report)}"""


def main() -> int:
    """Measure, or be one of the loops that are measured."""
    parser = Parser(SCRIPT, __doc__, "gpu")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--deadline-s", type=float, default=_DEADLINE_S, help="of each loop")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--swarm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        found = loop(options, options.loop, in_swarm=options.swarm)
        (options.loop / "found.json").write_text(json.dumps(found))
        return 0
    runs = []
    for pair in range(options.pairs):
        for in_swarm in (bool(pair % 2), not pair % 2):
            runs.append(measure(options, in_swarm=in_swarm))
            print(runs[-1], flush=True)
    is_cuda = options.device != "cpu"
    report: Record = {
        "runs": runs,
        "device_name": torch.cuda.get_device_name(options.device) if is_cuda else "a CPU",
        "batch": options.batch,
        "context": options.context,
        "load": load_average(),
        **stamp(SCRIPT),
    }
    write(options.out, report, page(report))
    speed, memory = ratios(report)
    return int(speed < REQUIRED or memory > ALLOWED)


if __name__ == "__main__":
    enter(main)
