"""Simulated swarms of every method, and pipelines, under drawn scripts of faults of every kind; checks what must hold.

A seed draws the method, the size of the swarm and the script: kills with restarts from disk or from nothing, whole
swarms that die and resume on all machines or on some of them, pauses, cuts both ways and one way, half-open peers, slow
lines, loss, duplicates, messages that are overtaken, clocks that jump, full and read-only disks, damaged checkpoints.
A violation, an exception or a hang is a line on standard error with the seed, which fails alone as well:

    scripts/bench chaos-sim --seeds 1000 --done /var/tmp/chaos.jsonl
    scripts/bench chaos-sim --first 17 --seeds 1 --show

``--done`` keeps a line for each seed, and seeds in it are not played again. Writes docs/benchmarks/chaos-sim.json and,
from it, docs/benchmarks/chaos-sim.md.
"""

import json
import math
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decentral.schedule.every import Every
from decentral.sim.faults import ISLANDS, Kind, Plan, Script, draw, to_json
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.tape import FaultTape
from scripts.benches.lib.checkers import agreement, check, check_async, check_gossip, counted_once, finish, reunion
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.counting import Counting
from scripts.benches.lib.methods import COUNTED, SWARMS
from scripts.benches.lib.report import Record as Report
from scripts.benches.lib.report import kept, signature, stamp, write
from scripts.benches.lib.tables import table
from tests.sim.pipelines import PipelineScenario, miscounts, simulate_pipeline, unfinished

SCRIPT = "chaos-sim"
#: Seeds take turns, so that a thousand of them are spread evenly.
METHODS = (*SWARMS, *COUNTED, "pipeline")
#: Virtual seconds in which faults happen, and rounds of a second that take well beyond their end.
FAULTS_S = (5.0, 27.0)
ROUNDS = 45
UNTIL_S = 3000.0
_KINDS = [kind for kind in Kind if kind is not Kind.START]  # which follows a kill


@dataclass(frozen=True)
class Case:
    """What is drawn from a seed."""

    seed: int
    method: str
    scenario: Scenario | PipelineScenario
    script: Script


def drawn(seed: int) -> Case:
    """The case of a seed."""
    dice = random.Random(f"chaos {seed}")
    method = METHODS[seed % len(METHODS)]
    if method == "pipeline":
        return _drawn_pipeline(seed, dice)
    num_workers = dice.randint(4, 6)
    variants = {**SWARMS, **COUNTED}[method]
    settings = {"rounds": ROUNDS, "conditions": Conditions(jitter=0.3), **dice.choice(variants)}
    settings |= {"save_every": Every(seconds=dice.choice((0.7, 2.0, 5.0))), "patient": True, "reunited": True}
    scenario = (Counting if method in COUNTED else Scenario)(seed, num_workers, **settings)
    num = _kinds(dice, dice.randint(3, 7), _KINDS)
    plan = Plan(
        *FAULTS_S,
        num=num,
        num_deaths=dice.choice((0, 0, 1, 2)),
        loss=dice.choice((0.0, 0.0, 0.05)) if Kind.LOSS not in num else 0.0,
        slow_bytes_per_s=2e4 if method in COUNTED else 1e3,
    )
    return Case(seed, method, scenario, draw(seed, range(num_workers), plan))


#: A stage needs its weights from others at once; nobody repairs it across a cut that lasts.
_OF_PIPELINES = [kind for kind in _KINDS if kind not in ISLANDS]


def _drawn_pipeline(seed: int, dice: random.Random) -> Case:
    num_stages = dice.randint(3, 4)
    scenario = PipelineScenario(
        seed,
        num_stages=num_stages,
        num_replicas=dice.randint(1, 2),
        num_spares=dice.randint(1, 2),
        rounds=10,
        inner_steps=2,
        checkpoint_s=1.0,
        conditions=Conditions(jitter=0.3),
        routing=dice.choice(("permutation", "speed")),
        healing=dice.choice(("checkfree+", "checkfree") if num_stages > 3 else ("checkfree",)),
    )
    machines = range((scenario.num_stages + 1) * scenario.num_replicas)
    began_s = 0.5 * scenario.num_machines + 2.0
    plan = Plan(began_s, began_s + 8.0, num=_kinds(dice, dice.randint(1, 3), _OF_PIPELINES), slow_bytes_per_s=2e3)
    return Case(seed, "pipeline", scenario, draw(seed, machines, plan))


def _kinds(dice: random.Random, count: int, among: Sequence[Kind]) -> Mapping[Kind, int]:
    """So many kinds, and as many kills as there are disks to be spoilt."""
    found = Counter(dice.choices(among, [4 if kind in (Kind.KILL, Kind.PAUSE) else 1 for kind in among], k=count))
    found[Kind.KILL] = max(found[Kind.KILL], found[Kind.TORN] + found[Kind.FLIPPED] + found[Kind.START_EMPTY])
    return found


# -- what must hold ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of a seed."""

    seed: int
    method: str
    violations: list[str]
    fired: dict[str, int]
    """Faults that had an effect, by kind."""
    cpu_s: float


def play(case: Case) -> Result:
    """One seed, from beginning to end; whatever goes wrong is a violation."""
    began, tape = time.process_time(), FaultTape(case.script)
    try:
        violations = list(_violations(case, tape))
    except (Exception, ExceptionGroup) as err:
        violations = [_in_words(err)]
    fired = Counter(fault.kind.value for fault in tape.fired())
    return Result(case.seed, case.method, violations, dict(fired), round(time.process_time() - began, 2))


