"""How much of its time a worker spends on inner steps when the swarm is on home links.

Two real workers, each in a network namespace of its own behind an emulated link and with a core of its own for itself
and its daemon, train the language model task: with streaming and overlap, with blocking rounds, and data-parallel over
gloo; and, as the reference of infinitely fast links, each for itself. All have the same links.

    scripts/bench utilisation

takes ten minutes and writes docs/benchmarks/utilisation.json, .md and .png after each of them; the section "Findings"
is written by hand and kept. Exit code 1 if streaming does not compute for the share of time that it must. Needs what
docs/link-emulator.md says, and two cores.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decentral.config.resolve import resolve_task
from decentral.config.settings import load
from decentral.workers.lm.settings import read_settings
from scripts.benches.lib.command import BenchError, Parser, enter, set_words
from scripts.benches.lib.costs import Spent
from scripts.benches.lib.links import Counters, Host, Link, Links, Sampler, carried, during, emulation
from scripts.benches.lib.plots import figure
from scripts.benches.lib.processes import Event, Process, Swarm, python
from scripts.benches.lib.report import Record, kept, load_average, signature, stamp, write
from scripts.benches.lib.tables import row, table

SCRIPT = "utilisation"
WORKERS = 2
#: Share of wall time in inner steps that streaming must reach.
REQUIRED = 0.98
LINK = Link(up_bits_per_s=50e6, down_bits_per_s=50e6, delay_s=0.0125)
#: 11.2 million parameters, and a batch so small that a step takes a tenth of a second.
TASK = {
    "task.settings.model.d_model": 320,
    "task.settings.model.num_layers": 9,
    "task.settings.model.context": 64,
    "task.settings.batch_sequences": 1,
    "task.settings.val_batches": 1,
}
_TIMEOUT_S = 900.0
_PORT = 29500


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    settings: tuple[str, ...] = ()
    apart: bool = False
    """Each for itself."""
    required: float | None = None
    """Compute share."""


ALONE = "no network"
DATA_PARALLEL = "data-parallel fp32"
VARIANTS = (
    Variant(ALONE, ("method.name=diloco",), apart=True),
    Variant("streaming, 1 step", ("method.name=streaming",), required=REQUIRED),
    Variant("streaming, auto", ("method.name=streaming", "method.delay_steps=auto"), required=REQUIRED),
    Variant("diloco int8", ("method.name=diloco", "method.codec=int8-b128")),
    Variant("diloco fp32", ("method.name=diloco", "method.codec=fp32")),
    Variant(DATA_PARALLEL),
)


def train(options: argparse.Namespace, variant: Variant, folder: Path) -> Record:
    """Real workers, from the end of the first round's steps to the end of the last one's."""
    first, last = options.inner_steps, (options.rounds + 1) * options.inner_steps
    settings: dict[str, Any] = {
        **TASK,
        "run.name": "utilisation",
        # They are ended when all is measured: who is done first must not leave the others alone.
        "run.rounds": 10_000,
        "run.min_workers": 1 if variant.apart else WORKERS,
        "method.inner_steps": options.inner_steps,
        "eval_every_rounds": 1_000_000,
        **dict(assignment.split("=", 1) for assignment in (*variant.settings, *options.set)),
    }
    offset_s = time.time() - time.monotonic()
    with ExitStack() as stack:
        links = stack.enter_context(Links([LINK] * WORKERS))
        swarm = stack.enter_context(Swarm(folder, on_cores(links)))
        sampler = stack.enter_context(Sampler(links.counters))
        swarm.begin(settings, apart=variant.apart)
        spending = stack.enter_context(Sampler(lambda: [Spent.of(worker.pid) for worker in swarm.workers]))

        def stretches() -> list[list[Event]]:
            return [worker.named("stretch_done") for worker in swarm.workers]

        swarm.until(lambda: all(w and w[-1]["step"] >= last for w in stretches()), "the last round", _TIMEOUT_S)
        said = {} if variant.apart else swarm.status(swarm.workers[0])
        laps = [lap(worker, first, last, offset_s) for worker in stretches()]
        aborted = sum(len(worker.named("round_aborted")) for worker in swarm.workers)
        mixed = [len(worker.mixed()) for worker in swarm.workers]
    costs = [cost(spent, lap) for spent, lap in zip(zip(*spending.samples, strict=True), laps, strict=True)]
    keys = ("compute_share", "waiting_share", "transfer_share", "wall_s", "delay_steps", "num_groups")
    return _summary(laps, costs, sampler.samples) | {
        "status": [{key: worker[key] for key in keys} for worker in said["workers"]] if said else None,
        "fragments_mixed": mixed,
        "fragments_aborted": aborted,
    }


def on_cores(links: Links) -> list[Host]:
    """The hosts of all workers, each with a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < WORKERS:
        raise BenchError(f"this bench needs {WORKERS} cores, one for each worker")
    return [host.on_core(core) for host, core in zip(links.hosts, cores, strict=False)]


