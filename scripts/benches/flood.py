"""What a member that floods costs the others: two real workers that train, and calls from the bench in a member's name.

Each kind of flood lasts for a while, after and before as long without; the pace of both workers in it (tokens a second
of wall time, from their journals) against theirs in the quiet before, and the processor time that the flooded worker
and its daemon take. Inner steps sleep, so that a pace is not a matter of who gets the processor; the flooder is nice.

    scripts/bench flood [--seconds 20] [--only KIND]

writes docs/benchmarks/flood.json and flood.md; the section "Findings" is written by hand and kept.
"""

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from decentral.adapters.daemon import DaemonError, DaemonGone
from decentral.adapters.invitation import Invitation
from decentral.adapters.node import Node, NodeOptions, open_node
from decentral.adapters.transport import PROTOCOL
from decentral.adapters.wire import RequestHead
from decentral.run.access import Access
from decentral.types import PeerId
from scripts.benches.chaos_gossip import pace
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.costs import processor_s
from scripts.benches.lib.links import LOOPBACK
from scripts.benches.lib.processes import Swarm, Worker
from scripts.benches.lib.report import Record, kept, places, stamp, write
from scripts.benches.lib.tables import table

SCRIPT = "flood"
#: Streams that the flooder has open at a time.
AT_ONCE = 200
SETTINGS = {
    "task.factory": "tests.process.paced:build",
    "task.settings.numel": 20_000,
    "task.settings.step_s": 0.05,
    "task.settings.hurry": "/nonexistent/hurry",
    "method.name": "diloco",
    "method.inner_steps": 10,
    "run.rounds": 100_000,
    "eval_every_rounds": 1_000_000,
}
#: By name: the method that is called, and with what; of ``open`` nothing is sent.
FLOODS: Mapping[str, tuple[str, bytes]] = {
    "hello": ("hello", b""),
    "signs of life": ("presence", b"\x90"),
    "broken messages": ("convene", b"x" * 200),
    "noise of 300 kB": ("shard", b"x" * 300_000),
    "no such method": ("nonsense", b""),
    "open": ("", b""),
}
_CALL_S = 20.0


async def flood(node: Node, peer: PeerId, method: str, request: bytes, seconds: float) -> int:
    """Call as fast as that goes; how many calls had an answer."""
    until, answered = time.monotonic() + seconds, 0
    data = RequestHead(method, len(request)).packed() + request if method else b""

    async def caller() -> None:
        nonlocal answered
        while time.monotonic() < until:
            with contextlib.suppress(DaemonError, DaemonGone, OSError):  # a timeout is an OSError
                reader, writer = await node.daemon.open_stream(peer, PROTOCOL)
                try:
                    writer.write(data)
                    async with asyncio.timeout(min(_CALL_S, max(0.1, until - time.monotonic()))):
                        got = await reader.read(1)
                    answered += len(got)
                finally:
                    writer.transport.abort()

    await asyncio.gather(*[caller() for _ in range(AT_ONCE)])
    return answered


@contextlib.asynccontextmanager
async def member(address: str) -> AsyncIterator[Node]:
    """A node that the swarm lets in."""
    place, _, token = address.partition("#")
    held = Access(Invitation.parse(token)).held()
    node = await open_node(NodeOptions(host="127.0.0.1", initial_peers=(place,), held=held))
    try:
        yield node
    finally:
        await node.close()


def resident_bytes(worker: Worker) -> int:
    """Memory that the worker takes, without its daemon."""
    return int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(swarm: Swarm, node: Node, kinds: list[str], seconds: float) -> list[Record]:
    """Quiet and flood in turns."""
    victim, other = swarm.workers
    peer = PeerId(victim.peer)
    await node.transport.call(peer, "hello", b"", timeout_s=20, max_reply_bytes=1 << 24)

    async def window(work: Callable[[], Awaitable[int]]) -> Record:
        began, processor = time.time(), processor_s(victim.pid)
        answered = await work()
        ended = time.time()
        took_s = ended - began
        return {
            "answered_per_s": answered / took_s,
            "cores": (processor_s(victim.pid) - processor) / took_s,
            "resident_bytes": resident_bytes(victim),
            "paces": [pace(worker, began, ended) for worker in (victim, other)],
        }

    async def quiet() -> int:
        await asyncio.sleep(seconds)
        return 0

    records = []
    for kind in kinds:
        before = await window(quiet)
        during = await window(lambda: flood(node, peer, *FLOODS[kind], seconds))  # noqa: B023
        await asyncio.sleep(seconds / 4)
        after = await window(quiet)
        usual = [statistics.mean(pair) for pair in zip(before["paces"], after["paces"], strict=True)]
        records.append(
            {
                "flood": kind,
                "seconds": seconds,
                "kept": [own / quiet_ for own, quiet_ in zip(during["paces"], usual, strict=True)],
                "answered_per_s": during["answered_per_s"],
                "cores_quiet": before["cores"],
                "cores": during["cores"],
                "grown_bytes": during["resident_bytes"] - before["resident_bytes"],
                "noise": max(a / b - 1 for a, b in zip(before["paces"], after["paces"], strict=True)),
                **stamp(SCRIPT),
            }
        )
        print(records[-1], flush=True)
    return records


def page(out: Path, records: list[Record]) -> str:
    """The table."""
    columns = (
        "flood | calls a second that were answered: | pace kept by the flooded worker: | by the other: "
        "| cores of the flooded, quiet: | flooded: | memory grew by (MB):"
    )
    rows = [
        [
            run["flood"],
            f"{run['answered_per_s']:.0f}",
            *(f"{share:.0%}" for share in run["kept"]),
            f"{run['cores_quiet']:.2f}",
            f"{run['cores']:.2f}",
            f"{run['grown_bytes'] / 1e6:.0f}",
        ]
        for run in records
    ]
    return "\n".join(
        [_HEAD, kept(out), "## Measured\n", table(columns, rows), *(f"\n{place}\n" for place in places(records))]
    )


_HEAD = f"""# What a flood costs

Written by `scripts/bench flood`; the raw numbers are in `flood.json`. Two workers of a private swarm train at a set
pace; a third party, which the swarm has admitted, has {AT_ONCE} streams open to one of them and calls as fast as that
goes. All of it is on one machine, whose cores the flooder takes as well. `open`: streams on which nothing comes.
How a peer's budget works: [security](../trust.md#security).
"""


def main() -> None:
    """Run, then write."""
    parser = Parser(SCRIPT, __doc__, "flood")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.repeated("--only", default=list(FLOODS), metavar="KIND")
    options = parser.parse_args()

    async def run(swarm: Swarm) -> list[Record]:
        async with member(swarm.workers[0].address()) as node:
            return await measure(swarm, node, options.only, options.seconds)

    with tempfile.TemporaryDirectory() as folder, Swarm(Path(folder), [LOOPBACK] * 2) as swarm:
        swarm.begin(SETTINGS)
        swarm.until(lambda: all(len(worker.mixed()) > 5 for worker in swarm.workers), "rounds of both")
        os.nice(19)
        records = asyncio.run(run(swarm))
    write(options.out, records, page(options.out, records))


if __name__ == "__main__":
    enter(main)
