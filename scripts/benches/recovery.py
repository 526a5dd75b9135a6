"""Stages that are lost and healed from their neighbours, against checkpoints and redundant computation, by seed.

    scripts/bench recovery [--seed 0 --seed 1 ...] [--only NAME ...]    # runs what is not there yet, writes the page
    scripts/bench recovery --costs                                      # measures what an iteration and upkeep take
    scripts/bench recovery --write                                      # writes the page anew
    scripts/bench recovery --list                                       # the runs, and whether they are there

One process and one thread; every run is written to OUT.json when it ends, so that a bench that was killed goes on. The
section "Findings" of OUT.md is written by hand and kept.
"""

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from decentral.pipeline.routing import stage_order
from scripts.benches import recovery_page as parts
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, kept, places, read, stamp, write
from scripts.benches.recovery_page import ALL, INNER
from scripts.benches.recovery_pipeline import NUM_STAGES, TASK, Pipeline, Plan, draw_failures, play

SCRIPT = "recovery"
NUM_ITERATIONS = 1500
#: Iterations from one validation to the next.
EVERY = 20
#: Failures of a stage an hour, and the paper's seconds of an iteration, which make them failures an iteration.
RATES = (0.05, 0.10, 0.16)
PAPER_ITERATION_S = 91.3


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of each seed."""

    name: str
    plan: Plan
    rate: float = 0.0
    stages: frozenset[int] = INNER


def probability(rate: float) -> float:
    """Of losing a stage in an iteration, if ``rate`` is that of losing it within an hour."""
    return 1.0 - math.pow(1.0 - rate, PAPER_ITERATION_S / 3600)


def deep(layers: int) -> tuple[Variant, ...]:
    """What tells the price of swaps with so many layers in a stage."""
    task = {**TASK, "model": {**TASK["model"], "num_layers": layers * NUM_STAGES}}
    return (
        Variant(parts.of_layers("none", layers), Plan("checkfree", task=task)),
        Variant(parts.of_layers("swaps", layers), Plan("checkfree+", task=task)),
        Variant(parts.of_layers("checkfree+ 10%", layers), Plan("checkfree+", task=task), 0.10),
    )


#: Told apart by what is left out when time is short: all seeds of a group come before the next group.
GROUPS = (
    (
        Variant("none", Plan("checkfree")),
        Variant("swaps", Plan("checkfree+")),
        Variant("checkfree+ 10%", Plan("checkfree+"), 0.10),
        Variant("checkfree 10%", Plan("checkfree"), 0.10),
    ),
    (
        Variant("checkfree+ 10% all stages", Plan("checkfree+"), 0.10, ALL),
        Variant("checkfree+ 10% copies", Plan("checkfree+", copies=True), 0.10),
    ),
    tuple(
        Variant(f"{healing} {rate:.0%}", Plan(healing), rate)
        for rate in (0.05, 0.16)
        for healing in ("checkfree+", "checkfree")
    ),
    (
        Variant("checkpoint 10% every 50", Plan("checkpoint", checkpoint_every=50), 0.10),
        Variant("checkfree 10% boost 1", Plan("checkfree", boost=1.0), 0.10),
        Variant("checkfree 10% boost 1.2", Plan("checkfree", boost=1.2), 0.10),
        Variant("checkfree 10% squared", Plan("checkfree", norm="squared"), 0.10),
    ),
    *(deep(layers) for layers in parts.LAYERS if layers > 1),
)


def measure(variant: Variant, seed: int) -> Record:
    """One run."""
    failures = draw_failures(seed, NUM_ITERATIONS, probability(variant.rate), variant.stages)
    began = time.perf_counter()
    run = play(variant.plan, seed, failures, EVERY)
    plan = dataclasses.asdict(variant.plan)
    return {
        "name": variant.name,
        "seed": seed,
        "rate": variant.rate,
        "probability": probability(variant.rate),
        "stages": sorted(variant.stages),
        **{key: plan[key] for key in ("healing", "boost", "boost_steps", "norm", "checkpoint_every")},
        "iterations": NUM_ITERATIONS,
        "every": EVERY,
        "losses": [round(loss, 5) for loss in run.losses],
        "steps": run.steps,
        "lost": [[e.iteration, e.stage, e.source, round(e.before, 5), round(e.after, 5)] for e in run.lost],
        "norms": [round(norm, 4) for norm in run.norms],
        "seconds": round(time.perf_counter() - began, 1),
        **stamp(SCRIPT),
    }


def measure_costs() -> Record:
    """Least seconds of what a method takes, one after the other on one thread, in rounds so that all see the same load.

    Processor time, which other jobs change least; of files, time on the wall. Both orders have two micro-batches.
    Redundant computation is a second forward pass of every stage, whose graph is not kept. A checkpoint has the weights
    and two moments of all stages, in one file, synced to the disk.
    """
    swapped, natural = (Pipeline(Plan("checkfree+"), 0) for _ in range(2))
    natural.orders = [stage_order(NUM_STAGES, index, swap=False) for index in range(2)]
    parts = (natural.head, *natural.stages.values())
    weights = [value for part in parts for value in part.parameters().values()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"

        def redundant() -> None:
            for index, order in enumerate(natural.orders):
                key = (0, natural.step, index)
                x = natural.head.embed(key, natural.data.batch(*key)[0], train=False)
                for stage in order:
                    x = natural.stages[stage].forward(key, x, train=False)
            natural.train()

        def save() -> None:
            with path.open("wb") as file:
                torch.save([[value.clone() for value in weights] for _ in range(3)], file)
                file.flush()
                os.fsync(file.fileno())

        tasks: dict[str, Callable[[], object]] = {
            "iteration_s": natural.train,
            "swapped_s": swapped.train,
            "redundant_s": redundant,
            "save_s": save,
            "restore_s": lambda: torch.load(path),
            "heal_s": lambda: swapped.restore([3]),
        }
        found = dict.fromkeys(tasks, float("inf"))
        for _ in range(60):
            for name, task in tasks.items():
                clock = time.perf_counter if name in ("save_s", "restore_s") else time.process_time
                began = clock()
                task()
                found[name] = min(found[name], clock() - began)
        return {**found, "checkpoint_bytes": path.stat().st_size, **stamp(SCRIPT)}


def save(out: Path, found: Record) -> None:
    """Raw numbers, page and plot; what a person found in them stays. No page yet if there is nothing to compare."""
    comparable = {"none", "checkfree 10%"} <= {run["name"] for run in found["runs"]}
    write(out, found, page(out, found) if comparable else f"{_HEAD}\n{kept(out)}")
    if comparable:
        parts.plot(out, parts.Runs(found["runs"]))


def page(out: Path, found: Record) -> str:
    """The page."""
    runs = parts.Runs(found["runs"])
    probabilities = {rate: probability(rate) for rate in RATES}
    names = [variant.name for group in GROUPS for variant in group]
    shown = [name for name in names if "10%" in name and "every" not in name and "layers" not in name]
    sections = {
        "Against the paper": parts.main_table(runs),
        "How lucky the seeds were": parts.luck_table(runs, probabilities),
        "By the loss to reach, at 10 % an hour": parts.target_table(runs, 0.10),
        "With our costs": parts.our_table(runs, found["costs"]),
        "First and last stage too, at 10 % an hour": parts.ends_table(runs, 0.10),
        "Several layers a stage, at 10 % an hour": parts.layers_table(found["runs"], probabilities[0.10]),
        "Boost, norm and swaps": parts.more_table(runs, ["none", "swaps", *shown]),
        "What a restored stage does to the loss": parts.jump_table(runs, [name for name in names if "%" in name]),
        "Rollbacks": parts.rollback_check(runs, "checkpoint 10% every 50"),
    }
    body = "".join(f"\n## {title}\n\n{_NOTES.get(title, '')}{section}\n" for title, section in sections.items())
    return f"{_HEAD}\n{kept(out)}{body}\n" + "".join(f"{place}\n" for place in places(found["runs"]))


_HEAD = """# Lost stages: healing, checkpoints and redundant computation

