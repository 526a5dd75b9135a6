"""What a download of the state costs over a slow line: bytes against those of the state, time against the line's.

A joiner on a line of 20 Mbit/s, three donors that have the same, of which none or two die on the way: in virtual time
with a large state, and with real processes behind emulated links with a smaller one.

    scripts/bench download

writes docs/benchmarks/download.json and, from it, docs/benchmarks/download.md. Exit code 1 if a figure is not what it
must be. Needs what docs/link-emulator.md says; `--no-real` does without.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from decentral.adapters.clock import RealClock
from decentral.adapters.node import NodeOptions, open_node
from decentral.outer.rule import OuterState
from decentral.sim.loop import run
from decentral.sim.network import Conditions, Line
from decentral.sim.world import Machine, World, peer_id
from decentral.state.download.donor import Donor
from decentral.state.download.downloader import Download, Downloader, NoDownload
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.timing import Timing
from decentral.types import PeerId
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.links import Link, Links, Sampler, carried
from scripts.benches.lib.processes import Process, python
from scripts.benches.lib.report import Record, signature, stamp, write
from scripts.benches.lib.tables import row, table

SCRIPT = "download"
RATE = 20e6
"""Bits per second of the joiner's line, both ways."""
DONORS_RATE = 100e6
DELAY_S = 0.0125
"""Of each of the four links on the way to a peer and back."""
NUM_DONORS, NUM_FRAGMENTS = 3, 4
#: When donors die, as shares of the time that the line needs.
DEATHS = (0.3, 0.6)
MOST_BYTES, MOST_TIME = 1.05, 1.1
_LAYOUT = "bench"
_TIMEOUT_S = 300.0


def numels(megabytes: float) -> list[int]:
    """Values of the fragments of a state of that size, which is anchor and momentum in float32."""
    return [int(megabytes * 1e6 / 8 / NUM_FRAGMENTS)] * NUM_FRAGMENTS


def state(megabytes: float) -> Snapshot:
    """A state of that size, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    fragments = []
    for numel in numels(megabytes):
        anchor_N, momentum_N = torch.randn(2, numel, generator=generator)
        fragments.append(FragmentState.of(7, anchor_N, OuterState((momentum_N,), 7)))
    return Snapshot(100, tuple(fragments))


# In virtual time.


def virtual(megabytes: float, deaths: Sequence[float]) -> Record:
    """A download on the simulated network, with a donor that dies at each of these moments."""
    snapshot, line_s = state(megabytes), 8 * megabytes * 1e6 / RATE

    async def current() -> Snapshot:
        return snapshot

    async def main() -> Record:
        donors, joiner = [peer_id(number) for number in range(NUM_DONORS)], peer_id(NUM_DONORS)
        machines = dict.fromkeys(donors, Machine(line=Line(DONORS_RATE / 8, DONORS_RATE / 8)))
        machines[joiner] = Machine(line=Line(RATE / 8, RATE / 8))
        world = World(0, Conditions(latency_s=2 * DELAY_S), machines=machines)
        for peer in map(world.add, donors):
            await Donor(peer.transport, _LAYOUT, current, peer.clock).start()
        own = world.add(joiner)
        loop = asyncio.get_running_loop()
        for share, donor in zip(deaths, donors, strict=False):
            loop.call_later(share * line_s, world.network.crash, donor)
        downloader = Downloader(own.transport, _LAYOUT, numels(megabytes), 1, Timing(), own.clock)
        began = loop.time()
        download = _checked(await downloader.fetch(donors))
        seconds, moved = loop.time() - began, own.transport.received_bytes
        return {"seconds": seconds, "bytes": download.received_bytes, "link_bytes": moved}

    return run(main(), until_s=10 * line_s)


def _checked(download: Download | NoDownload) -> Download:
    if isinstance(download, NoDownload):
        raise BenchError(f"the download failed: {download}")
    return download


# Inside: what runs on a host.


async def _give(host: str, megabytes: float) -> None:
    """Hand out the state, until killed."""
    snapshot, node, clock = state(megabytes), await open_node(NodeOptions(host=host)), RealClock()

    async def current() -> Snapshot:
        return snapshot

    await Donor(node.transport, _LAYOUT, current, clock).start()
    print(node.addresses()[0], flush=True)
    await node.failed()


async def _take(host: str, megabytes: float, addresses: Sequence[str]) -> Record:
    """Download it."""
    node, clock = await open_node(NodeOptions(host=host, initial_peers=tuple(addresses))), RealClock()
    try:
        downloader = Downloader(node.transport, _LAYOUT, numels(megabytes), 1, Timing(), clock)
        donors = [PeerId(address.rpartition("/")[2]) for address in addresses]
        print("ready", flush=True)
        began = time.monotonic()
        download = _checked(await downloader.fetch(donors))
        return {"began_s": began, "ended_s": time.monotonic(), "bytes": download.received_bytes}
    finally:
        clock.close()
        await node.close()


def _inside(role: str, host: str, megabytes: str, *addresses: str) -> None:
    """What a host does; the last line of the joiner is what it has measured."""
    if role == "give":
        asyncio.run(_give(host, float(megabytes)))
    else:
        print(json.dumps(asyncio.run(_take(host, float(megabytes), addresses))))


# Outside.


def real(megabytes: float, deaths: Sequence[float]) -> Record:
    """A download by a process from processes, each on a host of its own."""
    line_s = 8 * megabytes * 1e6 / RATE
    fast, slow = Link(DONORS_RATE, DONORS_RATE, DELAY_S), Link(RATE, RATE, DELAY_S)
    links = Links([fast] * NUM_DONORS + [slow])
    processes: list[Process] = []

    def begin(number: int, role: str, *more: str) -> Process:
        host = links.host(number)
        words = ["--inside", role, host.address, str(megabytes), *more]
        process = Process(folder / f"{role}-{number}", python("-m", "scripts.benches.download", *words), host)
        processes.append(process)
        return process

    with tempfile.TemporaryDirectory(prefix="decentral-download-") as name, links:
        folder = Path(name)
        try:
            donors = [begin(number, "give") for number in range(NUM_DONORS)]
            addresses = [donor.wait_for(donor.lines, "a donor's address")[0] for donor in donors]
            with Sampler(links.counters) as sampler:
                joiner = begin(NUM_DONORS, "take", *addresses)
                joiner.wait_for(joiner.lines, "the joiner")
                began = time.monotonic()
                for share, donor in zip(deaths, donors, strict=False):
                    time.sleep(max(0.0, began + share * line_s - time.monotonic()))
                    donor.end()
                found: Record = joiner.result(_TIMEOUT_S)
        finally:
            for process in processes:
                process.end()
        samples = [each for each in sampler.samples if each.time_s >= found["began_s"]]
        moved = carried(samples, NUM_DONORS, "down").bytes
    return {"seconds": found["ended_s"] - found["began_s"], "bytes": found["bytes"], "link_bytes": moved}


def failed(case: Record) -> bool:
    """Whether a case is not what it must be."""
    return bool(case["bytes_share"] > MOST_BYTES or case["time_share"] > MOST_TIME)


def _cells(case: Record) -> list[str]:
    figures = [f"{case['megabytes']:g}", f"{case['seconds']:.1f}", f"{case['time_share']:.3f}"]
    figures += [f"{case['bytes_share']:.4f}", f"{case['link_bytes'] / case['state_bytes']:.4f}"]
    return [case["where"], str(case["deaths"]), *figures, "**missed**" if failed(case) else "met"]


def page(record: Record) -> str:
    """The report for people."""
    columns = "donors that die: | MB: | seconds: | time: | bytes: | on the line: | required"
    return f"""# What a download costs