def _violations(case: Case, tape: FaultTape) -> Iterator[str]:
    scenario = case.scenario
    if isinstance(scenario, PipelineScenario):
        recorded = simulate_pipeline(scenario, tape)
        yield from miscounts(scenario, recorded)
        yield from unfinished(scenario, recorded)
        return
    record = simulate(scenario, tape, until_s=UNTIL_S)
    if isinstance(scenario, Counting):
        yield from counted_once(scenario, record)
        if case.method == "counted servers":
            yield from finish(scenario, record)
        else:
            yield from [*agreement(record), *reunion(scenario, record)]
        return
    yield from _learnt(case.method, scenario, record, tape)


def _learnt(method: str, scenario: Scenario, record: Record, tape: FaultTape) -> Iterable[str]:
    """What the method promises; the swarm starts at a distance of 1 from its goal.

    The goal is the mean of what all workers learn: where some died for good, those that are left end beside it.
    """
    num, left = scenario.num_workers, max(1, len(record.outcomes))
    beside = 2 * scenario.problem.spread * math.sqrt((num - left) / (left * (num - 1)))
    if method in ("gossip-rounds", "gossip-random"):
        stood_still = [scenario.peers[n] for fault in tape.faults if fault.kind is Kind.PAUSE for n in fault.machines]
        return check_gossip(scenario, record, tolerance=0.2 + beside, max_spread=0.35, paused=stood_still)
    if method == "async":
        return check_async(scenario, record, tolerance=0.35 + beside, max_spread=0.35)
    return check(scenario, record, tolerance=0.5 + beside)


def _in_words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{error.message}: {'; '.join(map(_in_words, error.exceptions))}"
    return f"{type(error).__name__}: {error}"


# -- many of them -----------------------------------------------------------------------------------------------------


def _play_seed(seed: int) -> Result:
    torch.set_num_threads(1)
    return play(drawn(seed))


def play_all(seeds: Iterable[int], done: Path | None, processes: int) -> list[Result]:
    """Every seed once, several at a time; those in the file ``done`` are taken from there, and others added to it."""
    lines = done.read_text().splitlines() if done is not None and done.exists() else []
    results = {result.seed: result for result in (Result(**json.loads(line)) for line in lines)}
    wanted = list(seeds)
    # Processes end now and then: what a simulation leaves is collected, but their memory is not given back.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=50) as pool:
        for result in pool.imap_unordered(_play_seed, [seed for seed in wanted if seed not in results]):
            results[result.seed] = result
            for text in result.violations:
                print(f"seed {result.seed} ({result.method}): {text}", file=sys.stderr, flush=True)
            if done is not None:
                with done.open("a") as file:
                    file.write(json.dumps(vars(result)) + "\n")
    return [results[seed] for seed in wanted]


def summed_up(results: Sequence[Result]) -> Report:
    """Counts by method and by kind of fault, and the seeds that failed."""
    methods: dict[str, Any] = {}
    for name in METHODS:
        of = [result for result in results if result.method == name]
        fired: Counter[str] = Counter()
        for result in of:
            fired.update(result.fired)
        methods[name] = {
            "seeds": len(of),
            "failed": [result.seed for result in of if result.violations],
            "fired": {kind.value: fired[kind.value] for kind in Kind},
            "cpu_s": round(sum(result.cpu_s for result in of), 1),
        }
    failures = {str(result.seed): result.violations[0] for result in results if result.violations}
    return {"methods": methods, "failures": failures}


def page(out: Path, report: Report) -> str:
    """The record for people."""
    methods = report["methods"]
    rows = [[name, of["seeds"], sum(of["fired"].values()), len(of["failed"])] for name, of in methods.items()]
    kinds = [[f"`{kind.value}`", sum(of["fired"][kind.value] for of in methods.values())] for kind in Kind]
    seeds = sum(of["seeds"] for of in methods.values())
    failed = "\n".join(f"* {seed}: {text}" for seed, text in report["failures"].items()) or "* none"
    return f"""# Drawn faults in the simulator

Written by `scripts/bench chaos-sim`; the raw record is `chaos-sim.json`. {seeds} seeds, each a swarm of four to six
workers of the production engine, or a pipeline of three or four stages, under a script of faults of its own. A fault
has fired if it had an effect: a machine that lived went down, a message was lost, a save was refused.

{table("method | seeds: | faults that fired: | seeds with a violation:", rows)}

{table("kind | fired:", kinds)}

What must hold: members of a round hold the same anchor, bit for bit; all who live at the end have finished, with the
same anchor where there is one; the swarm has learnt what it was to learn; nobody hangs. In the methods that are
*counted*, every inner step of every worker has a place of its own in the model, and the final anchors have it once or
not at all. Of a pipeline, every micro-batch is counted once at every stage.

Seeds with a violation:

{failed}

{signature(report)}
{kept(out)}"""


def main() -> int:
    """Play, say what failed, write."""
    parser = Parser(SCRIPT, __doc__, "chaos-sim")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--done", type=Path, help="a file that keeps what was played")
    parser.add_argument("--show", action="store_true", help="print the scripts as well, and write nothing")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.show:
        for seed in seeds:
            case = drawn(seed)
            print(f"seed {seed}: {case.method}, {case.scenario}\n{to_json(case.script)}", end="")
    results = play_all(seeds, options.done, options.processes)
    failed = [result.seed for result in results if result.violations]
    print(f"{len(results)} seeds, {len(failed)} with a violation: {failed}")
    if not options.show:
        report = {**summed_up(results), **stamp(SCRIPT)}
        write(options.out, report, page(options.out, report))
    return int(bool(failed))


if __name__ == "__main__":
    enter(main)
