"""The page and the plot of docs/benchmarks/recovery, made of the raw numbers alone."""

import math
import os
import statistics
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.recovery_times import Taken, expected, healed, reached, rolled_back, smooth

#: The target is the loss of the run without failures at this part of its iterations.
MAIN_TARGET = 0.5
TARGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: What plain CheckFree can repair.
INNER = frozenset({2, 3, 4, 5})
ALL = frozenset({1, 6}) | INNER
INTERVALS = (10, 50, 100)
AGAINST = "checkpoint every 100"
REDUNDANT = "redundant computation"
#: Seconds of bringing a stage back, the paper's, here also taken for a restart from a checkpoint.
PAPER_RECOVERY_S = 30.0
#: Of the medium model, by failures an hour: seconds of an iteration and hours to a validation loss of 2.85.
PAPER: dict[str, dict[float, tuple[float, float]]] = {
    REDUNDANT: {0.05: (151.04, 419.56), 0.10: (151.04, 419.56), 0.16: (151.04, 419.56)},
    AGAINST: {0.05: (91.35, 558.23), 0.10: (91.35, 621.67), 0.16: (92.14, 634.35)},
    "checkfree": {0.05: (91.32, 367.81), 0.10: (91.32, 405.87), 0.16: (92.12, 562.96)},
    "checkfree+": {0.05: (91.32, 355.13), 0.10: (91.32, 367.81), 0.16: (92.12, 460.6)},
}
#: Iterations of redundant computation to that loss, 419.56 h at 151.04 s: nothing is lost in them.
PAPER_FAILURE_FREE = 10_000

Record = dict[str, Any]
#: Seconds of one method for what it took.
Cost = Callable[[str, Taken], float]


class Runs:
    """The raw numbers by name and seed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._found = {(run["name"], run["seed"]): run for run in records}

    def of(self, name: str) -> dict[int, Record]:
        """A variant's runs by seed, in the order of the seeds."""
        return {seed: run for (found, seed), run in sorted(self._found.items()) if found == name}

    @property
    def rates(self) -> list[float]:
        """Those with failures."""
        return sorted({run["rate"] for run in self._found.values()} - {0.0})

    def target(self, seed: int, part: float) -> float:
        """Loss of the run without failures at this part of its iterations."""
        run = self._found["none", seed]
        return smooth(run["losses"])[round(part * run["iterations"] / run["every"])]

    def taken(
        self, method: str, rate: float, seed: int, part: float = MAIN_TARGET, stages: Set[int] = INNER
    ) -> Taken | None:
        """What a method took to the target; ``None`` if there is no such run.

        Args:
            method: a variant's name without its rate.
            rate: failures of a stage an hour.
            seed: of the run.
            part: see ``target``.
            stages: those that fail; for checkpoints, which are counted and not run.
        """
        free = self._found.get(("none", seed))
        if free is None:
            return None
        target = self.target(seed, part)
        steps = reached(free["losses"], free["every"], target)
        if method in ("none", REDUNDANT):
            return Taken(steps)
        if method.startswith("checkpoint"):
            sample = next((run for run in self._found.values() if run["rate"] == rate), None)
            interval = int(method.split()[-1])
            return sample and rolled_back(steps, interval, seed, sample["probability"], stages)
        run = self._found.get((f"{method} {rate:.0%}" if rate else method, seed))
        return run and healed(run, target)

    def all_taken(self, method: str, rate: float, part: float = MAIN_TARGET) -> dict[int, Taken]:
        """By seed, of those that are there."""
        found = {seed: self.taken(method, rate, seed, part) for seed in self.of("none")}
        return {seed: taken for seed, taken in found.items() if taken}

    def ratios(self, method: str, against: str, rate: float, cost: Cost, part: float = MAIN_TARGET) -> list[float]:
        """Of times to the same loss, seed by seed."""
        ours, theirs = self.all_taken(method, rate, part), self.all_taken(against, rate, part)
        return [cost(method, ours[seed]) / cost(against, theirs[seed]) for seed in ours if seed in theirs]


def paper_cost(rate: float) -> Cost:
    """Seconds at the paper's seconds an iteration."""

    def cost(method: str, taken: Taken) -> float:
        family = next((known for known in PAPER if method.split()[0] == known.split()[0]), AGAINST)
        per_iteration, _ = PAPER[family][rate or 0.10]
        return taken.iterations * per_iteration + taken.recoveries * PAPER_RECOVERY_S

    return cost


