"""How busy a pipeline of four stages is over links of 100 Mbit/s and 25 ms one way.

Five real workers, the head and one for each stage, in network namespaces of their own, behind emulated links and, in
turns, behind links without limits. The blocks of the model sleep for set times instead of computing
(``lib/sleeping.py``), since five machines' work does not fit on one machine's cores; all else is real.

    scripts/bench pipeline

takes half an hour and writes docs/benchmarks/pipeline.json and .md after every run; ``--only NAME`` takes a part of
it. Needs what docs/link-emulator.md says. Workers get a higher priority than other work on the machine once they train.
"""

import functools
import itertools
import math
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.links import Link, Links, Sampler, emulation
from scripts.benches.lib.processes import Event, Swarm
from scripts.benches.lib.report import Record, load_average, stamp
from scripts.benches.pipeline_page import keep
from scripts.benches.pipeline_sim import Case, predicted_s, simulate

SCRIPT = "pipeline"
_TIMEOUT_S = 300.0
_NICE = -10
#: Of what ``decentral status`` says of a worker.
_SHOWN = ("stages", "compute_share", "activation_bytes", "queue", "microbatch_s")
#: Its blocks compute; the head and stages share two cores.
GPT = {
    "task.settings.model.d_model": 128,
    "task.settings.model.num_layers": 4,
    "task.settings.model.context": 128,
    "task.settings.batch_sequences": 32,
    "task.settings.val_batches": 1,
}


@dataclass(frozen=True)
class Run:
    """A case by name, with sleeping blocks or with a language model."""

    name: str
    case: Case
    gpt: bool = False
    paired: bool = True
    """Whether it is to be measured without limits as well."""


BASE = Case(microbatches=16)
CODECS = ("bf16", "int8-b128", "fp32")
RUNS = (
    Run("M 8", replace(BASE, microbatches=8)),
    Run("M 16", BASE),
    Run("M 32", replace(BASE, microbatches=32, batches=4)),
    Run("window 1", replace(BASE, in_flight=1, batches=2)),
    Run("window 4", replace(BASE, in_flight=4, batches=3), paired=False),
    Run("window 8", replace(BASE, in_flight=8), paired=False),
    Run("int8", replace(BASE, codec="int8-b128"), paired=False),
    Run("fp32", replace(BASE, codec="fp32"), paired=False),
    Run("swap", replace(BASE, healing="checkfree+"), paired=False),
    Run("large bf16", replace(BASE, sequences=8, batches=3), paired=False),
    Run("large int8", replace(BASE, sequences=8, codec="int8-b128", batches=3), paired=False),
    Run("GPT", replace(BASE, microbatches=8, batches=8), gpt=True),
)


def settings(run: Run) -> dict[str, Any]:
    """The configuration of a run."""
    case = run.case
    sleeping = {f"task.settings.{key}": value for key, value in asdict(case.model()).items()}
    sleeping["task.factory"] = "scripts.benches.lib.sleeping:blocks"
    return {
        **(GPT if run.gpt else sleeping),
        "run.name": "pipeline",
        # All is ended when it is measured: no round ends before that.
        "run.rounds": 2,
        "method.name": "diloco",
        "method.inner_steps": 1000,
        "eval_every_rounds": 1_000_000,
        "pipeline.stages": case.stages,
        "pipeline.replicas": 1,
        "pipeline.microbatches": case.microbatches,
        "pipeline.in_flight": case.in_flight,
        "pipeline.codec": case.codec,
        "pipeline.recovery": case.healing,
        "worker.checkpoint_every": "0",
        # Who is slow because this machine is busy has not gone.
        "timing.ttl_s": 60,
    }


