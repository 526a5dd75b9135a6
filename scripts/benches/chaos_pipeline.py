"""A model in four stages, a worker each and a spare: stages, heads and neighbours are killed, and training goes on.

In every fault one or several workers get ``kill -9`` (or SIGSTOP for a while). Then the time is taken until every stage
has counted a batch that nobody had counted before, and the steps until the loss, the mean over ten steps, is again what
it was. A new spare is started after every fault. At the end every micro-batch must have been counted once at every
stage (counted.py says what the death of its counter changes), everybody must leave in order, and nothing may
be left running. Any violation ends the run with exit code 1.

    scripts/bench chaos-pipeline --limit-s 30

writes docs/benchmarks/chaos-pipeline.json and, from it, docs/benchmarks/chaos-pipeline.md.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.benches.counted import Strike, account, fronts
from scripts.benches.lib.chaos import folder_option, run_chaos, verdict, violations_in
from scripts.benches.lib.command import BenchError, Parser, enter, set_words
from scripts.benches.lib.processes import Event, Swarm, Worker
from scripts.benches.lib.report import Record, load_average, places
from scripts.benches.lib.tables import head, row, table

SCRIPT = "chaos-pipeline"
#: Steps whose mean is called the loss.
STEPS = 10
#: The loss must be back within so many.
MAX_STEPS = 1000
#: Stretches without a fault before the next one.
_QUIET = 3
#: How often status is asked until all is well again.
_ASKED = 30

SETTINGS = {
    "task.settings.model.d_model": 64,
    "task.settings.model.num_layers": 4,
    "task.settings.model.num_heads": 2,
    "task.settings.model.context": 64,
    "task.settings.batch_sequences": 8,
    "task.settings.val_batches": 1,
    "pipeline.microbatches": 4,
    # A stage with one holder steps outwards alone: this leaves its weights where they are.
    "method.inner_steps": STEPS,
    "method.outer_lr": 1,
    "method.outer_momentum": 0,
    "run.rounds": 100_000,
    "eval_every_rounds": 1_000_000,
}
#: Of every worker.
SAVING = ("--checkpoint-every", "5s")


@dataclass(frozen=True)
class Fault:
    """Whom it hits: a holder of each of ``stages``."""

    name: str
    stages: tuple[int, ...]
    stop_s: float = 0.0
    """Seconds of SIGSTOP; 0 for ``kill -9``."""
    spares: int = 1
    """That wait when it comes."""


@dataclass(frozen=True)
class Scene:
    """A swarm and its faults."""

    stages: int
    replicas: int
    spares: bool
    faults: tuple[Fault, ...]


SCENES = {
    "lone": Scene(
        4,
        1,
        True,
        (
            Fault("stage 2", (2,)),
            Fault("stage 1", (1,)),
            Fault("stage 4", (4,)),
            Fault("head", (0,)),
            Fault("stages 2 and 3", (2, 3), spares=2),
            Fault("stage 3 stopped", (3,), stop_s=15.0),
        ),
    ),
    "replicas": Scene(2, 2, False, (Fault("a replica of stage 1", (1,)), Fault("one of two heads", (0,)))),
}


class Pipeline(Swarm):
    """Workers that come as they are needed.

    Args:
        folder: exists; for what they write.
        scene: how many there are to be.
    """

    def __init__(self, folder: Path, scene: Scene) -> None:
        super().__init__(folder, ())
        self.strikes: list[Strike] = []
        self.scene = scene

    def begin_all(self) -> None:
        """Found it, and have everybody join at once."""
        scene = self.scene
        founder = self.add()
        shape = ("--stages", str(scene.stages), "--replicas", str(scene.replicas))
        founder.start("--new", *shape, *set_words(SETTINGS), *SAVING)
        self.join(founder, (scene.stages + 1) * scene.replicas - 1)
        if scene.spares:
            self.add_spares(1)

    def join(self, donor: Worker, count: int, *arguments: str) -> None:
        """So many more workers, at once."""
        address, joining = donor.address(), [self.add() for _ in range(count)]
        for worker in joining:
            worker.start("--join", address, *SAVING, *arguments)
        for worker in joining:
            worker.address()

    def add_spares(self, count: int) -> None:
        """Until so many wait."""
        waiting = sum(not self.held(worker) for worker in self.living)
        self.join(self.living[0], count - waiting, "--stage", "spare")

    def held(self, worker: Worker) -> set[int]:
        """Stages of a living worker: those that it was given, without those that it gave up."""
        held: set[int] = set()
        for event in worker.read():
            if event["event"] == "stage_placed":
                held.add(event["stage"])
            elif event["event"] == "stopped" and "stage" in event:
                held.discard(event["stage"])
        return held

    def holders(self, stage: int) -> list[Worker]:
        """Living holders of a stage."""
        return [worker for worker in self.living if stage in self.held(worker)]

    def journals(self) -> dict[str, list[Event]]:
        """Of all who ever lived."""
        return {str(worker.index): worker.read() for worker in self.workers}

    def fronts(self) -> dict[int, int]:
        """The newest batch of every slot that anybody has counted."""
        return fronts(self.journals().values())

    def losses(self) -> list[Event]:
        """Mean losses of heads over stretches of steps, in order of time."""
        return [e for e in self.all_named("stretch_done") if e["stage"] == 0 and e["loss"] is not None]

    def all_named(self, name: str) -> list[Event]:
        """Events of one kind of all who ever lived, in order of time."""
        found = [event for worker in self.workers for event in worker.named(name)]
        return sorted(found, key=lambda event: float(event["time"]))

    def counted_at(self, front: Mapping[int, int]) -> dict[int, float]:
        """When each stage first counted a batch that is newer than ``front``; not those that have not."""
        found: dict[int, float] = {}
        for event in self.all_named("batch_counted"):
            if event["indices"] and event["batch"] > front.get(event["slot"], -1):
                found.setdefault(event["stage"], event["time"])
        return found

    def all_count(self, front: Mapping[int, int]) -> float:
        """Wait until every stage has counted a batch newer than ``front``; when the last one did."""
        self.until(lambda: len(self.counted_at(front)) > self.scene.stages, f"a batch after {front} at all stages")
        return max(self.counted_at(front).values())

    def stretches(self, count: int) -> None:
        """Wait until heads have done so many more."""
        before = len(self.losses())
        self.until(lambda: len(self.losses()) >= before + count, f"{count} stretches after {before}")

    def strike(self, fault: Fault, limit_s: float) -> Event:
        """Hit whom the fault hits, and see what comes of it.

        Raises:
            BenchError: training was not resumed within ``limit_s`` seconds, or the loss did not come back.
        """
        if self.scene.spares:
            self.add_spares(fault.spares)
            self.until(self._spares_have_saved, "a checkpoint of every stage at every spare")
        self.stretches(_QUIET)
        victims = [self.holders(stage)[-1] for stage in fault.stages]
        known = len(self.all_named("stage_recovered"))
        others = {stage: len(self.holders(stage)) > 1 for stage in fault.stages}
        front, level, began = self.fronts(), self.losses()[-1], time.time()
        waking = victims[0].stop(fault.stop_s, with_daemon=True) if fault.stop_s else None
        if waking is None:
            self.kill(*victims)
        for victim, stage in zip(victims, fault.stages, strict=True):
            replicated = frozenset({stage}) if others[stage] else frozenset[int]()
            self.strikes.append(Strike(str(victim.index), time.time(), frozenset({stage}), replicated))
        resumed_s = round(self.all_count(front) - began, 1)
        record: Event = {"fault": fault.name, "step": level["step"], "load": load_average(), "resumed_s": resumed_s}
        record |= self._loss_back(level)
        if waking is not None:
            waking.join()
            self.all_count(self.fronts())
        shown = ("stage", "source", "loss_before", "loss_after", "seconds")
        recovered = self.all_named("stage_recovered")[known:]
        record["recovered"] = [{key: event[key] for key in shown} for event in recovered]
        record["status"] = self._seen(fault)
        if resumed_s > limit_s:
            raise BenchError(f"{fault.name}: training went on after {resumed_s} s\n{self.describe()}")
        return record

    def _spares_have_saved(self) -> bool:
        """Whether whoever waits could bring every stage back from its own disk."""
        spares = [worker for worker in self.living if not self.held(worker)]
        wanted = {f"stage-{stage}" for stage in range(self.scene.stages + 1)}
        found = [{path.parent.name for path in worker.folder.glob("stage-*/model.safetensors")} for worker in spares]
        return all(wanted <= saved for saved in found)

    def _loss_back(self, level: Event) -> Event:
        """Wait until the mean over a stretch is again what it was."""
        before, limit = float(level["loss"]), level["step"] + MAX_STEPS

        def after() -> list[Event]:
            return [e for e in self.losses() if e["step"] > level["step"] and e["time"] > level["time"]]

        def settled() -> list[Event]:
            return [event for event in after() if event["loss"] <= before or event["step"] > limit]

        self.until(settled, f"a loss of {before:.3f}")
        found = settled()[0]
        if found["loss"] > before:
            raise BenchError(f"the loss was {before:.3f} and is {found['loss']:.3f} after {MAX_STEPS} steps")
        worst = max(float(event["loss"]) for event in after())
        return {"loss": round(before, 3), "worst": round(worst, 3), "back_in_steps": found["step"] - level["step"]}

    def _seen(self, fault: Fault) -> Event:
        """What status says of the stages that were hit, once it shows a holder of each."""
        for _ in range(_ASKED):
            rows = self.status(self.holders(0)[0]).get("stages", [])
            if rows and all(row["holders"] for row in rows):
                hit = [rows[stage] for stage in fault.stages]
                return {str(r["stage"]): {key: r[key] for key in ("failures", "recoveries", "recovery")} for r in hit}
            time.sleep(1.0)
        raise BenchError(f"status does not show a holder of every stage: {rows}")


def play(name: str, options: argparse.Namespace, folder: Path, report: Record) -> None:
    """One scene; what became of it goes into ``report`` as it happens."""
    scene, records = SCENES[name], report["scenes"].setdefault(name, {"faults": []})
    swarm = Pipeline(folder, scene)
    with violations_in(report, f"{name}: "), swarm:
        began = time.monotonic()
        swarm.begin_all()
        swarm.all_count({})
        records["started_s"] = round(time.monotonic() - began, 1)
        for fault in (fault for fault in scene.faults if not options.only or fault.name in options.only):
            records["faults"].append(swarm.strike(fault, options.limit_s))
            print(row(*cells(records["faults"][-1])), flush=True)
        swarm.stretches(1)
        swarm.end()
    made = account(swarm.journals(), swarm.strikes, scene.stages)
    records |= {"batches": made.batches, "tokens": made.tokens, "died": made.died, "wrong": made.wrong}
    records["resent"] = len(swarm.all_named("resent"))
    report["violations"] += [f"{name}: {text}" for text in made.wrong[:20]]


_COLUMNS = (
    "fault | at step: | batches counted again at all stages after (s): | brought back from | first batch (s): "
    "| loss before: | highest after: | back in steps: | load:"
)


def cells(record: Event) -> list[object]:
    """A row of the table."""
    recovered = record["recovered"]
    sources = ", ".join(f"{event['stage']}: {event['source']}" for event in recovered) or "-"
    seconds = ", ".join(f"{event['seconds']:.1f}" for event in recovered) or "-"
    losses = [record[key] for key in ("loss", "worst", "back_in_steps", "load")]
    return [record["fault"], record["step"], record["resumed_s"], sources, seconds, *losses]


def page(report: Record) -> str:
    """The report for people."""
    tables = "\n\n".join(section(name, records) for name, records in report["scenes"].items())
    return f"""# Killed stages

