"""What a swarm costs the processes of one machine that train a model together: time of a step, memory of each rank.

Under torchrun, for DDP and for FSDP2: the same steps of the same model bare and in a swarm of this worker alone.

* step: milliseconds of an inner step, its part of the swarm left out of the bare one.
* call: microseconds of a ``swarm.step`` between syncs, with the meetings of the ranks in it, beside no training.
* sync: milliseconds of the ``swarm.step`` that ends a round: the model is copied out, stepped and copied in.
* memory: largest so far of each rank above what it had before the model was made; on a GPU that of the GPU.

    scripts/bench-machine --values 100000000 --ranks 8 --device cuda

writes docs/benchmarks/machine.json and, from it, docs/benchmarks/machine.md. On a GPU it takes some minutes at most.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import decentral
from scripts.benches.lib.command import ROOT, BenchError, Parser, enter
from scripts.benches.lib.report import Record, load_average, signature, stamp, write
from scripts.benches.lib.stats import spread
from scripts.benches.lib.tables import table

SCRIPT = "bench-machine"
_INNERS = ("ddp", "fsdp")
_LAYERS, _BATCH = 8, 8
_INNER, _ROUNDS, _WARM = 6, 3, 2
#: Calls of ``swarm.step`` that are timed together, after as many that are not.
_CALLS, _REPEATS = 20_000, 7
_CALLED = "calls"
_DEADLINE_S = 280
_MIB = 2**20


def rank(inner: str, values: int, device_name: str, out: Path, *, in_swarm: bool) -> None:
    """One process of torchrun: train, and write down what it took."""
    is_cuda = device_name == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
    found = decentral.found  # what it imports is no part of what is measured
    if inner == _CALLED:
        (out / f"{dist.get_rank()}.json").write_text(json.dumps({"rank": dist.get_rank(), "us": _calls()}))
        dist.destroy_process_group()
        return
    dist.barrier()
    base = _peak_bytes(device)
    torch.manual_seed(0)
    width = int((values / _LAYERS) ** 0.5)
    model: nn.Module = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(_LAYERS)]).to(device)
    trained = model
    if inner == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        trained = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if is_cuda else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    settings = {"worker.host": "127.0.0.1", "method.inner_steps": _INNER}
    swarm = found(model, rounds=_ROUNDS, settings=settings, method="diloco") if in_swarm else None
    steps_ms, calls_ms = [], []
    for _ in range(_INNER * _ROUNDS):
        began = time.perf_counter()
        loss = trained(torch.randn(_BATCH, width, device=device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if is_cuda:
            torch.cuda.synchronize()
        ended = time.perf_counter()
        if swarm is not None:
            swarm.step(loss=loss.detach(), tokens=_BATCH)
        steps_ms.append(1000 * (ended - began))
        calls_ms.append(1000 * (time.perf_counter() - ended))
    told = {"rank": dist.get_rank(), "steps_ms": steps_ms[_WARM:], "peak_mib": (_peak_bytes(device) - base) / _MIB}
    if swarm is not None:
        told |= {"syncs_ms": calls_ms[_INNER - 1 : -1 : _INNER]}  # the last one ends the run
        swarm.leave()
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def _calls() -> list[float]:
    """Microseconds of a call, several times."""
    micros = []
    settings = {"worker.host": "127.0.0.1", "method.inner_steps": 1_000_000}
    with decentral.found(nn.Linear(8, 8), rounds=10, settings=settings) as swarm:
        for _ in range(_REPEATS + 1):
            began = time.perf_counter()
            for _ in range(_CALLS):
                swarm.step(tokens=512, loss=1.0)
            micros.append(round(1e6 * (time.perf_counter() - began) / _CALLS, 2))
    return micros[1:]


def _peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had; on a GPU that of the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def measure(inner: str, options: argparse.Namespace, *, in_swarm: bool) -> Record:
    """A run of all ranks.

    Raises:
        BenchError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="decentral-machine-") as folder:
        torchrun = (
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(options.ranks),
        )
        what = ("--rank", inner, "--values", str(options.values), "--device", options.device, "--folder", folder)
        command = [*torchrun, "-m", "scripts.benches.machine", *what, *(["--swarm"] if in_swarm else [])]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
        if ran.returncode:
            raise BenchError(f"{inner} {'in a swarm' if in_swarm else 'bare'} failed:\n{ran.stderr[-3000:]}")
        ranks: list[Record] = [json.loads((Path(folder) / f"{each}.json").read_text()) for each in range(options.ranks)]
    first = ranks[0]
    if inner == _CALLED:
        return first
    return {
        "inner": inner,
        "swarm": in_swarm,
        "steps_ms": [round(value, 2) for value in first["steps_ms"]],
        "syncs_ms": [round(value, 1) for value in first.get("syncs_ms", ())],
        "peak_mib": [round(each["peak_mib"]) for each in ranks],
    }


def page(report: Record) -> str:
    """The report for people."""
    rows = [
        [
            each["inner"],
            "in a swarm" if each["swarm"] else "bare",
            spread(each["steps_ms"], ".0f", statistics.median),
            spread(each["syncs_ms"], ".0f", statistics.median) if each["swarm"] else "",
            " and ".join(f"{value:,}" for value in each["peak_mib"]),
        ]
        for each in report["runs"]
    ]
    headings = "inner | | step (ms): | sync (ms): | peak of each rank (MiB):"
    return f"""# What a swarm costs several processes of one machine

Written by `scripts/bench-machine`; the raw record is `machine.json`. {report["ranks"]} ranks on {report["device"]},
{report["values"]:,} values in {_LAYERS} layers and AdamW, {_ROUNDS} rounds of {_INNER} steps, method `diloco`, a worker
alone. Medians, in brackets the least and the greatest.

A *sync* is the `swarm.step` that ends a round. The peak is above what a rank had before its model was made. On the CPU
rank 0 has in the same memory what the swarm keeps: anchor, outer state, work on its way. The machine's load average
was {report["load"]}: far above its cores, times tell nothing.

{table(headings, rows)}

Between syncs a `swarm.step` of rank 0 takes {spread(report["calls"]["us"], ".2f", statistics.median)} µs, the ranks'
meetings included ({_REPEATS} times {_CALLS:,} calls beside no training).

{signature(report)}"""


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = Parser(SCRIPT, __doc__, "machine")
    parser.add_argument("--values", type=int, default=16_000_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rank", choices=(*_INNERS, _CALLED), help=argparse.SUPPRESS)
    parser.add_argument("--swarm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.rank, options.values, options.device, options.folder, in_swarm=options.swarm)
        return
    runs = []
    for inner in _INNERS:
        for in_swarm in (False, True):
            runs.append(measure(inner, options, in_swarm=in_swarm))
            print(runs[-1], flush=True)
    report: Record = {
        "runs": runs,
        "calls": measure(_CALLED, options, in_swarm=True),
        "ranks": options.ranks,
        "device": options.device,
        "values": options.values,
        "load": load_average(),
        **stamp(SCRIPT),
    }
    write(options.out, report, page(report))


if __name__ == "__main__":
    enter(main)
