"""What a swarm costs the processes of one machine that train a model together: time of a step, memory of each rank.

Under torchrun, for DDP and for FSDP2: the same steps of the same Llama bare, in a swarm of this worker alone, and in
one with a second worker of one process beside it.

* step: milliseconds of an inner step, its part of the swarm left out of the bare one.
* call: microseconds of a ``swarm.step`` between syncs, with the meetings of the ranks in it, beside no training.
* sync: milliseconds of the ``swarm.step`` that ends a round: the model is copied out, stepped and copied in.
* memory: largest so far of each rank above what it had before the model was made; on a GPU that of the GPU.
* whole: largest sum of the parameters that a rank had gathered, or dealt out, whole at a time for the swarm.

    scripts/bench machine --values 100000000 --ranks 8 --device cuda

writes docs/benchmarks/machine.json and, from it, docs/benchmarks/machine.md. On a GPU it takes some minutes at most.
"""

import argparse
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaConfig

import decentral
from scripts.benches.lib.command import ROOT, BenchError, Parser, enter
from scripts.benches.lib.report import Record, load_average, signature, stamp, write
from scripts.benches.lib.stats import spread
from scripts.benches.lib.tables import table

SCRIPT = "machine"
_INNERS = ("ddp", "fsdp")
#: Of the model, whose layers are as many as make up the values that were asked for; and of a rank's batch.
_WIDTH, _VOCAB, _SEQUENCES, _TOKENS = 512, 16_000, 2, 32
_INNER, _ROUNDS, _WARM = 4, 3, 2
#: Calls of ``swarm.step`` that are timed together, after as many that are not.
_CALLS, _REPEATS = 20_000, 7
_CALLED = "calls"
#: With nobody, alone, and with a worker of one process beside it.
_BARE, _ALONE, _BESIDE = "bare", "alone", "beside"
_ADDRESS = "address"
_ADDRESS_S = 200
_DEADLINE_S = 280
_MIB = 2**20