def lap(stretches: Sequence[Event], first: int, last: int, offset_s: float) -> Record:
    """One worker's time: from the first stretch that ended at step ``first`` or later to that of step ``last``."""
    start, end = (next(i for i, event in enumerate(stretches) if event["step"] >= step) for step in (first, last))
    inside = stretches[start + 1 : end + 1]
    return {
        "began_s": stretches[start]["time"] - offset_s,
        "ended_s": stretches[end]["time"] - offset_s,
        "steps": stretches[end]["step"] - stretches[start]["step"],
        "tokens": sum(event["tokens"] for event in inside),
        "compute_s": sum(event["seconds"] for event in inside),
    }


def cost(spent: Sequence[Spent], lap: Record) -> Record:
    """Processor time of a worker in its lap, by who has spent it: seconds a second."""
    inside = [each for each in spent if lap["began_s"] <= each.time_s <= lap["ended_s"]]
    first, last = inside[0], inside[-1]
    span_s = last.time_s - first.time_s
    return {
        "training": (last.training_s - first.training_s) / span_s,
        "python": (last.python_s - first.python_s) / span_s,
        "daemon": (last.daemon_s - first.daemon_s) / span_s,
    }


def data_parallel(options: argparse.Namespace, folder: Path) -> Record:
    """``lib/ddp.py`` on every host, without the first step."""
    words = [*set_words(TASK), *set_words(options.set), "--steps", str(options.dp_steps + 1)]
    with Links([LINK] * WORKERS) as links, ExitStack() as stack:
        words += ["--master", f"{links.host(0).address}:{_PORT}", "--interface", "link0", "--members", str(WORKERS)]
        members = []
        for rank, host in enumerate(on_cores(links)):
            command = python("-m", "scripts.benches.lib.ddp", *words, "--rank", str(rank))
            members.append(Process(folder / f"member{rank}", command, host))
            stack.callback(members[-1].end)
        pids = [member.popen.pid for member in members]
        with Sampler(links.counters) as sampler, Sampler(lambda: list(map(Spent.of, pids))) as spending:
            for member in members:
                member.result(_TIMEOUT_S)
    laps = []
    for member in members:
        steps = [json.loads(line) for line in member.lines()][1:]
        began_s, ended_s = steps[0]["began_s"], steps[-1]["ended_s"]
        compute_s, tokens = ended_s - began_s, 0
        for step in steps:
            compute_s, tokens = compute_s - step["moving_s"], tokens + step["tokens"]
        lap = {"began_s": began_s, "ended_s": ended_s, "steps": len(steps)}
        laps.append(lap | {"tokens": tokens, "compute_s": compute_s})
    costs = [cost(spent, lap) for spent, lap in zip(zip(*spending.samples, strict=True), laps, strict=True)]
    return _summary(laps, costs, sampler.samples) | {"status": None}


def _summary(laps: Sequence[Record], costs: Sequence[Record], samples: Sequence[Counters]) -> Record:
    """What a run comes to: means over workers, and what was on the links."""
    walls = [lap["ended_s"] - lap["began_s"] for lap in laps]
    began_s, ended_s = min(lap["began_s"] for lap in laps), max(lap["ended_s"] for lap in laps)
    sampled = during(samples, began_s, ended_s)
    steps = statistics.mean(lap["steps"] for lap in laps)
    ways: Record = {}
    for way in ("up", "down"):
        links = [carried(sampled, host, way) for host in range(len(laps))]
        ways[f"{way}_bytes"] = [link.bytes for link in links]
        ways[f"{way}_bytes_per_step"] = statistics.mean(link.bytes for link in links) / steps
        ways[f"{way}_mean_bits_per_s"] = statistics.mean(link.mean_bits_per_s for link in links)
        ways[f"{way}_peak_bits_per_s"] = max(link.peak_bits_per_s for link in links)
    return {
        "seconds": sampled[-1].time_s - sampled[0].time_s,
        "steps": steps,
        "lap_s": statistics.mean(walls),
        "step_s": statistics.mean(lap["compute_s"] / lap["steps"] for lap in laps),
        "compute_share": statistics.mean(lap["compute_s"] / wall for lap, wall in zip(laps, walls, strict=True)),
        "tokens_per_s": sum(lap["tokens"] / wall for lap, wall in zip(laps, walls, strict=True)),
        **ways,
        **emulation(sampled),
        "processor": {name: statistics.mean(cost[name] for cost in costs) for name in costs[0]},
        "load": load_average(),
        "workers": list(laps),
        "uplink_bits_per_s": _series(sampled),
    }


