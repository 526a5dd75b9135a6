"""Bytes of a round on the wire: predicted from the codec and the documented framing, and measured in two ways.

Four workers train a toy of a given size in a network namespace of their own, so that its loopback carries nothing else.
What they send is taken from the transport's own counters (in the journals) and from the interface, which also sees
libp2p's TLS and yamux and the TCP and IP headers; from the latter the same swarm's traffic without rounds is taken off.

    scripts/bench wire --numel 1000000 --numel 4000000 --codec int8-b128 --codec fp32

writes docs/benchmarks/wire.json and, from it, docs/benchmarks/wire.md. Needs Linux with unshare and ip, and either root
or user namespaces. Exit code 1 if a case is further off than it may be.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from decentral.adapters.wire import RequestHead, Status, reply_head
from decentral.codecs.codec import make_codec
from decentral.codecs.frame import framed_nbytes
from decentral.exchange.allreduce import messages
from decentral.exchange.allreduce.leader import CONVENE
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.allreduce.reducer import SHARD
from decentral.exchange.wire import Wire
from decentral.swarm.message import to_wire
from decentral.types import PeerId, SyncKey
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.costs import sent_bytes
from scripts.benches.lib.links import LOOPBACK
from scripts.benches.lib.processes import Event, Swarm, python
from scripts.benches.lib.report import Record, signature, stamp, write
from scripts.benches.lib.tables import row, table

SCRIPT = "wire"
WORKERS = 4
#: Measured may differ from predicted by this share at most.
TOLERANCE = 0.02
DEADLINE_S = 300.0
#: Rounds long enough that the interface can be read between two exchanges, and few signs of life among them.
STEP_VALUES = 40_000_000
BEAT_S = 10.0


def predict(event: Event, wire: Wire) -> tuple[Counter[PeerId], int]:
    """What the members of a round send, from the members and the round that its journal event names.

    Returns:
        Bytes by member, and of codecs' content among them.
    """
    members = tuple(PeerId(member) for member in event["members"])
    key, others = SyncKey(event["round"], event["fragment"]), len(members) - 1
    participants = Participants(key, members[0], event["round"], event["digest"], members)
    packed = to_wire(participants)
    sent: Counter[PeerId] = Counter()
    content = 0
    for part in wire.parts(participants.key, participants.members):
        content += others * (wire.codec.nbytes(part.numel) + wire.mean_codec.nbytes(part.numel))
        frame, mean = (bytes(framed_nbytes(codec, part.numel)) for codec in (wire.codec, wire.mean_codec))
        request = _request(SHARD, to_wire(messages.Shard(packed, part.index, 1.0, frame)))
        sent[part.reducer] += others * _reply(to_wire(messages.Mean.of(range(len(members)), mean)))
        for member in members:
            sent[member] += request if member != part.reducer else 0
    call = _request(CONVENE, to_wire(messages.Convene(key, participants.base, event["round"], ())))
    answer = messages.ConveneReply(messages.Answer.PARTICIPANTS, packed)
    sent[participants.leader] += others * _reply(to_wire(answer))
    for member in members[1:]:
        sent[member] += call
    return sent, content


def _request(method: str, body: bytes) -> int:
    return len(RequestHead(method, len(body)).packed()) + len(body)


def _reply(body: bytes) -> int:
    return len(reply_head(Status.OK, len(body))) + len(body)


@contextmanager
def toys(folder: Path, numel: int, codec: str, inner_steps: int) -> Iterator[Swarm]:
    """Four workers on the toy task, from their start to their end.

    Args:
        folder: new.
        numel: size of the toy.
        codec: for both directions.
        inner_steps: of a round.
    """
    settings = {
        "task.factory": "decentral.workers.toy:build",
        "task.settings.numel": numel,
        "task.settings.num_layers": 4,
        "method.inner_steps": inner_steps,
        "method.codec": codec,
        "method.mean_codec": codec,
        "run.rounds": 100_000,
        "eval_every_rounds": 1_000_000,
        "timing.beat_s": BEAT_S,
        "timing.ttl_s": 6 * BEAT_S,
    }
    with Swarm(folder, [LOOPBACK] * WORKERS) as swarm:
        swarm.begin(settings)
        yield swarm


def mixed_by_all(swarm: Swarm) -> list[dict[int, Event]]:
    """Of every worker, the rounds that it mixed with all others."""
    return [{e["round"]: e for e in worker.mixed() if len(e["members"]) == WORKERS} for worker in swarm.workers]


def reach(swarm: Swarm, round_: int) -> int:
    """Wait until all have mixed a round from ``round_`` on; which."""

    def last() -> int:
        return max(set.intersection(*map(set, mixed_by_all(swarm))), default=-1)

    swarm.until(lambda: last() >= round_, f"round {round_} of everybody", DEADLINE_S)
    return last()


def measure(folder: Path, numel: int, codec: str, rounds: int, idle_bytes_per_s: float) -> Record:
    """One case: predicted, counted by the transports, seen by the interface."""
    wire = Wire((numel,), make_codec(codec), make_codec(codec))
    with toys(folder, numel, codec, max(10, STEP_VALUES // numel)) as swarm:
        # The round after the first with everybody, so that nobody is still busy with joining.
        first = reach(swarm, reach(swarm, 0) + 1)
        seen, began = sent_bytes(), time.monotonic()
        last = reach(swarm, first + rounds)
        seen, seconds = sent_bytes() - seen, time.monotonic() - began
        mixed = mixed_by_all(swarm)
    events = [mixed[0].get(round_) for round_ in range(first + 1, last + 1)]
    if None in events:
        raise BenchError(f"not all rounds from {first} to {last} had all members; try again on a quieter machine")
    predicted = [predict(event, wire) for event in events if event]
    total = sum(sum(sent.values()) for sent, _ in predicted)
    counted = sum(worker[last]["sent_bytes"] - worker[first]["sent_bytes"] for worker in mixed)
    on_wire = seen - idle_bytes_per_s * seconds
    num_rounds = last - first
    return {
        "numel": numel,
        "codec": codec,
        "rounds": num_rounds,
        "seconds": round(seconds, 1),
        "payload_bytes": sum(content for _, content in predicted) / num_rounds,
        "predicted_bytes": total / num_rounds,
        "counted_bytes": counted / num_rounds,
        "interface_bytes": on_wire / num_rounds,
        "counted_to_predicted": counted / total - 1,
        "interface_to_predicted": on_wire / total - 1,
    }


def idle(folder: Path, seconds: float) -> float:
    """Bytes per second of a swarm of the same timing between two rounds."""
    with toys(folder, 100_000, "fp32", 1_000_000):
        # Everybody has announced itself and found the others by now; what remains are signs of life.
        time.sleep(2 * BEAT_S)
        seen, began = sent_bytes(), time.monotonic()
        time.sleep(seconds)
        return (sent_bytes() - seen) / (time.monotonic() - began)


def inside(options: argparse.Namespace) -> Record:
    """Everything, within the namespace."""
    with tempfile.TemporaryDirectory(prefix="decentral-wire-") as folder:
        baseline = idle(Path(folder, "idle"), options.idle_s)
        print(f"without rounds {baseline:,.0f} B/s", flush=True)
        cases = []
        for numel in options.numel:
            for codec in options.codec:
                cases.append(measure(Path(folder, f"{numel}-{codec}"), numel, codec, options.rounds, baseline))
                print(row(*_cells(cases[-1])), flush=True)
    return {"workers": WORKERS, "idle_bytes_per_s": baseline, "cases": cases, **stamp(SCRIPT)}


_COLUMNS = "values: | codec | rounds: | payload (MB): | predicted (MB): | counted (MB): | off: | interface (MB): | off:"


def _cells(case: Record) -> list[object]:
    mb = {key: f"{case[f'{key}_bytes'] / 1e6:.3f}" for key in ("payload", "predicted", "counted", "interface")}
    off = {key: f"{case[f'{key}_to_predicted']:+.2%}" for key in ("counted", "interface")}
    known = [f"{case['numel']:,}", case["codec"], case["rounds"], mb["payload"], mb["predicted"]]
    return [*known, mb["counted"], off["counted"], mb["interface"], off["interface"]]


def page(report: Record) -> str:
    """The report for people."""
    return f"""# Bytes of a round on the wire

