"""What syncs that cost no time cost in quality: streaming and eager swarms against blocking DiLoCo at the same tokens.

    scripts/bench streaming-quality --variant "codec=fp32" --variant "name=streaming delay_steps=5" [--workers 4] ...
    scripts/bench streaming-quality         # writes page and plot anew from the raw numbers

A variant is a list of settings of ``[method]``; what all runs have in common is given with ``--set``. Every gap is to
the variant ``codec=fp32`` with the same set-up and seed. Appends to OUT.json and writes OUT.md and OUT.png anew; the
section "Findings" of OUT.md is written by hand and kept.
"""

import re
import statistics
from pathlib import Path

import numpy as np

from decentral.config.names import Family
from scripts.benches.lib.command import enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, kept, places
from scripts.benches.lib.stats import between, grouped, listed
from scripts.benches.lib.tables import table
from scripts.benches.lib.variants import Run, agreed_loss, by_variant, run_variants, set_up

BASELINE = "codec=fp32"
#: Virtual seconds of an inner step. Long beside an exchange: a result always is there when its tau steps are over.
STEP_S = 2.0
_STATED = ("fragments", "delay_steps", "codec", "mean_codec", "feedback", "outer_lr", "outer_momentum")
#: What we ask for, by whether updates are eager.
_LIMITS = {False: 0.005, True: 0.01}


def measure(run: Run) -> Record:
    """One swarm from its start to its end."""
    play = run.play(step_s=STEP_S)
    *_, last = play.members.values()
    method, mixed = play.swarm.method, last.mixed()
    return {
        **run.record(play),
        "val_loss": agreed_loss(play),
        "method": {key: getattr(method, key) for key in _STATED}
        | {"eager": method.family is Family.EAGER, "alpha": method.alpha},
        "num_fragments": 1 + max(event.fragment for event in mixed),
        "delays": sorted({event.delay_steps for event in mixed}),
    }


# -- written ----------------------------------------------------------------------------------------------------------


def page(out: Path, records: list[Record]) -> str:
    """The page, and the plot beside it."""
    groups = grouped(records, title)
    names = sorted(groups, key=lambda name: -len(groups[name]))
    if names:
        plot(out, groups[names[0]])
    return "\n".join([_HEAD, kept(out), *(section(name, groups[name]) for name in names)])


def title(record: Record) -> str:
    """What a table's runs have in common, settings without the sections of their keys."""
    return set_up({**record, "settings": [re.sub(r"^[^=]*\.", "", setting) for setting in record["settings"]]})


def ordered(records: list[Record]) -> dict[str, list[Record]]:
    """Runs by variant, the baseline first, then those with more seeds."""
    found = by_variant(records)
    order = sorted(found, key=lambda variant: (variant != BASELINE, -len(found[variant]), place(found[variant][0])))
    return {variant: found[variant] for variant in order}


def place(record: Record) -> tuple[bool, str, int, float]:
    """Where a run stands among others."""
    method = record["method"]
    codecs = f"{method['codec']} {method['feedback']} {method['mean_codec']}"
    return method["eager"], codecs, method["delay_steps"], method["alpha"]


def gaps_of(runs: list[Record], records: list[Record]) -> list[float]:
    """Of runs to the baseline with the same seed, as fractions of its loss."""
    reference = {run["seed"]: run["val_loss"] for run in records if run["variant"] == BASELINE}
    return [run["val_loss"] / reference[run["seed"]] - 1 for run in runs if run["seed"] in reference]


def section(name: str, records: list[Record]) -> str:
    """One set-up."""
    rows = []
    for variant, runs in ordered(records).items():
        run, off, losses = runs[0], gaps_of(runs, records), [run["val_loss"] for run in runs]
        what = [variant, run["num_fragments"], ", ".join(map(str, run["delays"])), f"{run['method']['alpha']:g}"]
        bits = [f"{run['bits_up']:.3g}", f"{run['bits_down']:.3g}"]
        gap = [f"{statistics.mean(off):+.2%}", between(off, "+.2%")] if off else ["", ""]
        rows.append([*what, *bits, listed(losses, ".4f"), f"{statistics.mean(losses):.4f}", *gap])
    rounds = f"{records[0]['rounds']} rounds of {records[0]['inner_steps']} steps; losses in the order of the seeds."
    stamps = "".join(f"\n{place}\n" for place in places(records))
    return f"## {name}\n\n{table(_COLUMNS, rows)}\n\n{rounds}\n{stamps}"