def _series(samples: Sequence[Counters]) -> list[float]:
    """The first host's uplink, second by second."""
    rates: list[float] = []
    start = samples[0]
    for sample in samples:
        if (span_s := sample.time_s - start.time_s) >= 1:
            rates.append(round(8 * (sample.up[0].bytes - start.up[0].bytes) / span_s))
            start = sample
    return rates


def keep(options: argparse.Namespace, cases: Sequence[Record]) -> None:
    """Write everything."""
    stated = [f"{key}={value}" for key, value in TASK.items()]
    task, varied = (resolve_task(load(assignments=each).swarm).task for each in (stated, [*stated, *options.set]))
    record = {
        "link": {"bits_per_s": LINK.up_bits_per_s, "round_trip_s": 4 * LINK.delay_s},
        "inner_steps": options.inner_steps,
        "parameters": read_settings(varied.settings).model.num_parameters,
        "task": task.model_dump(mode="json"),
        "cases": cases,
        **stamp(SCRIPT),
    }
    write(options.out, record, page(options.out, record))
    plot(record["cases"], options.out)


_COLUMNS = (
    " | step (ms): | in inner steps: | by `status`: | tokens/s: | of no network: | kB up a step: | up (Mbit/s): "
    "| up, peak: | down, peak:"
)


def _cells(case: Record) -> list[object]:
    """A row of the table."""
    status, share = case["status"], f"{case['compute_share']:.1%}"
    return [
        case["name"],
        f"{1000 * case['step_s']:.0f}",
        share if case["required"] is None else f"{share} ({'met' if reaches(case) else '**missed**'})",
        f"{statistics.mean(worker['compute_share'] for worker in status):.1%}" if status else "",
        f"{case['tokens_per_s']:.0f}",
        f"{case['of_reference']:.1%}" if case["of_reference"] else "",
        f"{case['up_bytes_per_step'] / 1e3:,.1f}",
        f"{case['up_mean_bits_per_s'] / 1e6:.2f}",
        f"{case['up_peak_bits_per_s'] / 1e6:.1f}",
        f"{case['down_peak_bits_per_s'] / 1e6:.1f}",
    ]


_SPENT_COLUMNS = " | training, a step: | python, a round: | daemon, a round: | emulator, a round: | load average:"


def _spent_cells(record: Record, case: Record) -> list[object]:
    """A row of the table of processor time, in milliseconds."""
    ms_a_step = 1000 * case["lap_s"] / case["steps"]
    ms_a_round = ms_a_step * record["inner_steps"]
    spent = case["processor"]
    others = (spent["python"], spent["daemon"], case["emulator_cpu"] / len(case["workers"]))
    return [
        case["name"],
        f"{ms_a_step * spent['training']:.1f}",
        *(f"{ms_a_round * each:,.0f}" for each in others),
        case["load"],
    ]


def reaches(case: Record) -> bool:
    """Whether a case computes for the share of time that it must."""
    return bool(case["required"] is None or case["compute_share"] >= case["required"])