Written by `scripts/bench chaos-pipeline`; the raw record is `chaos-pipeline.json`. Worker processes on loopback train a
small language model: 4 layers of width {SETTINGS["task.settings.model.d_model"]}, batches of
{SETTINGS["task.settings.batch_sequences"]} windows of {SETTINGS["task.settings.model.context"]} bytes,
{SETTINGS["pipeline.microbatches"]} micro-batches each. A fault is `kill -9` of a worker, whose libp2p daemon goes with
it, or SIGSTOP of both for 15 s. The time is taken from there until every stage has counted a batch that nobody had
counted before; it may have been under way. Loss is the mean of a head over {STEPS} steps, in nats a byte: the last
before the fault, the highest after it until it is back, and the steps until it is not above what it was. "First batch"
is what the worker that brought a stage back says of itself: from when it began to the first batch that passed.

A lone holder of a stage mixes with nobody; `method.outer_lr=1` and `method.outer_momentum=0` leave its weights where
its own steps brought them.

{tables}

{verdict(report, "no micro-batch lost or counted twice, everybody left in order, no process was left.")}

{places([report])[0]}. Workers share the cores with each
other and with whatever else runs there (the load of the last minute is in the tables), so that times are upper bounds.

    {report["command"]}
"""


def section(name: str, records: Event) -> str:
    """One scene."""
    scene = SCENES[name]
    spare = ", and a spare" if scene.spares else ""
    died = len(records.get("died", []))
    counts = sorted(set(records.get("tokens", {}).values()))
    return f"""## {scene.stages} stages, {scene.replicas} of each{spare}

