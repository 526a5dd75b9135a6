"""Our model of utilisation beside the table of the Streaming DiLoCo paper: bandwidths for 50 to 99 % in compute.

    scripts/bench utilisation-model         # arithmetic, half a minute

Writes docs/benchmarks/utilisation-model.json and .md. The model is described in docs/algorithms/utilisation.md.
"""

import math
import time
from collections.abc import Callable

from decentral.sim.utilisation import Method, bandwidth_for
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, stamp, write
from scripts.benches.lib.table4 import GRID, MODELS, TARGETS, Row, compare, place_of
from scripts.benches.lib.tables import table

SCRIPT = "utilisation-model"
DELAYS = (0, 1, 2, 5, 10)
#: How a bandwidth between two places of the grid could have become one of them.
ROUNDINGS: dict[str, Callable[[float], int]] = {"down": math.floor, "nearest": round, "up": math.ceil}


def matches(rows: list[Row], rounding: str, scale: float) -> int:
    """Figures that are the paper's, if ours are taken ``scale`` times and rounded to its grid."""
    pairs = [pair for row in rows for pair in zip(row.ours, row.published, strict=True)]
    to_place = ROUNDINGS[rounding]
    return sum(to_place((math.log10(our * scale) + 1) * 49 / 4) == place_of(theirs) for our, theirs in pairs)


def best(rows: list[Row], rounding: str) -> Record:
    """The scale with which most figures are the paper's."""
    scales = [1.5 ** (place / 100) for place in range(-100, 101)]
    found = {scale: matches(rows, rounding, scale) for scale in scales}
    most = [scale for scale, count in found.items() if count == max(found.values())]
    return {"matches": max(found.values()), "from": min(most), "to": max(most)}


def measure() -> Record:
    """All figures."""
    began = time.process_time()
    rows = compare()
    off = [steps for row in rows for steps in row.steps_off]
    ratios = [ratio for row in rows for ratio in row.ratios]
    return {
        "rows": [{key: getattr(row, key) for key in _KEPT} for row in rows],
        "steps_off": {str(steps): off.count(steps) for steps in sorted(set(off))},
        "ratio": [min(ratios), math.exp(sum(map(math.log, ratios)) / len(ratios)), max(ratios)],
        "as_is": {rounding: matches(rows, rounding, 1.0) for rounding in ROUNDINGS},
        "twice_the_bits": {rounding: matches(rows, rounding, 2.0) for rounding in ROUNDINGS},
        "scaled": {rounding: best(rows, rounding) for rounding in ROUNDINGS},
        "delays": {
            model: {
                str(delay): bandwidth_for(0.95, MODELS[model], Method("", 100, 3, delay, bits=4.0)) / 1e9
                for delay in DELAYS
            }
            for model in MODELS
        },
        "cpu_s": round(time.process_time() - began, 1),
        **stamp(SCRIPT),
    }


_KEPT = ("model", "method", "ours", "published", "ratios")


def tables(report: Record) -> str:
    """One table for each model."""
    columns = " | ".join(["", *(f"{target:.0%}:" for target in TARGETS)])
    parts = []
    for name, model in MODELS.items():
        rows = []
        for row in report["rows"]:
            if row["model"] == name:
                figures = zip(row["ours"], row["published"], row["ratios"], strict=True)
                rows.append(
                    [row["method"], *(f"{our:.3g} / {theirs:g} ({ratio:.2f})" for our, theirs, ratio in figures)]
                )
        title = f"### {name}: {model.layers} layers, {model.step_s:g} s a step"
        parts.append(f"{title}\n\n{table(columns, rows)}")
    return "\n\n".join(parts)