def page(out: Path, record: Record) -> str:
    """The report for people."""
    mbit, trip_ms = record["link"]["bits_per_s"] / 1e6, 1000 * record["link"]["round_trip_s"]
    verdict = "; ".join(
        f"{case['name']} {case['compute_share']:.1%} ({'met' if reaches(case) else 'missed'})"
        for case in record["cases"]
        if case["required"] is not None
    )
    return f"""# Utilisation on home links

Written by `scripts/bench utilisation`; the raw record is `{out.name}.json`. {WORKERS} real workers, each behind an
[emulated link](../link-emulator.md) of {mbit:g} Mbit/s up and down with a round trip of {trip_ms:g} ms between any two,
and each with one core for itself and its daemon, train a language model of {record["parameters"]:,} parameters; a round
has {record["inner_steps"]} inner steps. The first round is left out.

{kept(out)}
## Measured

![compute share, speed and the uplink over time]({out.name}.png)

{table(_COLUMNS, map(_cells, record["cases"]))}

* **no network**: the same workers, each in a swarm of its own: what infinitely fast links would allow. Its outer
  steps are taken, nothing is sent.
* **in inner steps**: share of wall time, by the journals: seconds of the stretches over seconds between the end of the
  first round's last and that of the last round's last. **by `status`**: what `decentral status` says at the end, since
  training began. At least {REQUIRED:.0%} is required of streaming: {verdict}.
* **of no network**: tokens per second. It also shows what the share in inner steps does not: what encoding, reducing
  and the libp2p daemon take away from training on a worker's only core while it goes on.
* **kB up a step, up, peak**: on the link, with all headers, of one worker on average; peaks are the largest in any
  second of any worker.
* **data-parallel**: `scripts/benches/lib/ddp.py`, the same trainer with one float32 all-reduce by gloo at every step.

## Processor time

Of a worker, in milliseconds, as the kernel counts it. A round is {record["inner_steps"]} inner steps here as above.

{table(_SPENT_COLUMNS, (_spent_cells(record, case) for case in record["cases"]))}

* **training**: the process's main thread. **python**: its other threads, that is encoding, reducing, outer steps (which
  no network has as well) and calls. **daemon**: libp2p's. **emulator**: its share of what forwards the packets, which
  runs before all others on the same cores and is no cost of a worker with a link of its own.

{signature(record)}"""


def plot(cases: Sequence[Record], path: Path) -> None:
    """Shares, and the first worker's uplink over time."""
    with figure(path, 11, 4.2, 2, width_ratios=(2, 3)) as (shares, rates):
        places = range(len(cases))
        computing, speeds = [case["compute_share"] for case in cases], [case["of_reference"] or 0 for case in cases]
        shares.barh([place - 0.2 for place in places], computing, 0.38, label="in inner steps")
        shares.barh([place + 0.2 for place in places], speeds, 0.38, label="tokens/s of no network")
        shares.set_yticks(list(places), [case["name"] for case in cases])
        shares.invert_yaxis()
        shares.set_xlim(0, 1.12)
        shares.axvline(REQUIRED, color="0.6", linestyle=":", linewidth=1)
        shares.legend(loc="lower right", fontsize=8)
        shares.set_xlabel("share")
        sending = [case for case in cases if case["name"] != ALONE]
        for number, case in enumerate(sending):
            series, base = [rate / 1e6 for rate in case["uplink_bits_per_s"]], (len(sending) - 1 - number) * 60
            rates.fill_between(range(len(series)), base, [base + rate for rate in series], step="post", linewidth=0)
            rates.text(1, base + 51, case["name"], fontsize=8)
            rates.axhline(base, color="0.7", linewidth=0.5)
        rates.set_yticks([])
        rates.set_xlim(left=0)
        rates.set_ylim(-2, 60 * max(1, len(sending)))
        rates.set_xlabel("seconds since the end of the first round's steps")
        rates.set_title("one worker's uplink; full height 50 Mbit/s", fontsize=9)


def main() -> int:
    """Measure and write."""
    parser = Parser(SCRIPT, __doc__, "utilisation")
    names = ", ".join(variant.name for variant in VARIANTS)
    parser.repeated("--only", metavar="NAME", help=f"repeatable; of {names}")
    parser.add_argument("--rounds", type=int, default=3, help="to measure, after the first")
    parser.add_argument("--inner-steps", type=int, default=100)
    parser.add_argument("--dp-steps", type=int, default=8, help="of data-parallel training, after the first")
    parser.settings("as of decentral worker")
    options = parser.parse_args()
    cases: list[Record] = []
    for variant in [variant for variant in VARIANTS if not options.only or variant.name in options.only]:
        with tempfile.TemporaryDirectory(prefix="decentral-utilisation-") as folder:
            if variant.name == DATA_PARALLEL:
                measured = data_parallel(options, Path(folder))
            else:
                measured = train(options, variant, Path(folder))
        case = {"name": variant.name, "required": variant.required, **measured}
        reference = next((other["tokens_per_s"] for other in (*cases, case) if other["name"] == ALONE), None)
        case["of_reference"] = reference and case["tokens_per_s"] / reference
        cases.append(case)
        print(row(*_cells(case)), flush=True)
        keep(options, cases)
    return int(not all(map(reaches, cases)))


if __name__ == "__main__":
    enter(main)