def our_cost(costs: Record) -> Cost:
    """Seconds as measured with this code on this machine, all stages one after the other."""

    def cost(method: str, taken: Taken) -> float:
        if method == REDUNDANT:
            return taken.iterations * costs["redundant_s"]
        if method.startswith("checkpoint"):
            upkeep = taken.saves * costs["save_s"] + taken.recoveries * costs["restore_s"]
            return taken.iterations * costs["iteration_s"] + upkeep
        per_iteration = costs["swapped_s" if method.startswith("checkfree+") else "iteration_s"]
        return taken.iterations * per_iteration + taken.recoveries * costs["heal_s"]

    return cost


# -- tables -----------------------------------------------------------------------------------------------------------


def span(values: Sequence[float], form: str) -> str:
    """Mean, and least to greatest; how many have a value where not all have."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "not reached" if values else "-"
    mean = format(statistics.mean(known), form)
    if len(known) < len(values):
        return f"{mean} (only {len(known)} of {len(values)} seeds)"
    return f"{mean} ({format(min(known), form)} to {format(max(known), form)})" if len(known) > 1 else mean


def main_table(runs: Runs) -> str:
    """Every method at every rate beside the paper's."""
    lines = [
        "| failures an hour | method | iterations by seed | / no failures | hours at the paper's costs | "
        "/ checkpoints | paper: / no failures | paper: hours | paper: / checkpoints |\n"
        "|---:|---|---|---|---:|---|---:|---:|---:|\n"
    ]
    for rate in runs.rates:
        cost = paper_cost(rate)
        for method in (REDUNDANT, *(f"checkpoint every {n}" for n in INTERVALS), "checkfree", "checkfree+"):
            taken = runs.all_taken(method, rate)
            times = [each.iterations / runs.all_taken("none", 0)[seed].iterations for seed, each in taken.items()]
            hours = [cost(method, each) / 3600 for each in taken.values()]
            beside = " | | "
            if method in PAPER:
                per_iteration, known = PAPER[method][rate]
                beside = (
                    f"{known * 3600 / per_iteration / PAPER_FAILURE_FREE:.2f} | {known:.1f} | "
                    f"{known / PAPER[AGAINST][rate][1]:.2f}"
                )
            lines.append(
                f"| {rate:.0%} | {method} | {iterations(taken)} | {span(times, '.2f')} | {span(hours, '.1f')} "
                f"| {span(runs.ratios(method, AGAINST, rate, cost), '.2f')} | {beside} |\n"
            )
    return "".join(lines)


def iterations(taken: dict[int, Taken]) -> str:
    """By seed."""
    return ", ".join("-" if math.isnan(each.iterations) else f"{each.iterations:.0f}" for each in taken.values())