Written by `scripts/bench wire`; the raw record is `wire.json`. {report["workers"]} workers on the loopback of a network
namespace of their own; bytes of one round, sent by all workers together, on average over the rounds measured.

* **payload**: `Codec.nbytes` of the shards and means that leave a machine: with n workers, n - 1 contributions to and
  n - 1 means of each of n shards.
* **predicted**: with the frames (40 bytes each), the messages of `exchange/allreduce/messages.py` around them (the
  participants, indices, weights), the call, and the heads of requests and replies (`adapters/wire.py`).
* **counted**: the transports' own counters, signs of life included. A mean that is still on its way to others when its
  reducer's round ends counts in the next round: a part of a shard at either end of the time measured.
* **interface**: bytes of the loopback, with libp2p's TLS and yamux, TCP and IP headers and acknowledgements; the
  traffic of the same swarm without rounds ({report["idle_bytes_per_s"]:,.0f} B/s: signs of life, the directory) is
  taken off.

{table(_COLUMNS, map(_cells, report["cases"]))}

The loopback's packets hold up to 64 KiB. On Ethernet with packets of 1500 bytes, the 52 bytes of TCP and IP headers
come with every 1448 bytes instead, which adds 3.6 %, and Ethernet's own 38 bytes 2.6 % more: that is every program's
price, and not in the table. Signs of life went every {BEAT_S:g} s here; with the default of 1.5 s there are
about seven times as many.

{signature(report)}"""


def main() -> int:
    """Enter the namespace, measure, write."""
    parser = Parser(SCRIPT, __doc__, "wire")
    parser.repeated("--numel", int, [1_000_000, 4_000_000], help="values of the model; repeatable")
    parser.repeated("--codec", default=["int8-b128", "fp32"], help="repeatable")
    parser.add_argument("--rounds", type=int, default=8, help="to measure in each case")
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long to watch the swarm without rounds")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        unshare = ["unshare", "-n" if os.geteuid() == 0 else "-rn"]
        again = python("-m", "scripts.benches.wire", *sys.argv[1:], "--inside")
        return subprocess.run([*unshare, *again], check=False).returncode
    sys.argv.remove("--inside")  # It is not part of the command that the page names.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    report = inside(options)
    write(options.out, report, page(report))
    off = [case[key] for case in report["cases"] for key in ("counted_to_predicted", "interface_to_predicted")]
    return int(any(abs(share) > TOLERANCE for share in off))


if __name__ == "__main__":
    enter(main)