Written by `scripts/bench recovery`; the raw numbers are in `recovery.json`. The experiment of CheckFree (arXiv
2506.15461) at the size of this machine: the byte-level GPT of `workers/lm` in six stages and a head, in one process and
on one thread. Stages and head are `StageCompute` and `HeadCompute` of the product; what a lost stage becomes is decided
and computed by `decentral.pipeline.recovery`; the order of stages is `routing.stage_order`. Peers and packets are left
out: they do not enter the arithmetic.

* **Task**: one layer a stage where nothing else is said, width 32, context 32, 8 windows a batch, Python's standard
  library; AdamW of the task's defaults with a constant rate of 0.006 after 20 steps, gradients of each stage clipped
  to 1. Loss in nats a byte on 128 held-out windows, every 20 iterations, with the stages in their order. A seed sets
  weights, batches and failures; a batch is the same in all methods.
* **Failures**: each of stages 2 to 5 is lost at the start of an iteration with probability 1 - (1 - rate)^(91.3 / 3600)
  a stage: 0.00130, 0.00267 and 0.00441 for 5, 10 and 16 % an hour; never two neighbours at once. A seed draws the same
  failures for all methods, by iterations spent.
* **checkfree**: the mean of both neighbours, weighted by gradient norm, a fresh AdamW, the learning rate x 1.1 for 100
  steps. **checkfree+**: the same, and half of every batch in swapped order. **checkpoint every N**: everything goes
  back to the last multiple of N steps, the data too; a replay gives the same losses bit for bit, so that iterations
  are counted on the run without failures (held by a test and under "Rollbacks"). **redundant computation**: no step
  is lost, every iteration costs more.