def page(report: Record) -> str:
    """The page for people."""
    off, scaled, as_is = report["steps_off"], report["scaled"], report["as_is"]
    low, mean, high = report["ratio"]
    others = sum(off.values()) - off["0"]
    num_figures, twice = len(report["rows"]) * len(TARGETS), report["twice_the_bits"]
    delays = [[model, *(f"{figure:.3g}" for figure in found.values())] for model, found in report["delays"].items()]
    rounded = [
        [how, as_is[how], twice[how], scaled[how]["matches"], f"{scaled[how]['from']:.2f} to {scaled[how]['to']:.2f}"]
        for how in ROUNDINGS
    ]
    return f"""# Bandwidth for utilisation, beside the paper

Written by `scripts/bench utilisation-model`; the raw record is `utilisation-model.json`. Gbit/s that a worker's line
needs for 50 to 99 % of time in compute, by [our model](../algorithms/utilisation.md) / as printed in table 4 of
Streaming DiLoCo (arXiv 2501.18512), and the ratio in brackets. H = 100, fragments of three layers (strided), a delay of
one step where there is overlap, two workers, 16 bits a value, 4 bits with fp4. Nothing is fitted to the table.

{tables(report)}

## How close

* All {num_figures} ratios are between {low:.2f} and {high:.2f}; geometric mean {mean:.2f}.
* The paper's figures are not free: each is one of {len(GRID)} bandwidths, 10^(-1 + 4 k / 49) Gbit/s, rounded for print
  to two decimals and then to one. Neighbours are {GRID[1] / GRID[0]:.3f} times apart; so far can a figure be off for
  that reason alone. (The ratios are to the bandwidth before it was rounded for print.)
* For {off["0"]} of ours the printed figure is the last bandwidth of that grid below them; the other \
{others} are one place off, none is more.

## What explains the rest

Figures that are the paper's, of {num_figures}, if ours are rounded to its grid:

{table("rounded | as they are: | with twice the bits: | with the best scale: | that scale:", rounded)}

* **Values travel in 16 bits**, not in fp32. Without latency, twice the bits need exactly twice the bandwidth, and then
  no figure agrees. The paper's own step from overlap to fp4, a factor of 3.4 to 4.8, says the same.
* **Rounding, or traffic.** With our traffic the paper's figure is the bandwidth of the grid *below* ours: the largest
  that just fails. Had it printed the least bandwidth that reaches the share (rounded up), its workers would have moved
  {1 - scaled["up"]["to"]:.0%} less than all parameters in 16 bits. Both fit equally well, and so does the nearest place
  with {1 - scaled["nearest"]["to"]:.0%} less (2^30 bits to a Gbit would be 7 % less). The table cannot tell.
* **A reduce overlaps with the backward pass** of its own step, layer by layer, in data parallel and in DiLoCo alike.
  That is why 99 % in data parallel is another regime: nothing can hide the first layer's reduce, which ends the
  backward pass and begins the next forward pass, and its time goes with 1 / layers. From 95 to 99 % the model of 24
  layers needs 2.8 times the bandwidth (2.6 in the paper), that of 108 layers 1.06 times (1.2).
* **The delay is one step**, in whole steps after the one of the reduce. With five, a third of the bandwidth would do
  (three fifths at 100B, where fragments follow each other so closely that the link never rests), far from the table:

{table(" | ".join(["Gbit/s for 95 %, fp4, delay of", *(f"{delay}:" for delay in DELAYS)]), delays)}

* **Embeddings** are left out: all parameters are in equal layers. The paper says neither how many parameters they have
  nor where in its graph they are.
* **Steps as printed.** 0.1, 0.8 and 4.9 s are rounded, and come from a share of peak FLOPs that the paper gives as 60 %
  in one place and 40 % in another. Another step time scales all figures of a model, inversely.

{report["cpu_s"]:.0f} s of CPU time; {report["versions"]}; {report["date"]}
"""


def main() -> None:
    """Compute, write."""
    options = Parser(SCRIPT, __doc__, "utilisation-model").parse_args()
    report = measure()
    write(options.out, report, page(report))
    print(page(report))


if __name__ == "__main__":
    enter(main)
