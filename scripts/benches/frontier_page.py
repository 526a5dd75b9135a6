"""The page and the plot of `scripts/bench frontier`, from its records. Runs nothing."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benches.frontier_arms import ARMS, RATES, Arm, chosen, tried
from scripts.benches.lib.arms import ALONE, DATA_PARALLEL, by_seed, set_up, share_kept
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, kept, places
from scripts.benches.lib.search import Point
from scripts.benches.lib.stats import bars, gaps, grouped, listed, spread
from scripts.benches.lib.tables import table

#: Along the axes, and up the data.
_ACROSS = ("axes fraction", "data")

#: What we ask for: times fewer bytes, and a loss so far above that of data-parallel training.
GOALS = ((2000, 0.01), (5000, 0.02))
#: Of runs that the plot shows.
_LONG_STEPS = 5_000


@dataclass(frozen=True)
class Line:
    """An arm at its best."""

    arm: Arm
    point: Point
    runs: list[Record]
    """By seed."""

    @property
    def losses(self) -> dict[int, float]:
        """By seed."""
        return by_seed(self.runs)

    @property
    def mean(self) -> float:
        """Of the losses."""
        return statistics.mean(self.losses.values())

    @property
    def sent(self) -> float:
        """Bytes of a worker in all rounds."""
        return statistics.mean(
            float(run["sent_bytes_in_rounds" if "sent_bytes_in_rounds" in run else "sent_bytes"]) for run in self.runs
        )


def lines(records: Sequence[Record]) -> dict[str, Line]:
    """By name, those arms that were run."""
    found = {}
    for arm in ARMS:
        own, point = tried(arm, records), chosen(arm, records)
        if own:
            # What takes after another arm may not have been run at that one's best, and that one not at all.
            at = point if point is not None and point in own else min(own, key=own.__getitem__)
            runs = [run for run in records if at in arm.points(run)]
            found[arm.name] = Line(arm, at, sorted(runs, key=lambda run: int(run["key"][1])))
    return found


def page(out: Path, records: list[Record]) -> str:
    """A section for each set-up."""
    groups = grouped(records, set_up)
    sections = [section(title, runs) for title, runs in groups.items()]
    return "\n".join([_HEAD, kept(out), *by_size(groups.values()), *sections])


def by_size(groups: Iterable[list[Record]]) -> list[str]:
    """Models of several sizes with equal text a parameter: what arms lose to data-parallel training, and power laws."""
    found = []
    for (_, text), runs in grouped(groups, _text_a_parameter).items():
        by_values = {int(records[0]["values"]): lines(records) for records in runs}
        sizes = sorted(by_values.items(), key=lambda size: size[0])
        names = [name for name in sizes[0][1] if all(name in of_size for _, of_size in sizes)]
        if len(sizes) < _SIZES or DATA_PARALLEL not in names:
            continue
        rows = []
        for name in names:
            each = [of_size[name] for _, of_size in sizes]
            off = [gaps(of_size[name].losses, of_size[DATA_PARALLEL].losses) for _, of_size in sizes]
            slope, _ = np.polyfit(np.log([values for values, _ in sizes]), np.log([line.mean for line in each]), 1)
            told = [f"{line.mean:.4f} ({statistics.mean(by):+.1%})" for line, by in zip(each, off, strict=True)]
            rows.append([name, *told, f"{slope:.3f}"])
        columns = " | ".join(["arm", *(f"{values:,} parameters:" for values, _ in sizes), "exponent:"])
        found.append(f"{_BY_SIZE.format(text=text)}{table(columns, rows)}\n")
    return found


def _text_a_parameter(records: list[Record]) -> tuple[int, int]:
    """Workers, and how many bytes of text all of them take for each parameter."""
    _, _, _, steps, workers, settings = records[0]["key"]
    [batch] = [setting.removeprefix(_BATCH) for setting in settings if setting.startswith(_BATCH)]
    return workers, round(steps * workers * int(batch) * _SEQUENCE_BYTES / records[0]["values"])


def section(title: str, records: list[Record]) -> str:
    """One set-up: each arm at its best, then all tries."""
    found = lines(records)
    alone, dense = (found[name].losses if name in found else {} for name in (ALONE, DATA_PARALLEL))
    rows, tries = [], []
    for name, line in found.items():
        each = tried(line.arm, records)
        losses, shares, off = line.losses, share_kept(line.losses, alone, dense), gaps(line.losses, dense)
        taken = len(each) == 1 and line.point == chosen(line.arm, records) and line.arm.like
        count = f"as {line.arm.like}" if taken else len(each)
        row = [name, count, f"{RATES[line.point[0]]:g}", plain(line.arm.others[line.point[1]])]
        with_start = statistics.mean(run["sent_bytes"] for run in line.runs)
        row += [line.runs[0].get("syncs", ""), f"{line.sent / 1e6:.3g}", f"{with_start / 1e6:.3g}", fewer(line, found)]
        row += [listed(losses.values(), ".4f"), f"{line.mean:.4f}"]
        rows.append([*row, spread(off, "+.1%") if off else "", spread(shares, ".0%") if shares else ""])
        told = [
            f"{RATES[rate]:g} {plain(line.arm.others[other])}".strip() + f": {loss:.4f}"
            for (rate, other), loss in each.items()
        ]
        tries.append([name, line.arm.settings, "; ".join(told)])
    stamps = "".join(f"\n{place}\n" for place in places(records))
    return f"## {title}\n\n{table(_COLUMNS, rows)}\n\n{table(_TRIED, tries)}\n{stamps}\n    scripts/bench frontier\n"


def fewer(line: Line, found: dict[str, Line]) -> str:
    """Times fewer bytes than data-parallel training sends."""
    return f"{found[DATA_PARALLEL].sent / line.sent:,.0f}" if DATA_PARALLEL in found and _sends(line) else ""


def _sends(line: Line) -> bool:
    """Whether it is no single worker, who has only its signs of life to send."""
    return line.arm.name != ALONE and not line.arm.name.startswith("k = 1")


def plain(other: str) -> str:
    """Outer learning rate and momentum in short."""
    return other.replace("outer_lr=", "").replace(" outer_momentum=", "/")


def plot(path: Path, records: list[Record]) -> None:
    """Gap to data-parallel training against bytes: of the long runs with most arms, and of the longest."""
    groups = list(grouped(records, set_up).values())
    longest = max(groups, key=_steps)
    widest = max((runs for runs in groups if _steps(runs) >= _LONG_STEPS), key=len, default=longest)
    panels = [widest] if widest is longest else [widest, longest]
    with figure(path, 10 * len(panels), 7, columns=len(panels)) as drawn:
        for axes, runs in zip(drawn, panels, strict=True):
            _against_bytes(axes, runs)


def _steps(records: list[Record]) -> int:
    return int(records[0]["key"][3])


def _against_bytes(axes: Any, records: list[Record]) -> None:
    """One set-up."""
    found = lines(records)
    dense = found[DATA_PARALLEL]
    families = list(dict.fromkeys(_family(name) for name in found))
    for name, line in found.items():
        off = [100 * gap for gap in gaps(line.losses, dense.losses)]
        middle = statistics.mean(off)
        if _sends(line):
            colour = f"C{families.index(_family(name)) % 10}"
            axes.errorbar(line.sent / 1e6, middle, yerr=bars(off, middle), fmt="o", capsize=3, color=colour)
            place = (line.sent / 1e6, middle)
            axes.annotate(name, place, textcoords="offset points", xytext=(5, 4), fontsize=7)
        else:
            axes.axhline(middle, color="grey", linestyle="--", linewidth=0.8)
            axes.annotate(
                f"{name}: sends nothing", (0.98, middle), xycoords=_ACROSS, ha="right", va="bottom", fontsize=7
            )
    for times, above in GOALS:
        axes.plot(dense.sent / times / 1e6, 100 * above, "*", color="tab:red", markersize=12)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xscale("log")
    axes.set_title(f"{_steps(records):,} steps of {records[0]['key'][4]} workers", fontsize=10)
    axes.set_xlabel("MB sent by a worker in all rounds; stars: to be reached")
    axes.set_ylabel("validation loss above data-parallel training of the same seed, %")
    axes.margins(x=0.12)


def _family(name: str) -> str:
    """Arms of one colour."""
    return name.partition(",")[0]


_HEAD = """# Loss against bytes

