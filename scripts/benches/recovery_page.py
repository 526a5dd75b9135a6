"""The page and the plot of docs/benchmarks/recovery, made of the raw numbers alone."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record
from scripts.benches.lib.tables import table
from scripts.benches.recovery_times import Taken, expected, healed, reached, rolled_back, smooth

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

#: In a stage, as they were tried.
LAYERS = (1, 2, 4)
#: Of so many seeds all numbers are shown, of more their mean.
_MOST_LISTED = 5

#: Those that are compared with the paper.
METHODS = (REDUNDANT, *(f"checkpoint every {interval}" for interval in INTERVALS), "checkfree", "checkfree+")
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
        return sorted({float(run["rate"]) for run in self._found.values()} - {0.0})

    def target(self, seed: int, part: float) -> float:
        """Loss of the run without failures at this part of its iterations."""
        run = self._found["none", seed]
        place: int = round(part * run["iterations"] / run["every"])
        return smooth(run["losses"])[place]

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
            return None if sample is None else rolled_back(steps, interval, seed, sample["probability"], stages)
        run = self._found.get((f"{method} {rate:.0%}" if rate else method, seed))
        return None if run is None else healed(run, target)

    def all_taken(self, method: str, rate: float, part: float = MAIN_TARGET) -> dict[int, Taken]:
        """By seed, of those that are there."""
        found = {seed: self.taken(method, rate, seed, part) for seed in self.of("none")}
        return {seed: taken for seed, taken in found.items() if taken}

    def slower(self, method: str, rate: float, part: float = MAIN_TARGET) -> list[float]:
        """Iterations over those without failures, seed by seed."""
        free = self.all_taken("none", 0, part)
        return [taken.iterations / free[seed].iterations for seed, taken in self.all_taken(method, rate, part).items()]

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


def our_cost(costs: Mapping[str, float]) -> Cost:
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


def of_layers(name: str, layers: int) -> str:
    """A variant's name with so many layers in a stage."""
    return name if layers == 1 else f"{name}, {layers} layers"


def by_seed(taken: dict[int, Taken]) -> str:
    """Iterations."""
    if len(taken) > _MOST_LISTED:
        return f"{span([each.iterations for each in taken.values()], '.0f')}, {len(taken)} seeds"
    return ", ".join("-" if math.isnan(each.iterations) else f"{each.iterations:.0f}" for each in taken.values())


def main_table(runs: Runs) -> str:
    """Every method at every rate beside the paper's."""
    rows = []
    for rate in runs.rates:
        cost = paper_cost(rate)
        for method in METHODS:
            taken = runs.all_taken(method, rate)
            hours = [cost(method, each) / 3600 for each in taken.values()]
            beside = ["", "", ""]
            if method in PAPER:
                per_iteration, known = PAPER[method][rate]
                slower, against = known * 3600 / per_iteration / PAPER_FAILURE_FREE, known / PAPER[AGAINST][rate][1]
                beside = [f"{slower:.2f}", f"{known:.1f}", f"{against:.2f}"]
            ours = [by_seed(taken), span(runs.slower(method, rate), ".2f"), span(hours, ".1f")]
            ours.append(span(runs.ratios(method, AGAINST, rate, cost), ".2f"))
            rows.append([f"{rate:.0%}", method, *ours, *beside])
    columns = (
        "failures an hour: | method | iterations by seed | / no failures | hours at the paper's costs: | / checkpoints "
        "| paper: / no failures: | paper: hours: | paper: / checkpoints:"
    )
    return table(columns, rows)


def luck_table(runs: Runs, probabilities: dict[float, float]) -> str:
    """Checkpoints as these seeds had them and on average over all draws, and CheckFree against that average."""
    rows = []
    for rate in runs.rates:
        for interval in INTERVALS:
            mean = expected(1.0, interval, probabilities[rate], 4)
            rows.append([f"{rate:.0%}", interval, span(runs.slower(f"checkpoint every {interval}", rate), ".2f")])
            rows[-1].append(f"{mean:.2f}")
            for method in ("checkfree", "checkfree+"):
                rows[-1].append(span([slower / mean for slower in runs.slower(method, rate)], ".2f"))
    columns = (
        "failures an hour: | interval: | these seeds / no failures | mean of all draws / no failures: "
        "| checkfree / that mean | checkfree+ / that mean"
    )
    return table(columns, rows)


