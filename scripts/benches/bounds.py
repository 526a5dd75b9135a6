"""What bounds cost a swarm in which nobody lies: who is bounded, whether a bit changes, bytes, and time in a reducer.

    scripts/bench bounds [--method sparseloco] [--seed 0] ... [--no-price]
    scripts/bench bounds --only-write         # writes the page anew from the raw numbers

Each method is played with its defaults and with ``method.bound = 0`` on the simulated network, with the language model.
Runs that OUT.json has are not run again. Appends to it and writes OUT.md anew.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack, unpack
from decentral.exchange.shard import Entry, ShardContributions
from decentral.sim.world import peer_id
from scripts.benches.attacks import MODEL, ROUNDS, STEPS, WORKERS, named
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, places, read, stamp, write
from scripts.benches.lib.stats import grouped
from scripts.benches.lib.tables import table
from scripts.benches.lib.training import Play, configured, with_rounds

SCRIPT = "bounds"
METHODS: Mapping[str, tuple[str, ...]] = {
    "local-sgd": ("method.name=local-sgd",),
    "diloco": ("method.name=diloco", f"method.inner_steps={STEPS}"),
    "diloco, sign": ("method.name=diloco", f"method.inner_steps={STEPS}", "method.codec=sign-b1024"),
    "diloco, ef21": ("method.name=diloco", f"method.inner_steps={STEPS}", "method.feedback=ef21"),
    "streaming": ("method.name=streaming", f"method.inner_steps={STEPS}"),
    "eager": ("method.name=eager", f"method.inner_steps={STEPS}"),
    "sparseloco": ("method.name=sparseloco", f"method.inner_steps={STEPS}"),
    "noloco": ("method.name=noloco", f"method.inner_steps={STEPS}"),
}
#: Of the price: values of a shard, members, and how often it is taken.
NUMEL, MEMBERS, TIMES = 1 << 20, 8, 9


def measure(method: str, seed: int, *, bounded: bool) -> Record:
    """One run of honest workers."""
    settings = (*MODEL, *METHODS[method], *(() if bounded else ("method.bound=0",)))
    play = Play(with_rounds(configured(settings, seed=seed, workers=WORKERS), ROUNDS))
    play.run()
    outcomes = list(play.outcomes.values())
    return {
        "method": method,
        "seed": seed,
        "bounded": bounded,
        "digests": sorted({outcome.digest for outcome in outcomes}),
        "loss": play.loss(outcomes[0].anchors),
        "restrained": named(play.journals, ())["false_alarms"],
        "rounds": sum(len(member.mixed()) for member in play.members.values()),
        "sent_bytes_a_round": play.members[peer_id(1)].sent_a_round(),
        "seconds": play.seconds,
        "settings": list(settings),
        **stamp(SCRIPT),
    }


def price() -> Record:
    """Processor time that a reducer spends on a shard, with and without bounds; the least of several."""
    torch.set_num_threads(1)
    codec = make_codec("int8-b128")
    common_S = torch.randn(NUMEL)
    frames = [pack(codec, common_S + torch.randn(NUMEL)) for _ in range(MEMBERS)]

    def reduce(factor: float) -> None:
        contributions = ShardContributions([peer_id(number) for number in range(MEMBERS)])
        for number, frame in enumerate(frames):
            contributions.enter(peer_id(number), Entry(1.0, unpack(frame, codec, NUMEL)))
        if factor:
            contributions, _ = contributions.bounded(factor)
        mean_S = contributions.mean()
        assert mean_S is not None
        pack(codec, mean_S)

    return {
        "price": True,
        "numel": NUMEL,
        "members": MEMBERS,
        "without_s": least(lambda: reduce(0.0)),
        "with_s": least(lambda: reduce(2.5)),
        "contribution_s": least(lambda: unpack(pack(codec, common_S), codec, NUMEL)),
        **stamp(SCRIPT),
    }


def least(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    best = math.inf
    for _ in range(TIMES):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def page(records: Sequence[Record]) -> str:
    """Honest runs, and the price."""
    runs = [record for record in records if "method" in record]
    rows = []
    for method, own in grouped(sorted(runs, key=lambda run: list(METHODS).index(run["method"])), by_method).items():
        on, off = ({run["seed"]: run for run in own if run["bounded"] is bounded} for bounded in (True, False))
        both = sorted(set(on) & set(off))
        same = sum(on[seed]["digests"] == off[seed]["digests"] for seed in both)
        gap = [on[seed]["loss"] / off[seed]["loss"] - 1 for seed in both]
        size = [on[seed]["sent_bytes_a_round"] / off[seed]["sent_bytes_a_round"] for seed in both]
        total, named_in = sum(run["rounds"] for run in on.values()), sum(run["restrained"] for run in on.values())
        cells = [method, len(on), f"{named_in} in {total:,}", f"{same} of {len(both)}"]
        cells += [f"{min(gap):+.2%} to {max(gap):+.2%}", f"{max(size):.4f}"] if both else ["", ""]
        rows.append(cells)
    parts = [_HEAD, table("method | seeds: | bounded: | same bits | loss | bytes:", rows), ""]
    for found in records:
        if found.get("price"):
            ratio = found["with_s"] / found["without_s"]
            parts.append(
                f"A shard of {found['numel']:,} values from {found['members']} members in int8: decoding, mean and "
                f"encoding take {found['without_s'] * 1e3:.0f} ms of processor time without bounds, "
                f"{found['with_s'] * 1e3:.0f} ms with them (x {ratio:.2f}); a member spends "
                f"{found['contribution_s'] * 1e3:.0f} ms on encoding and decoding its own part of a shard as long.\n"
            )
    return "\n".join([*parts, *places(records)]) + "\n"


def by_method(run: Record) -> str:
    """What a row is of."""
    return str(run["method"])


_HEAD = f"""# What bounds cost when all are honest

Written by `scripts/bench bounds`; the raw numbers are in `bounds.json`. {WORKERS} honest workers, {ROUNDS} rounds
of {STEPS} inner steps (of local-sgd three), the language model on the simulated network, each method with its
defaults and with `method.bound = 0`. **bounded**: contributions that were cut down or left out, as any worker
journalled it, in so many rounds of a worker. **same bits**: runs that end with the same anchors, to the bit, as
without bounds. **loss**, **bytes**: with bounds against without, of the same seed; bytes sent by a worker in a
round, the most of all seeds.
"""


def main() -> None:
    """Run what is missing, then write the page."""
    parser = Parser(SCRIPT, __doc__, "bounds")
    parser.repeated("--method", default=list(METHODS), metavar="NAME")
    parser.repeated("--seed", int, [0, 1, 2])
    parser.add_argument("--no-price", action="store_true")
    parser.add_argument("--only-write", action="store_true")
    options = parser.parse_args()
    records: list[Record] = read(options.out, [])
    if not (options.only_write or options.no_price or any(record.get("price") for record in records)):
        records.append(price())
        write(options.out, records, page(records))
    there = {(run["method"], run["seed"], run["bounded"]) for run in records if "method" in run}
    asked = itertools.product(options.seed, options.method, (True, False)) if not options.only_write else ()
    for seed, method, bounded in asked:
        if (method, seed, bounded) not in there:
            records.append(measure(method, seed, bounded=bounded))
            print(
                "{method} {seed} {bounded}: {restrained} {loss:.4f} {seconds:.0f} s".format_map(records[-1]), flush=True
            )
            write(options.out, records, page(records))
    write(options.out, records, page(records))


if __name__ == "__main__":
    enter(main)