{table(_COLUMNS, map(cells, records["faults"]))}

* {records.get("batches", "?")} batches through {scene.stages} stages and the head; tokens counted at a stage:
  {counts[0] if counts else "?"} at the least, {counts[-1] if counts else "?"} at the most.
* {records.get("resent")} micro-batches sent again; {died} counts died with a worker or were repeated after its death,
  {len(records.get("wrong", []))} were wrong.
* From the first process to the first batch that all had counted: {records.get("started_s", "?")} s."""


def main() -> int:
    """Run, write, and say by the exit code whether all held."""
    parser = Parser(SCRIPT, __doc__, "chaos-pipeline")
    parser.add_argument("--scenes", nargs="+", choices=tuple(SCENES), default=tuple(SCENES))
    parser.add_argument("--only", nargs="+", default=(), help="names of faults")
    parser.add_argument("--limit-s", type=float, default=30.0, help="training must have resumed within so long")
    folder_option(parser)
    options = parser.parse_args()
    print(head(_COLUMNS), flush=True)
    report: Record = {"settings": SETTINGS, "scenes": {}}

    def play_all(folder: Path) -> None:
        for name in options.scenes:
            play(name, options, folder / name, report)

    return run_chaos(SCRIPT, options, report, play_all, page)


if __name__ == "__main__":
    enter(main)