def target_table(runs: Runs, rate: float) -> str:
    """Times against checkpoints by the loss to reach."""
    cost, rows = paper_cost(rate), []
    for part in TARGETS:
        rows.append([f"{part:.0%}", span([runs.target(seed, part) for seed in runs.of("none")], ".3f")])
        for method, at in (("swaps", 0.0), ("checkfree", rate), ("checkfree+", rate)):
            rows[-1].append(span(runs.slower(method, at, part), ".2f"))
        rows[-1].append(span(runs.ratios("checkfree+", AGAINST, rate, cost, part), ".2f"))
    columns = "target at: | loss | swaps, no failures | checkfree | checkfree+ | checkfree+ / checkpoints"
    return table(columns, rows)


def our_table(runs: Runs, costs: Record) -> str:
    """Times with what this code takes."""
    if not costs:
        return "Not measured."
    cost, rows = our_cost(costs), []
    said = {
        "iteration_s": "iteration, stages in their order",
        "swapped_s": "iteration, half of it swapped",
        "redundant_s": "iteration, every stage computing the next one's forward pass too",
        "save_s": "writing a checkpoint",
        "restore_s": "reading one, all stages",
        "heal_s": "blending a stage, fresh optimizer included",
    }
    for method in METHODS:
        rows.append([method])
        for rate in runs.rates:
            rows[-1].append(span([cost(method, each) for each in runs.all_taken(method, rate).values()], ".1f"))
            rows[-1].append(span(runs.ratios(method, AGAINST, rate, cost), ".2f"))
    lines = [f"* {text}: {1e3 * costs[key]:.1f} ms" for key, text in said.items()]
    size = f"A checkpoint has {costs['checkpoint_bytes'] / 1e6:.2f} MB. Seconds to the target:"
    columns = ["method", *(f"{rate:.0%} | / checkpoints" for rate in runs.rates)]
    return "\n".join([*lines, "", size, "", table(" | ".join(columns), rows)])


def more_table(runs: Runs, names: Sequence[str]) -> str:
    """Variants at one rate: iterations, and the loss at the end."""
    rows = []
    for name in (name for name in names if runs.of(name)):
        ends = [smooth(run["losses"])[-1] for run in runs.of(name).values()]
        taken, slower = by_seed(runs.all_taken(name, 0.0)), span(runs.slower(name, 0.0), ".2f")
        rows.append([name, taken, slower, span(ends, ".4f")])
    columns = "variant | iterations to the target by seed | / no failures | loss at the end"
    return table(columns, rows)


def ends_table(runs: Runs, rate: float) -> str:
    """CheckFree+ where any stage can fail, beside checkpoints with the same failures."""
    name = f"checkfree+ {rate:.0%} all stages"
    free = runs.all_taken("none", 0)
    probability = next(run["probability"] for run in runs.of(f"checkfree {rate:.0%}").values())
    cost, rows = paper_cost(rate), []
    methods: dict[str, dict[int, Taken]] = {}
    for interval in INTERVALS:
        method = f"checkpoint every {interval}"
        found = {seed: runs.taken(method, rate, seed, stages=ALL) for seed in free}
        methods[method] = {seed: taken for seed, taken in found.items() if taken}
    methods[name] = {seed: healed(run, runs.target(seed, MAIN_TARGET)) for seed, run in runs.of(name).items()}
    for method, taken in methods.items():
        interval_text = method.removeprefix("checkpoint every ")
        mean = f"{expected(1.0, int(interval_text), probability, len(ALL)):.2f}" if method != name else ""
        against = [cost(method, each) / cost(AGAINST, methods[AGAINST][seed]) for seed, each in taken.items()]
        slower = [each.iterations / free[seed].iterations for seed, each in taken.items()]
        rows.append([method, by_seed(taken), span(slower, ".2f"), mean, span(against, ".2f")])
    columns = "iterations by seed | / no failures | mean of all draws / no failures: | / checkpoints every 100"
    return table(f"method | {columns}", rows)