* **Target**: the loss that the run without failures of the same seed has half-way (760 of 1500 iterations). Curves
  are the mean of five validations, so that a loss right after a recovery counts; the first crossing is taken. Tables
  have the mean over seeds, and least to greatest.
* **The paper's costs**: seconds an iteration from its table (151.04 redundant, 91.35 checkpoints, 91.32 CheckFree) and
  30 s for each recovery or restart. All hours of that table are its seconds times multiples of 500 iterations, so it
  has no restarts in it; 30 s are a hundredth of the time between two failures and change no figure here.

![loss by iterations and hours, and times against checkpoints](recovery.png)
"""

_NOTES: dict[str, str] = {
    "Against the paper": 'Times are to the target. "/ checkpoints" is against checkpoints every 100, seed by seed, at '
    "the paper's costs. The paper's are of its medium model to a loss of 2.85, with checkpoints every 100; its "
    "iterations are its hours divided by its seconds an iteration, and 10,000 (redundant computation) are taken for "
    "no failures.\n\n",
    "How lucky the seeds were": "What a checkpoint costs depends on when failures fall. The mean of all draws is "
    "((1 - q)^-N - 1) / (q N) iterations a step, with q the probability of any failure in an iteration.\n\n",
    "By the loss to reach, at 10 % an hour": "The target is the loss without failures at that part of its iterations. "
    "Columns without a divisor are against no failures.\n\n",
    "With our costs": "Processor time of this process (of files, time on the wall): all stages one after the other, so "
    "neither links nor waiting. The time to notice a failure and to find a new holder is left out: only redundant "
    "computation is without it.\n\n",
    "First and last stage too, at 10 % an hour": "All six stages can be lost, which plain CheckFree cannot repair: the "
    "first becomes a copy of the second, the last of the last but one. Same failures for checkpoints.\n\n",
    "Several layers a stage, at 10 % an hour": "The same width and tokens. The floor is what the swaps alone take over "
    "the mean of all draws of rollbacks to the last multiple of 100: CheckFree+ could not be below it even if healing "
    "cost nothing.\n\n",
    "Boost, norm and swaps": '"copies": as the authors\' code does, stage 2 becomes a copy of stage 1 and stage 5 of '
    "stage 6, where the paper and the product blend.\n\n",
    "What a restored stage does to the loss": "Validation loss right after the recovery less that right before; stages "
    "lost alone.\n\n",
}


def main() -> None:
    """The command line."""
    parser = Parser(SCRIPT, __doc__, "recovery")
    parser.repeated("--seed", int, [0, 1, 2])
    parser.repeated("--only", metavar="NAME")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: Record = read(options.out, {"task": TASK, "costs": {}, "runs": []})
    if options.costs or options.write:
        found["costs"] = measure_costs() if options.costs else found["costs"]
        save(options.out, found)
        return
    for variant, seed in [(variant, seed) for group in GROUPS for seed in options.seed for variant in group]:
        if options.only and variant.name not in options.only:
            continue
        there = any((run["name"], run["seed"]) == (variant.name, seed) for run in found["runs"])
        if options.list:
            print(f"seed {seed}  {variant.name}{'  (there)' if there else ''}")
        elif not there:
            run = measure(variant, seed)
            found["runs"].append(run)
            save(options.out, found)
            print(f"seed {seed}  {variant.name}  {run['losses'][-1]:.4f}  {run['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    enter(main)