def luck_table(runs: Runs, probabilities: dict[float, float]) -> str:
    """Checkpoints as these seeds had them and on average over all draws, and CheckFree against that average."""
    lines = [
        "| failures an hour | interval | these seeds / no failures | mean of all draws / no failures "
        "| checkfree / that mean | checkfree+ / that mean |\n|---:|---:|---|---:|---|---|\n"
    ]
    free = {seed: taken.iterations for seed, taken in runs.all_taken("none", 0).items()}
    for rate in runs.rates:
        for interval in INTERVALS:
            mean = expected(1.0, interval, probabilities[rate], 4)
            rolled = runs.all_taken(f"checkpoint every {interval}", rate)
            cells = [f"{rate:.0%}", str(interval), span([rolled[s].iterations / free[s] for s in rolled], ".2f")]
            cells.append(f"{mean:.2f}")
            for method in ("checkfree", "checkfree+"):
                taken = runs.all_taken(method, rate)
                cells.append(span([taken[seed].iterations / free[seed] / mean for seed in taken], ".2f"))
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def target_table(runs: Runs, rate: float) -> str:
    """Times against checkpoints by the loss to reach."""
    cost = paper_cost(rate)
    lines = ["| target at | loss by seed | swaps, no failures | checkfree | checkfree+ | checkfree+ / checkpoints |\n"]
    lines.append("|---:|---|---|---|---|---|\n")
    for part in TARGETS:
        free = {seed: taken.iterations for seed, taken in runs.all_taken("none", 0, part).items()}
        cells = [f"{part:.0%}", ", ".join(f"{runs.target(seed, part):.3f}" for seed in free)]
        for method, at in (("swaps", 0.0), ("checkfree", rate), ("checkfree+", rate)):
            taken = runs.all_taken(method, at, part)
            cells.append(span([taken[seed].iterations / free[seed] for seed in taken], ".2f"))
        cells.append(span(runs.ratios("checkfree+", AGAINST, rate, cost, part), ".2f"))
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def our_table(runs: Runs, costs: Record) -> str:
    """Times with what this code takes."""
    if not costs:
        return "Not measured.\n"
    cost = our_cost(costs)
    said = {
        "iteration_s": "iteration, stages in their order",
        "swapped_s": "iteration, half of it swapped",
        "redundant_s": "iteration, every stage computing the next one's forward pass too",
        "save_s": "writing a checkpoint",
        "restore_s": "reading one, all stages",
        "heal_s": "blending a stage, fresh optimizer included",
    }
    lines = [f"* {text}: {1e3 * costs[key]:.1f} ms\n" for key, text in said.items()]
    lines.append(f"\nA checkpoint has {costs['checkpoint_bytes'] / 1e6:.2f} MB. Seconds to the target:\n\n")
    methods = (REDUNDANT, *(f"checkpoint every {n}" for n in INTERVALS), "checkfree", "checkfree+")
    lines.append("| method | " + " | ".join(f"{rate:.0%} | / checkpoints" for rate in runs.rates) + " |\n")
    lines.append("|---|" + "---|---|" * len(runs.rates) + "\n")
    for method in methods:
        cells = [method]
        for rate in runs.rates:
            cells.append(span([cost(method, each) for each in runs.all_taken(method, rate).values()], ".1f"))
            cells.append(span(runs.ratios(method, AGAINST, rate, cost), ".2f"))
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def more_table(runs: Runs, names: Sequence[str]) -> str:
    """Variants at one rate: iterations, and the loss at the end."""
    lines = ["| variant | iterations to the target by seed | / no failures | loss at the end by seed | mean |\n"]
    lines.append("|---|---|---|---|---:|\n")
    free = {seed: taken.iterations for seed, taken in runs.all_taken("none", 0).items()}
    for name in names:
        found = runs.of(name)
        taken = runs.all_taken(name, 0.0)
        if not found:
            continue
        ends = [smooth(run["losses"])[-1] for run in found.values()]
        lines.append(
            f"| {name} | {iterations(taken)} | {span([taken[s].iterations / free[s] for s in taken], '.2f')} "
            f"| {', '.join(f'{end:.4f}' for end in ends)} | {statistics.mean(ends):.4f} |\n"
        )
    return "".join(lines)


def ends_table(runs: Runs, rate: float) -> str:
    """CheckFree+ where any stage can fail, beside checkpoints with the same failures."""
    name = f"checkfree+ {rate:.0%} all stages"
    free = {seed: taken.iterations for seed, taken in runs.all_taken("none", 0).items()}
    probability = next(run["probability"] for run in runs.of(f"checkfree {rate:.0%}").values())
    cost = paper_cost(rate)
    lines = [
        "| method | iterations by seed | / no failures | mean of all draws / no failures | / checkpoints every 100 |\n"
    ]
    lines.append("|---|---|---|---:|---|\n")
    rolled: dict[int, dict[int, Taken]] = {}
    for interval in INTERVALS:
        found = {seed: runs.taken(f"checkpoint every {interval}", rate, seed, stages=ALL) for seed in free}
        rolled[interval] = {seed: taken for seed, taken in found.items() if taken}
    rows = {f"checkpoint every {interval}": taken for interval, taken in rolled.items()}
    rows[name] = {seed: healed(run, runs.target(seed, MAIN_TARGET)) for seed, run in runs.of(name).items()}
    for method, taken in rows.items():
        mean = (
            f"{expected(1.0, int(method.split()[-1]), probability, len(ALL)):.2f}"
            if method.startswith("checkpoint")
            else ""
        )
        against = [cost(method, taken[seed]) / cost(AGAINST, rolled[100][seed]) for seed in taken]
        times = [taken[seed].iterations / free[seed] for seed in taken]
        lines.append(f"| {method} | {iterations(taken)} | {span(times, '.2f')} | {mean} | {span(against, '.2f')} |\n")
    return "".join(lines)


@dataclass(frozen=True)
class Jump:
    """What happened to the loss when a stage was restored."""

    mean: float
    worst: float
    count: int


def jumps(records: Sequence[Record], stage: int) -> Jump | None:
    """Of stages lost alone over runs."""
    found = []
    for run in records:
        alone = [lost for lost in run["lost"] if [other[0] for other in run["lost"]].count(lost[0]) == 1]
        found += [after - before for _, at, _, before, after in alone if at == stage]
    return Jump(statistics.mean(found), max(found), len(found)) if found else None