def layers_table(records: Sequence[Record], probability: float) -> str:
    """What swaps and failures cost by the depth of a stage."""
    mean, rows = expected(1.0, 100, probability, 4), []
    for layers in LAYERS:
        names = {of_layers(name, layers): name for name in ("none", "swaps", "checkfree+ 10%")}
        runs = Runs([{**run, "name": names[run["name"]]} for run in records if run["name"] in names])
        swaps = runs.slower("swaps", 0.0)
        if swaps:
            floor = [slower / mean for slower in swaps]
            healed_in = runs.slower("checkfree+", 0.10)
            over = [slower / mean for slower in healed_in]
            figures = [span(values, ".2f") for values in (swaps, floor, healed_in, over)]
            rows.append([layers, len(swaps), *figures])
    columns = (
        "layers a stage: | seeds: | swaps / no failures | floor | checkfree+ / no failures | / checkpoints, all draws"
    )
    return table(columns, rows)


def jumps(records: Sequence[Record], stage: int) -> str:
    """What happened to the loss when a stage was restored that was lost alone, over runs."""
    found = []
    for run in records:
        alone = [lost for lost in run["lost"] if [other[0] for other in run["lost"]].count(lost[0]) == 1]
        found += [after - before for _, at, _, before, after in alone if at == stage]
    return f"{statistics.mean(found):+.3f}, worst {max(found):+.3f}, of {len(found)}" if found else ""


def jump_table(runs: Runs, names: Sequence[str]) -> str:
    """Loss before and after, by method and stage."""
    stages = range(1, 7)
    rows = [[name, *(jumps(list(runs.of(name).values()), stage) for stage in stages)] for name in names]
    return table(" | ".join(["runs", *(f"stage {stage}" for stage in stages)]), rows)


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
    with figure(path, 16, 5, 3) as [left, middle, right]:
        lowest = curves(left, middle, runs, rate)
        for axes, name in ((left, "iterations"), (middle, "hours at the paper's costs")):
            axes.set_ylim(lowest - 0.02, lowest + 0.5)
            axes.set_xlabel(name)
            axes.legend(fontsize=7)
        left.set_ylabel(f"validation loss, nats a byte; {rate:.0%} an hour, mean of seeds")
        for number, at in enumerate(runs.rates):
            for method, style in (("checkfree", "--o"), ("checkfree+", "-o")):
                ratios = [runs.ratios(method, AGAINST, at, paper_cost(at), part) for part in TARGETS]
                means = [statistics.mean(each) if each else math.nan for each in ratios]
                parts = [100 * part for part in TARGETS]
                right.plot(parts, means, style, color=f"C{number}", label=f"{method} {at:.0%}")
        right.axhline(0.6, color="black", linewidth=0.8)
        right.set_xlabel("target: loss without failures at this % of the iterations")
        right.set_ylabel("time to it against checkpoints every 100")
        right.legend(fontsize=7)


def curves(left: Any, middle: Any, runs: Runs, rate: float) -> float:
    """Mean losses of all methods by iterations and by hours; the lowest of the run without failures."""
    cost, free = paper_cost(rate), runs.of("none")
    sample = next(iter(runs.of(f"checkfree {rate:.0%}").values()))
    every = sample["every"]
    for method, name in (("none", "none"), ("swaps", "swaps"), *((m, f"{m} {rate:.0%}") for m in METHODS[-2:])):
        if not runs.of(name):
            continue
        means = mean_curve(runs.of(name))
        steps = [every * index for index in range(len(means))]
        left.plot(steps, means, label="no failures" if name == "none" else name)
        if method.startswith("checkfree"):
            middle.plot([cost(method, Taken(step)) / 3600 for step in steps], means, label=name)
    losses = mean_curve(free)
    for interval in INTERVALS:
        label, spent, shown = f"checkpoint every {interval}", [], losses[4:]
        for step in range(4 * every, sample["iterations"] + 1, every):
            rolled = [rolled_back(step, interval, seed, sample["probability"], INNER).iterations for seed in free]
            spent.append(statistics.mean(rolled))
        left.plot(spent, shown, "--", label=label)
        middle.plot([cost(label, Taken(each)) / 3600 for each in spent], shown, "--", label=label)
    hours = [cost(REDUNDANT, Taken(every * index)) / 3600 for index in range(len(losses))]
    middle.plot(hours, losses, ":", label=REDUNDANT)
    return min(losses[5:])


def mean_curve(found: dict[int, Record]) -> list[float]:
    """Of the smoothed losses of a variant's runs."""
    return [statistics.mean(values) for values in zip(*(smooth(run["losses"]) for run in found.values()), strict=True)]