Written by `scripts/bench download`; the raw record is `download.json`. A joiner on a line of {RATE / 1e6:g} Mbit/s both
ways downloads a state (anchor and momentum, {NUM_FRAGMENTS} fragments) from {NUM_DONORS} donors on lines of
{DONORS_RATE / 1e6:g} Mbit/s that all have it; the round trip is {4000 * DELAY_S:g} ms. Where two donors die, they are
killed after {" and ".join(f"{share:.0%}" for share in DEATHS)} of the time that the line needs for the state.

* **simulated**: the production code on the simulator's network, in virtual time. A message that a dead donor had not
  sent whole is not on the line; neither are headers of TCP.
* **processes**: real ones, each with its libp2p daemon in a network namespace of its own, behind
  [emulated links](../link-emulator.md); the rate is that of IP packets, of which TCP leaves 96.5 %.
* **time**: from the first question to the checked state, over what the line needs for the bytes of the state; required
  is {MOST_TIME:g} at most.
* **bytes**: of pieces that came whole, over those of the state; required is {MOST_BYTES:g} at most. **on the line**:
  everything that came to the joiner, heads, headers and parts of pieces whose donor died included.

{table(f"where | {columns}", map(_cells, record["cases"]))}

{signature(record)}"""


def measure(options: argparse.Namespace) -> list[Record]:
    """All cases, each printed when it is there."""
    cases: list[Record] = []
    kinds = [("simulated", virtual, options.megabytes)]
    if options.real:
        kinds.append(("processes", real, options.real_megabytes))
    for where, once, megabytes in kinds:
        for deaths in ((), DEATHS):
            state_bytes = 8 * sum(numels(megabytes))
            case = {"where": where, "deaths": len(deaths), "megabytes": megabytes, "state_bytes": state_bytes}
            case |= once(megabytes, deaths)
            case["bytes_share"] = case["bytes"] / state_bytes
            case["time_share"] = case["seconds"] / (8 * state_bytes / RATE)
            cases.append(case)
            print(row(*_cells(case)), flush=True)
    return cases


def main() -> int:
    """Measure and write, or be a host."""
    if sys.argv[1:2] == ["--inside"]:
        _inside(*sys.argv[2:])
        return 0
    parser = Parser(SCRIPT, __doc__, "download")
    parser.add_argument("--megabytes", type=float, default=500.0, help="of the state, in virtual time")
    parser.add_argument("--real-megabytes", type=float, default=50.0, help="of the state, with processes")
    parser.add_argument("--no-real", dest="real", action="store_false", help="only in virtual time")
    options = parser.parse_args()
    record = {"cases": measure(options), **stamp(SCRIPT)}
    write(options.out, record, page(record))
    return int(any(map(failed, record["cases"])))


if __name__ == "__main__":
    enter(main)
