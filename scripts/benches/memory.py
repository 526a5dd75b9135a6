"""What a worker needs of a machine's memory over what its trainer has by itself, at rest and at the peak of a round.

Two workers on one machine, whose loops sleep in place of computing and change all values of the model in every step.
Memory is that of a process and its daemon, as the kernel counts it (PSS), without what it had before it founded or
joined: the values and torch.

    scripts/bench memory --values 25000000 --arm "name=diloco codec=int8-b128" --arm "name=streaming codec=e3m0-b128"

writes docs/benchmarks/memory.json and, from it, docs/benchmarks/memory.md, whose "Findings" are written by hand.
"""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import decentral
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.costs import memory_bytes
from scripts.benches.lib.report import Record, kept, signature, stamp, write
from scripts.benches.lib.tables import table

SCRIPT = "memory"
ARMS = (
    "name=diloco codec=fp32",
    "name=diloco codec=int8-b128",
    "name=diloco codec=e3m0-b128",
    "name=streaming codec=e3m0-b128",
    "name=sparseloco",
    "name=noloco codec=int8-b128",
)
_LAYERS = 12
#: A round lasts long enough for a beat or two after its sync.
_STEP_S, _INNER = 0.5, 30
#: Whatever is kept of earlier rounds is there by then: means of eight in eight bits, if somebody may have missed them.
_ROUNDS, _LEFT_OUT = 12, 10
_LOOK_S, _DEADLINE_S = 0.25, 900


def loop(values: int, settings: dict[str, object], pipe: Connection) -> None:
    """A worker: founds and says where, or joins what it is told."""
    torch.set_num_threads(1)
    layers = {f"layers.{at}": torch.nn.Parameter(torch.randn(values // _LAYERS)) for at in range(_LAYERS)}
    pipe.send("ready")
    address = pipe.recv()
    found = decentral.join(address, layers) if address else decentral.found(layers, rounds=_ROUNDS, settings=settings)
    with found as swarm:
        pipe.send(swarm.address)
        while not swarm.done:
            time.sleep(_STEP_S)
            for layer in layers.values():
                layer.data.mul_(1.0001)
            swarm.step(tokens=1)
            pipe.send(swarm.global_step)


def measure(arm: str, values: int) -> Record:
    """Memory of both workers over their trainers' own, founder first: at rest and at most, in bytes."""
    stated = dict(word.split("=", 1) for word in arm.split())
    settings: dict[str, object] = {f"method.{key}": value for key, value in stated.items()}
    settings |= {"method.inner_steps": _INNER, "worker.host": "127.0.0.1", "run.min_workers": 2}
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=loop, args=(values, settings, theirs), daemon=True) for _, theirs in ends]
    pipes, own, address = [ours for ours, _ in ends], [], ""
    for worker in workers:
        worker.start()
    try:
        for worker, pipe in zip(workers, pipes, strict=True):
            _said(pipe)
            own.append(memory_bytes(worker.pid or 0))
        for pipe in pipes:
            pipe.send(address)
            address = _said(pipe)
        seen = _watched([worker.pid or 0 for worker in workers], pipes)
        for worker in workers:
            worker.join(_DEADLINE_S)
    finally:
        for worker in workers:
            worker.terminate()
    over = [[each - mine for each in found] for found, mine in zip(seen, own, strict=True)]
    return {
        "arm": arm,
        "values": values,
        "own_bytes": own,
        "at_rest_bytes": [min(found) for found in over],
        "at_most_bytes": [max(found) for found in over],
    }


def _watched(pids: Sequence[int], pipes: Sequence[Connection]) -> list[list[int]]:
    """Memory of each, again and again, in whole rounds in the middle of the run."""
    seen: list[list[int]] = [[] for _ in pids]
    step, until = 0, time.monotonic() + _DEADLINE_S
    while step < (_ROUNDS - 1) * _INNER:
        if time.monotonic() > until:
            raise BenchError(f"the workers were at step {step} after {_DEADLINE_S} s")
        time.sleep(_LOOK_S)
        for pipe in pipes:
            while pipe.poll():
                step = _said(pipe)
        if step >= _LEFT_OUT * _INNER - 1:
            for pid, found in zip(pids, seen, strict=True):
                found.append(memory_bytes(pid))
    return seen


def _said(pipe: Connection) -> Any:
    if not pipe.poll(_DEADLINE_S):
        raise BenchError(f"nothing was heard of a worker for {_DEADLINE_S} s")
    try:
        return pipe.recv()
    except EOFError:
        raise BenchError("a worker has ended; what it wrote is above") from None


def page(out: Path, record: Record) -> str:
    """The record as Markdown."""
    rows = []
    for run in record["runs"]:
        row = [run["arm"]]
        found = [*run["at_rest_bytes"], *run["at_most_bytes"]]
        row += [f"{each / 4 / run['values']:.1f}" for each in found]
        rows.append(row)
    [values] = {run["values"] for run in record["runs"]}
    own = statistics.mean(each for run in record["runs"] for each in run["own_bytes"])
    told = f"## Measured\n\nTwo workers, {values:,} values; a trainer by itself has {own / 1e6:.0f} MB.\n"
    return "\n".join([_HEAD, kept(out), told, table(_COLUMNS, rows), "", signature(record)])


_HEAD = """# Memory

Written by `scripts/bench memory`; the raw numbers are in `memory.json`. What a process and its daemon have over what
the process had before it founded or joined (the values, and torch), as the kernel counts it (PSS), in fp32 values a
parameter. The loop has no gradients and no inner optimizer. *At rest* is the least of a round, between two
syncs, *at most* the most of four looks a second.
"""
_COLUMNS = "method | founder, at rest: | joiner, at rest: | founder, at most: | joiner, at most:"


def main() -> None:
    """Measure every arm, and write the page."""
    parser = Parser(SCRIPT, __doc__, SCRIPT)
    parser.add_argument("--values", type=int, default=25_000_000, help="of the model")
    parser.repeated("--arm", metavar="SETTINGS", default=ARMS, help="of [method]")
    options = parser.parse_args()
    runs = []
    for arm in options.arm:
        runs.append(measure(arm, options.values))
        print({key: value for key, value in runs[-1].items() if key.endswith("bytes")}, flush=True)
    record = {"runs": runs, **stamp(SCRIPT)}
    write(options.out, record, page(options.out, record))


if __name__ == "__main__":
    enter(main)