def rank(inner: str, options: argparse.Namespace) -> None:
    """One process of torchrun: train, and write down what it took."""
    is_cuda, out = options.device == "cuda", options.folder
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
    model = _llama(options.values).to(device)
    trained = model
    if inner == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    else:
        trained = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if is_cuda else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    settings = {"worker.host": "127.0.0.1", "method.inner_steps": _INNER}
    whole, swarm = _Whole(), None
    if options.swarm != _BARE:
        settings |= {"run.min_workers": 2} if options.swarm == _BESIDE else {}
        swarm = found(model, rounds=_ROUNDS, settings=settings, method="diloco")
        if dist.get_rank() == 0:
            (out / f"{_ADDRESS}.new").write_text(swarm.address)
            (out / f"{_ADDRESS}.new").rename(out / _ADDRESS)
    steps_ms, calls_ms = [], []
    for _ in range(_INNER * _ROUNDS):
        began = time.perf_counter()
        loss = _step(trained, optimizer, device)
        ended = time.perf_counter()
        if swarm is not None:
            swarm.step(loss=loss.detach(), tokens=_SEQUENCES * (_TOKENS - 1))
        steps_ms.append(1000 * (ended - began))
        calls_ms.append(1000 * (time.perf_counter() - ended))
    told = {"rank": dist.get_rank(), "steps_ms": steps_ms[_WARM:], "peak_mib": (_peak_bytes(device) - base) / _MIB}
    told |= {"whole_mib": whole.peak / _MIB, "values": sum(value.numel() for value in model.parameters())}
    told |= {"largest_mib": max(4 * value.numel() for value in model.parameters()) / _MIB}
    if swarm is not None:
        told |= {"syncs_ms": calls_ms[_INNER - 1 : -1 : _INNER]}  # the last one ends the run
        swarm.leave()
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def beside(options: argparse.Namespace) -> None:
    """A worker of one process: as many steps of the same model."""
    torch.set_num_threads(1)
    until = time.monotonic() + _ADDRESS_S
    while not (options.folder / _ADDRESS).exists():
        if time.monotonic() > until:
            raise BenchError("the ranks have founded no swarm")
        time.sleep(0.1)
    model, device = _llama(options.values), torch.device("cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    settings = {"worker.host": "127.0.0.1"}
    with decentral.join((options.folder / _ADDRESS).read_text(), model, settings=settings) as swarm:
        while not swarm.done:
            loss = _step(model, optimizer, device)
            swarm.step(loss=loss.detach(), tokens=_SEQUENCES * (_TOKENS - 1))


def _llama(values: int) -> Any:
    """A model of about so many values, of which embedding and output layer have most."""
    layer = 4 * _WIDTH**2 + 3 * _WIDTH * (11 * _WIDTH // 4)
    config = LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=_WIDTH,
        intermediate_size=11 * _WIDTH // 4,
        num_hidden_layers=max(2, round((values - 2 * _VOCAB * _WIDTH) / layer)),
        num_attention_heads=8,
        max_position_embeddings=_TOKENS,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _step(trained: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> torch.Tensor:
    tokens = torch.randint(_VOCAB, (_SEQUENCES, _TOKENS), device=device)
    loss: torch.Tensor = trained(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return loss


class _Whole:
    """Counts the bytes of parameters that a spread model has whole at a time, as it reads and loads these."""

    def __init__(self) -> None:
        self.peak = self._now = 0
        spreading: Any = importlib.import_module("decentral.run.spread")
        gather, deal = spreading.whole, spreading.distribute_tensor
        spreading.whole = lambda value: self._seen(gather(value), value)
        spreading.distribute_tensor = lambda value, *rest: deal(self._seen(value, None), *rest)

    def _seen(self, value: Any, shard: Any) -> Any:
        if value is not shard:  # else it was whole, and is no copy
            size = value.numel() * value.element_size()
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(value, self._gone, size)
        return value

    def _gone(self, size: int) -> None:
        self._now -= size


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


def measure(inner: str, options: argparse.Namespace, swarm: str) -> Record:
    """A run of all ranks.

    Raises:
        BenchError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="decentral-machine-") as folder:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks))
        what = ("--values", str(options.values), "--device", options.device, "--folder", folder, "--swarm", swarm)
        script = ("-m", "scripts.benches.machine")
        commands = [[sys.executable, *torchrun, *script, "--rank", inner, *what]]
        if swarm == _BESIDE:
            commands.append([sys.executable, *script, "--rank", _BESIDE, *what])
        logs = [Path(folder) / f"log{number}" for number in range(len(commands))]
        started = []
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as errors:
                started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors))
        until = time.monotonic() + _DEADLINE_S
        try:
            codes = [process.wait(max(1.0, until - time.monotonic())) for process in started]
        finally:
            for process in started:
                process.terminate()
        if any(codes):
            raise BenchError(f"{inner}, {swarm}, failed:\n" + "\n".join(log.read_text()[-3000:] for log in logs))
        ranks: list[Record] = [json.loads((Path(folder) / f"{each}.json").read_text()) for each in range(options.ranks)]
    first = ranks[0]
    if inner == _CALLED:
        return first
    return {
        "inner": inner,
        "swarm": swarm,
        "values": first["values"],
        "largest_mib": round(first["largest_mib"], 1),
        "steps_ms": [round(value, 2) for value in first["steps_ms"]],
        "syncs_ms": [round(value, 1) for value in first.get("syncs_ms", ())],
        "peak_mib": [round(each["peak_mib"]) for each in ranks],
        "whole_mib": [round(each["whole_mib"], 1) for each in ranks],
    }


_NAMES = {_BARE: "bare", _ALONE: "in a swarm, alone", _BESIDE: "in a swarm, a worker of one process beside it"}


def page(report: Record) -> str:
    """The report for people."""
    rows = [
        [
            each["inner"],
            _NAMES[each["swarm"]],
            spread(each["steps_ms"], ".0f", statistics.median),
            spread(each["syncs_ms"], ".0f", statistics.median) if each["syncs_ms"] else "",
            " and ".join(f"{value:,}" for value in each["peak_mib"]),
            " and ".join(f"{value:,}" for value in each["whole_mib"]) if any(each["whole_mib"]) else "",
        ]
        for each in report["runs"]
    ]
    headings = "inner | | step (ms): | sync (ms): | peak of each rank (MiB): | whole at a time (MiB):"
    last = report["runs"][-1]
    mib = f"{4 * last['values'] / _MIB:,.0f} MiB, its largest parameter {last['largest_mib']:,} MiB"
    size = f"{last['values']:,} values ({mib})"
    return f"""# What a swarm costs several processes of one machine

Written by `scripts/bench machine`; the raw record is `machine.json`. {report["ranks"]} ranks on {report["device"]},
a Llama of {size} and AdamW, {_ROUNDS} rounds of {_INNER} steps
of {_SEQUENCES} sequences of {_TOKENS} tokens a rank, method `diloco`. Medians, in brackets the least and the greatest.

A *sync* is the `swarm.step` that ends a round. The peak is above what a rank had before its model was made. On the CPU
rank 0 has in the same memory what the swarm keeps: anchor, outer state, work on its way; other ranks have nothing of
it. *Whole at a time* are parameters of which a rank had more than its shard at one moment for the swarm, to copy a
fragment out or in. The machine's load average was {report["load"]}: far above its cores, times tell nothing.

{table(headings, rows)}

Between syncs a `swarm.step` of rank 0 takes {spread(report["calls"]["us"], ".2f", statistics.median)} µs, the ranks'
meetings included ({_REPEATS} times {_CALLS:,} calls beside no training).

{signature(report)}"""


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = Parser(SCRIPT, __doc__, "machine")
    parser.add_argument("--values", type=int, default=40_000_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rank", choices=(*_INNERS, _CALLED, _BESIDE), help=argparse.SUPPRESS)
    parser.add_argument("--swarm", choices=tuple(_NAMES), default=_ALONE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        beside(options) if options.rank == _BESIDE else rank(options.rank, options)
        return
    runs = []
    for inner in _INNERS:
        for swarm in _NAMES:
            runs.append(measure(inner, options, swarm))
            print(runs[-1], flush=True)
    report: Record = {
        "runs": runs,
        "calls": measure(_CALLED, options, _ALONE),
        "ranks": options.ranks,
        "device": options.device,
        "load": load_average(),
        **stamp(SCRIPT),
    }
    write(options.out, report, page(report))


if __name__ == "__main__":
    enter(main)