def measure(run: Run, link: Link, folder: Path) -> Record:
    """Real workers, from the batch after the warm ones to the last."""
    case = run.case
    last = case.warm + case.batches
    load = load_average()
    with (
        Links([link] * (case.stages + 1)) as links,
        Swarm(folder, links.hosts) as swarm,
        Sampler(links.counters) as sampler,
    ):
        swarm.begin(settings(run))
        head = swarm.workers[0]

        def counted() -> list[Event]:
            return [event for event in head.named("batch_counted") if event["stage"] == 0]

        swarm.until(counted, "the first batch", _TIMEOUT_S)
        for worker in swarm.workers:
            _prefer(worker.pid)
        swarm.until(lambda: len(counted()) >= last, "the last batch", _TIMEOUT_S)
        seen = swarm.status(head).get("workers", [])
        batches, resent = counted()[:last], len(head.named("resent"))
    seconds = [after["time"] - before["time"] for before, after in itertools.pairwise(batches[case.warm - 1 :])]
    batch_s, end, emulator = statistics.median(seconds), sampler.samples[-1], emulation(sampler.samples)
    return {
        "batch_s": batch_s,
        "batches_s": seconds,
        "utilisation": None if run.gpt else case.busy_s / batch_s,
        "status": [{key: worker.get(key) for key in _SHOWN} for worker in seen],
        "resent": resent,
        "dropped_packets": sum(flow.dropped for flow in (*end.up, *end.down)),
        "emulator_late_s": emulator["latest_s"],
        "emulator_cpu": emulator["emulator_cpu"],
        "load": [load, load_average()],
    }


def _prefer(pid: int) -> None:
    """Give a process, its threads and its children their turn before other work on this machine."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), _NICE)
        for child in (thread / "children").read_text().split():
            _prefer(int(child))


def virtual(out: Path) -> None:
    """All windows, numbers of micro-batches, codecs and ways of healing, on links and on links without limits."""
    base = replace(BASE, batches=2, warm=1)
    grid = [replace(base, microbatches=count, codec=codec) for codec in CODECS for count in (8, 16, 32)]
    grid += [replace(base, in_flight=window) for window in (1, 2, 4, 8)]
    grid += [replace(base, healing="checkfree+")]
    grid += [replace(base, sequences=8, codec=codec) for codec in CODECS[:2]]
    simulated = functools.cache(simulate)
    cases: list[Record] = []
    for case in grid:
        # Without limits it makes no difference how many bytes there are.
        unlimited = replace(case, bits_per_s=math.inf, delay_s=0.0, sequences=1, codec="bf16", healing="checkfree")
        cases.append({"case": asdict(case)})
        for kind, one in (("emulated", case), ("unlimited", unlimited)):
            cases[-1][kind] = {**simulated(one), "predicted_s": predicted_s(one)}
        print(cases[-1], flush=True)
        keep(out, "virtual", {"cases": cases, **stamp(SCRIPT)})


def _links(run: Run) -> list[tuple[str, Link]]:
    rate = run.case.bits_per_s
    # A packet passes two links: half of the delay at each.
    emulated = ("emulated", Link(rate, rate, run.case.delay_s / 2))
    return [emulated, ("unlimited", Link())] if run.paired else [emulated]


def main() -> None:
    """Run what is asked for."""
    parser = Parser(SCRIPT, __doc__, "pipeline")
    parser.repeated("--only", choices=[run.name for run in RUNS])
    parser.add_argument("--virtual", action="store_true", help="the whole grid in virtual time, without processes")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, in turns over both kinds of links")
    options = parser.parse_args()
    if options.virtual:
        virtual(options.out)
        return
    for run in [run for run in RUNS if not options.only or run.name in options.only]:
        kept: Record = {"case": asdict(run.case), "gpt": run.gpt, "emulated": [], "unlimited": []}
        for _ in range(options.repeat):
            for kind, link in _links(run):
                with tempfile.TemporaryDirectory(prefix="decentral-pipeline-") as folder:
                    measured = measure(run, link, Path(folder))
                kept[kind].append(measured)
                print(run.name, kind, {key: value for key, value in measured.items() if key != "status"}, flush=True)
        keep(options.out, f"run {run.name}", {**kept, **stamp(SCRIPT)})


if __name__ == "__main__":
    enter(main)