def swept(records: list[Record]) -> dict[tuple[int, int], dict[float, list[Record]]]:
    """Runs of streaming that differ in overlap alone: by fragments and tau, then by alpha."""
    plain = {"codec": "e3m0-b128", "mean_codec": "e3m0-b128", "feedback": "none", "eager": False}
    shown = [run for run in records if run["method"]["delay_steps"] and plain.items() <= run["method"].items()]
    found = grouped(shown, lambda run: (run["num_fragments"], run["method"]["delay_steps"]))
    order = sorted(found, key=lambda key: (-key[0], key[1]))
    return {key: grouped(found[key], lambda run: float(run["method"]["alpha"])) for key in order}


def plot(path: Path, records: list[Record]) -> None:
    """Gaps of variants with several seeds beside the limits, and of tau by alpha with the seed that has them all."""
    shown = {variant: runs for variant, runs in ordered(records).items() if len(runs) > 1}
    grid = swept(records)
    alphas = sorted({alpha for row in grid.values() for alpha in row})
    cells = np.full((len(grid), len(alphas)), np.nan)
    with figure(path, 14, 5.5, 2) as (left, right):
        for y, runs in enumerate(shown.values()):
            off, eager = [100 * gap for gap in gaps_of(runs, records)], runs[0]["method"]["eager"]
            left.plot(off, [y] * len(off), "o", color="tab:orange" if eager else "tab:blue", alpha=0.5)
            left.plot(statistics.mean(off), y, "|", color="black", markersize=14)
            left.plot([100 * _LIMITS[eager]] * 2, [y - 0.4, y + 0.4], color="tab:red")
        left.axvline(0, color="grey", linewidth=0.5)
        left.set_yticks(range(len(shown)), [short(variant) for variant in shown], fontsize=7)
        left.invert_yaxis()
        left.set_xlabel("validation loss against blocking DiLoCo in fp32, %; dots: seeds, red: limit")
        for y, row in enumerate(grid.values()):
            for x, alpha in enumerate(alphas):
                if first := gaps_of([run for run in row.get(alpha, ()) if run["seed"] == 0], records):
                    cells[y, x] = 100 * first[0]
                    right.text(x, y, f"{cells[y, x]:+.2f}", ha="center", va="center", fontsize=9)
        if cells.size:
            image = right.imshow(cells, cmap="RdYlGn_r", vmin=-2, vmax=2, aspect="auto")
            right.figure.colorbar(image, ax=right, label="against blocking DiLoCo in fp32, %; seed 0")
        right.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        labels = [f"tau {tau}, {fragments} fragment{'s' * (fragments > 1)}" for fragments, tau in grid]
        right.set_yticks(range(len(grid)), labels, fontsize=8)
        right.set_xlabel("alpha, share of the local parameters kept")
        right.set_title("streaming, E3M0", fontsize=9)


def short(variant: str) -> str:
    """A variant for the plot."""
    for old, new in (
        ("preset=", ""),
        ("name=", ""),
        ("delay_steps", "tau"),
        ("mix_alpha", "alpha"),
        ("mean_codec", "mean"),
    ):
        variant = variant.replace(old, new)
    return variant


_HEAD = """# What overlap costs in quality

Written by `scripts/bench streaming-quality`; the raw numbers are in `streaming-quality.json`. Production workers train
the language model; the network alone is simulated, with inner steps so long that every result is there when it is to
be used. All runs of a table have the same tokens, data streams, initial weights (for a seed), H and outer rule, and
differ in the named settings of `[method]` only; `codec=fp32` is plain DiLoCo, which blocks. Loss of the anchors in nats
per byte on held-out text.

* **P**: fragments. **tau**: inner steps between launch and use, as they were in the run. **alpha**: share of the local
  parameters kept. **up**, **down**: bits a value, of contributions and of means.
* **gap**: to `codec=fp32` with the same seed; mean, and least to greatest. Red in the plot: the limit that we set
  ourselves, 0.5 % for streaming and 1 % for eager updates.

![gaps, and gaps by tau and alpha](streaming-quality.png)
"""

_COLUMNS = "variant | P: | tau: | alpha: | up: | down: | loss by seed | mean: | gap: | seeds"


def main() -> None:
    """See ``run_variants``."""
    say = "{val_loss:.4f}  {num_fragments} fragments, delays {delays}".format_map
    run_variants("streaming-quality", __doc__, "streaming-quality", measure, page, say)


if __name__ == "__main__":
    enter(main)
