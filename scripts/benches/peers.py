"""The same training with ours and with others' libraries, in one sitting: speed, loss, bytes, processor time, memory.

    scripts/bench peers                    # all that is not in the record yet, three seeds: an hour
    scripts/bench peers --for 600          # as much of it as can be begun in ten minutes
    scripts/bench peers --system "Flower FedAvg" --network home --seed 0

Two workers with a core each train our language model: on one machine, where they talk over its loopback, and behind
emulated links. What a worker does is in ``peers_worker`` and ``peers_loop``. Writes docs/benchmarks/peers.json and,
from it, peers.md after each cell, at the end peers.png. Needs what docs/link-emulator.md says, and an environment of
its own, which the script makes: what the peers need holds back versions of what others need.
"""

import argparse
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.links import Link, Links
from scripts.benches.lib.processes import Process, python
from scripts.benches.lib.report import Record, load_average, read, stamp, write
from scripts.benches.peers_loop import Local, Place
from scripts.benches.peers_page import page, plot
from scripts.benches.peers_worker import SYSTEMS, VALUES

SCRIPT = "peers"
MEMBERS = 2
#: 0.8 million parameters, and batches so small that syncs weigh.
TASK: dict[str, Any] = {"model": {"context": 64}, "batch_sequences": 4, "val_batches": 64}
INNER_STEPS = 24
#: Of the cells in which values are averaged and nothing is trained: so many, and so many rounds.
NUM_VALUES, ROUNDS = 50_000_000, 6
HOME = Link(up_bits_per_s=100e6, down_bits_per_s=100e6, delay_s=0.0125)
NETWORKS: dict[str, Link] = {"one machine": Link(), "home": HOME}
#: Seeds of what would take a minute and more each.
ONCE = {("gloo DDP", "home")}
_PEERS = ("torchft", "hivemind", "accelerate", "flwr")
_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Cell:
    """One run."""

    system: str
    network: str
    seed: int


def cells(options: argparse.Namespace) -> list[Cell]:
    """All that is asked for, the first seed first."""
    asked = [Cell(*each) for seed in options.seed for each in _places(options, seed)]
    return [cell for cell in asked if cell.seed == options.seed[0] or (cell.system, cell.network) not in ONCE]


def _places(options: argparse.Namespace, seed: int) -> list[tuple[str, str, int]]:
    training = [(name, network, seed) for network in options.network for name in options.system if name not in VALUES]
    averaging = [(name, "one machine", seed) for name in options.system if name in VALUES]
    return training + (averaging if "one machine" in options.network else [])


def measure(cell: Cell, steps: int, folder: Path) -> Record:
    """Workers from their start to their end; what they said, and the losses of the weights that they left."""
    system, one = SYSTEMS[cell.system], cell.network == "one machine"
    values = cell.system in VALUES
    num_places = MEMBERS + (system.server is not None)
    cores = sorted(os.sched_getaffinity(0))[:MEMBERS]
    with Links([NETWORKS[cell.network]] * (1 if one else MEMBERS + 1)) as links, ExitStack() as stack:
        hosts = links.hosts * (MEMBERS + 1) if one else links.hosts
        place = Place(
            system=cell.system,
            rank=0,
            folder=folder,
            address="",
            hosts=[host.address for host in hosts],
            interface="lo" if one else "link0",
            seed=cell.seed,
            steps=ROUNDS if values else steps,
            inner_steps=1 if values else INNER_STEPS,
            settings=TASK,
            values=NUM_VALUES if values else 0,
        )
        processes = []
        # A server is there before its clients.
        for rank in reversed(range(num_places)):
            host = hosts[rank] if rank == MEMBERS else hosts[rank].on_core(cores[rank])
            words = json.dumps({**asdict(place), "rank": rank, "address": host.address}, default=str)
            command = python("-m", "scripts.benches.peers_worker", words)
            processes.append(Process(folder / f"place{rank}", command, host))
            stack.callback(processes[-1].end)
        said = [process.result(_TIMEOUT_S) for process in processes][::-1]
    workers, server = said[:MEMBERS], said[MEMBERS:]
    sent = workers[0]["sent_bytes"] if one else sum(each["sent_bytes"] for each in said)
    return {
        "wall_s": max(worker["wall_s"] for worker in workers),
        "tokens": sum(worker["tokens"] for worker in workers),
        "steps": place.steps,
        "inner_steps": place.inner_steps,
        "sent_bytes": sent / MEMBERS,
        "processor_s": sum(each["processor_s"] for each in said),
        "memory_bytes": max(worker["memory_bytes"] for worker in workers),
        "server_memory_bytes": max((each["memory_bytes"] for each in server), default=0),
        "waits": workers[0]["waits"],
        "exchanges_s": workers[0].get("exchanges_s", []),
        "curve": [] if values else losses(place, workers[0]["curve"]),
    }


def losses(place: Place, curve: Sequence[tuple[int, float]]) -> list[tuple[int, float, float]]:
    """Round, seconds, and the validation loss of the workers' mean, at its end."""
    torch.set_num_threads(1)
    probe, found = Local(place), []
    for round_, seconds in curve:
        kept = [torch.load(place.folder / f"weights-{rank}-{round_}.pt") for rank in range(MEMBERS)]
        probe.load({name: sum(each[name] for each in kept) / MEMBERS for name in kept[0]})
        found.append((round_, round(seconds, 3), round(probe.validate(), 4)))
    return found


def main() -> None:
    """Measure what is missing in the record, and write."""
    parser = Parser(SCRIPT, __doc__, "peers")
    parser.repeated("--system", str, tuple(SYSTEMS), choices=SYSTEMS, metavar="NAME")
    parser.repeated("--network", str, tuple(NETWORKS), choices=NETWORKS)
    parser.repeated("--seed", int, (0, 1, 2))
    parser.add_argument("--steps", type=int, default=8 * INNER_STEPS, help="of each worker")
    parser.add_argument("--for", type=float, default=36_000, metavar="SECONDS", help="begin nothing after so long")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < MEMBERS:
        raise BenchError(f"this bench needs {MEMBERS} cores, one for each worker")
    records: list[Record] = read(options.out, [])
    until = time.monotonic() + getattr(options, "for")
    for cell in cells(options):
        same = [record for record in records if Cell(*(record[key] for key in ("system", "network", "seed"))) == cell]
        if any("failure" not in record for record in same) or time.monotonic() > until:
            continue
        load = load_average()
        with tempfile.TemporaryDirectory(prefix="decentral-peers-") as folder:
            try:
                measured = measure(cell, options.steps, Path(folder))
            except BenchError as err:
                measured = {"failure": str(err)[-400:]}
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PEERS)
        record = {**asdict(cell), **measured, "load": load, "peers": versions, **stamp(SCRIPT)}
        print(cell, {key: record.get(key) for key in ("failure", "wall_s", "curve")}, flush=True)
        records = [*(other for other in records if other not in same), record]
        write(options.out, records, page(options.out, records))
    write(options.out, records, page(options.out, records))
    plot(options.out, records)


if __name__ == "__main__":
    enter(main)