Written by `scripts/bench frontier`; the raw numbers are in `frontier.json`. Production workers train the byte-level
language model on Python's standard library; the network alone is simulated, and all workers are equally fast. *alone*
is one worker for as many steps, *data-parallel* one process that takes the batches of all workers in every step, and
*k = 1* one worker that takes the outer step with itself. Loss in nats per byte on the same held-out windows, of the
anchor that a worker ends with; where workers end with anchors of their own (NoLoCo, async), the mean of their losses.

![loss against bytes](frontier.png)

* **tries**: budget of tuning with the first seed, the same for all arms: a search over the learning rate and the outer
  settings goes from a first try to the better neighbour, and ends where it finds none. All tries are in the second
  table. An arm that is *as* another takes what is best there, and so may do better than is shown.
* **lr**, **outer**: the best of these; outer learning rate and momentum, empty for the method's own. Other seeds are
  run with them. Seeds differ in initial weights, in all streams of data, in the noise of codecs and in pairs.
* **MB**: sent by one worker in all rounds, mean over workers, without what signs of life say (they go by time, whatever
  the size of the model: some 2 kB a second). **with start**: and by the time of the first round, most of which is the
  model for who joins. **fewer**: times fewer bytes in the rounds than the ring all-reduce in fp32 of data-parallel
  training sends, of which no start is counted either. Of the runs that are the [quickstart's](quickstart.md) there are
  only bytes with start and signs of life.
* **to data-parallel**: loss above that of data-parallel training, mean over seeds (least to greatest). **kept**: share
  of the gain, (alone - arm) / (alone - data-parallel).
"""

#: A law through fewer would be none.
_SIZES = 3
_BATCH, _SEQUENCE_BYTES = "task.settings.batch_sequences=", 128
_BY_SIZE = """## By size, with {text} bytes of text a parameter

Mean loss of each arm at its best, in brackets what it is above data-parallel training, seed by seed; **exponent**: a
of the power law L = c N^a through the losses, N the parameters, as in "Scaling Laws for DiLoCo" (arXiv 2503.09799).

"""
_COLUMNS = (
    "arm | tries | lr: | outer | syncs: | MB: | with start: | fewer: | loss by seed | mean: | to data-parallel | kept"
)
_TRIED = "arm | settings | loss by learning rate and outer settings, first seed, in the order of the tries"