def jump_table(runs: Runs, names: Sequence[str]) -> str:
    """Loss before and after, by method and stage."""
    lines = ["| runs | " + " | ".join(f"stage {stage}" for stage in range(1, 7)) + " |\n|---|" + "---|" * 6 + "\n"]
    for name in names:
        cells = [name]
        for stage in range(1, 7):
            jump = jumps(list(runs.of(name).values()), stage)
            cells.append(f"{jump.mean:+.3f}, worst {jump.worst:+.3f}, of {jump.count}" if jump else "")
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def rollback_check(runs: Runs, name: str) -> str:
    """Whether checkpoints that were run give the losses that were counted."""
    if not runs.of(name):
        return "Not run."
    checked = 0
    for seed, run in runs.of(name).items():
        free = runs.of("none")[seed]
        for step, loss in zip(run["steps"], run["losses"], strict=True):
            if step % free["every"] == 0:
                if loss != free["losses"][step // free["every"]]:
                    return (
                        f"**`{name}`, seed {seed}: the loss at step {step} is not that of the run without failures.**"
                    )
                checked += 1
        counted = rolled_back(run["steps"][-1], run["checkpoint_every"], seed, run["probability"], INNER).iterations
        if counted > run["iterations"]:
            return f"**`{name}`, seed {seed}: {counted} iterations counted for {run['steps'][-1]} steps.**"
    return (
        f"`{name}` was run: {checked} of its validations have one of the run without failures beside them, all equal."
    )


# -- plot -------------------------------------------------------------------------------------------------------------


def plot(path: Path, runs: Runs, rate: float = 0.10) -> None:
    """Loss by iterations, loss by hours at the paper's costs, and times against checkpoints by target."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    cost = paper_cost(rate)
    lines = {
        "none": "none",
        "swaps": "swaps",
        "checkfree": f"checkfree {rate:.0%}",
        "checkfree+": f"checkfree+ {rate:.0%}",
    }
    for method, name in lines.items():
        curves = [smooth(run["losses"]) for run in runs.of(name).values()]
        if not curves:
            continue
        run = next(iter(runs.of(name).values()))
        xs = [run["every"] * index for index in range(len(curves[0]))]
        means = [statistics.mean(values) for values in zip(*curves, strict=True)]
        left.plot(xs, means, label={"none": "no failures"}.get(method, name))
        if method.startswith("checkfree"):
            middle.plot([cost(method, Taken(x)) / 3600 for x in xs], means, label=name)
    free = runs.of("none")
    sample = next(run for run in runs.of(f"checkfree {rate:.0%}").values())
    for interval in INTERVALS:
        xs, ys = [], []
        for step in range(4 * sample["every"], sample["iterations"] + 1, sample["every"]):
            rolled = [rolled_back(step, interval, seed, sample["probability"], INNER).iterations for seed in free]
            xs.append(statistics.mean(rolled))
            ys.append(statistics.mean(smooth(run["losses"])[step // sample["every"]] for run in free.values()))
        label = f"checkpoint every {interval}"
        left.plot(xs, ys, "--", label=label)
        middle.plot([cost(label, Taken(x)) / 3600 for x in xs], ys, "--", label=label)
    xs = [cost(REDUNDANT, Taken(sample["every"] * index)) / 3600 for index in range(len(sample["losses"]))]
    ys = [statistics.mean(smooth(run["losses"])[index] for run in free.values()) for index in range(len(xs))]
    middle.plot(xs, ys, ":", label=REDUNDANT)
    for axes, name in ((left, "iterations"), (middle, "hours at the paper's costs")):
        axes.set_ylim(min(ys[5:]) - 0.02, min(ys[5:]) + 0.5)
        axes.set_xlabel(name)
        axes.legend(fontsize=7)
    left.set_ylabel(f"validation loss, nats a byte; {rate:.0%} an hour, mean of seeds")
    for at in runs.rates:
        for method, style in (("checkfree", "--"), ("checkfree+", "-")):
            ratios = [runs.ratios(method, AGAINST, at, paper_cost(at), part) for part in TARGETS]
            shown = [statistics.mean(each) if each and not any(map(math.isnan, each)) else math.nan for each in ratios]
            colour = f"C{runs.rates.index(at)}"
            right.plot([100 * part for part in TARGETS], shown, style + "o", color=colour, label=f"{method} {at:.0%}")
    right.axhline(0.6, color="black", linewidth=0.8)
    right.set_xlabel("target: loss without failures at this % of the iterations")
    right.set_ylabel("time to it against checkpoints every 100")
    right.legend(fontsize=7)
    temporary = path.with_name(f"{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=100, metadata={"Software": None})
    os.replace(temporary, path)
