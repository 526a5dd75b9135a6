"""The page of ``goodput``: its records for people. Simulates nothing."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scripts.benches.lib.report import Record, places
from scripts.benches.lib.stats import grouped, spread
from scripts.benches.lib.tables import table

if TYPE_CHECKING:  # which makes this page
    from scripts.benches.goodput import Case

#: Decoupled DiLoCo's own figures by chips and learners; none for data-parallel, rigid and elastic.
PAPER: Mapping[tuple[int, int], float] = {
    (1_200_000, 8): 0.88,
    (1_200_000, 16): 0.93,
    (2_400_000, 8): 0.80,
    (2_400_000, 16): 0.86,
}
PAPER_RIGID, PAPER_ELASTIC = {1_200_000: 0.27, 2_400_000: 0.18}, {1_200_000: 0.58, 2_400_000: 0.40}
GOAL = 0.90


Runs = Mapping[str, Sequence[Record]]


def page(records: Sequence[Record], cases: Mapping[str, "Case"], arms: Mapping[str, str]) -> str:
    """The page.

    Args:
        records: of all runs.
        cases: by name.
        arms: what each arm is, in words.
    """
    runs = grouped(records, lambda record: str(record["case"]))
    return f"""# Goodput under failures

Written by `scripts/bench goodput`; the raw numbers are in `goodput.json`. The setting is that of the simulation in
Decoupled DiLoCo (arXiv 2604.21428): {_millions(1_200_000)} chips, each of which fails once a year on average, are
spread over M learners, and a failure of any chip stops its learner. There a central synchroniser holds the model; here
nobody does. A learner is one production worker on the [simulator](../simulator.md). **Goodput** is the share of the
learners' time that went into inner steps of which the result entered an anchor. Steps that were lost with a learner
before a round had counted them are not in it; those that others have counted are, even if it never heard of that.

## Assumptions side by side

{table("| there | here", _assumptions())}

## Result

{table(_RESULT, _result(runs, cases))}

Possible: the share of time in which learners are up. What is *here* is worked out from what each failure cost in the
runs (see below), at one failure a year and chip; the runs themselves drew a few more or fewer. The data-parallel
figures here are what the same failures at the same moments make of one job that all of them stop for 71 s (rigid) or
19 s (elastic), the times that reproduce the paper's figures for 1.2 million chips.

## By method

{_of_case(next(iter(cases.values())))}Mean and, of several seeds, lowest to highest; seconds are for each failure.

{table(_METHODS, _methods(runs, cases))}

{_arms(arms)}

## Sensitivity

{table(_SENSITIVITY, _sensitivity(runs, cases))}

{_findings(runs, cases)}

{"; ".join(places(records))}
"""


_RESULT = (
    "chips: | M: | data-parallel, there: | here: | elastic, there: | here: | M learners, there: | possible here: "
    "| all-reduce: | best: | which is"
)
_METHODS = (
    "method | goodput at the rate: | in the runs: | of which were possible: | joining (s): | waiting (s): "
    "| moving values (s): | repairing (s): "
    "| work lost (s): | all, but the stop (s): "
)
_SENSITIVITY = "stop (s): | line (s for the model): | method | possible: | goodput at the rate: "


def _millions(chips: int) -> str:
    return f"{chips / 1e6:g} million"


def _assumptions() -> list[list[str]]:
    return [
        ["interruptions", "1 a year and chip", "the same, at exponential intervals, drawn for each learner"],
        ["learners", "M = 8 or 16", "the same"],
        [
            "a failure stops",
            "one learner, for times that the notes at hand do not give",
            "one learner, for 19 s: what elastic data-parallel loses for each failure if it reaches 58 % with "
            "1.2 million chips. Failures of a learner that stands change nothing",
        ],
        [
            "what is left of a learner",
            "its chips but for those lost; it goes on with stale parameters and optimizer states",
            "nothing: another worker joins in its place and downloads weights and outer momentum from the others. In "
            "the rows *kept* the learner stands still for the stop and goes on with what it has",
        ],
        ["inner step", "1 s (in the table of bandwidths)", "1 s"],
        ["sync", "24 fragments, H = 24, tau = 2", "the whole model, H = 4 or 24, tau = 2; streaming: see below"],
        ["steps taken beside a sync", "overwritten", "half of what they did is kept (`mix_alpha` 0.5), and they count"],
        ["whom a sync waits for", "K = 1 and a grace window", "those who live, or a quorum: see below"],
        [
            "line of a learner",
            "not stated",
            "float32 model in 0.25 s, 20 ms latency; a quarter of the learners reduce a shard each",
        ],
    ]


def _mean(runs: Sequence[Record], key: str) -> float:
    return statistics.mean(float(run[key]) for run in runs)


def _result(runs: Runs, cases: Mapping[str, "Case"]) -> list[list[object]]:
    """A row for each number of chips and learners at the usual stop."""
    usual = next(iter(cases.values()))
    rows: list[list[object]] = []
    for (chips, learners), there in PAPER.items():
        names = [
            name
            for name in runs
            if (cases[name].chips, cases[name].learners) == (chips, learners)
            and (cases[name].stop_s, cases[name].model_s) == (usual.stop_s, usual.model_s)
        ]
        by_arm = {cases[name].arm: cases[name] for name in names}
        found = {cases[name].arm: runs[name] for name in names}
        if usual.arm not in found:
            continue
        here = {arm: _at_the_rate(each, by_arm[arm]) for arm, each in found.items()}
        best = max(here, key=lambda arm: here[arm])
        first = found[usual.arm]
        rows.append(
            [
                _millions(chips),
                learners,
                f"{PAPER_RIGID[chips]:.0%}",
                f"{_mean(first, 'rigid'):.0%}",
                f"{PAPER_ELASTIC[chips]:.0%}",
                f"{_mean(first, 'elastic'):.0%}",
                f"{there:.0%}",
                f"{_possible(by_arm[usual.arm]):.1%}",
                f"{here[usual.arm]:.1%}",
                f"{here[best]:.1%}" if len(found) > 1 else "",
                best if len(found) > 1 else "",
            ]
        )
    return rows


def _of_case(case: "Case") -> str:
    return (
        f"{_millions(case.chips)} chips, M = {case.learners}: a learner fails once in {case.mtbf_s:.0f} s and stops "
        f"for {case.stop_s:g} s. A run lasts {case.length_s:.0f} s.\n"
    )


def _overheads(run: Record, case: "Case") -> dict[str, float]:
    """For each failure the seconds of its kind, and all of them together."""
    names = ("joining_s", "waiting_s", "moving_s", "repairing_s")
    whole = (run["up"] - run["goodput"]) * case.learners * case.length_s
    parts = {name: float(run[name]) for name in names}
    parts |= {"lost_s": whole - sum(parts.values()), "whole_s": whole}
    return {name: seconds / run["failures"] for name, seconds in parts.items()}


def _methods(runs: Runs, cases: Mapping[str, "Case"]) -> list[list[object]]:
    """A row for each arm of the first setting."""
    usual = next(iter(cases.values()))
    rows: list[list[object]] = []
    for name, each in runs.items():
        case = cases[name]
        if not _is_usual(case, usual):
            continue
        overheads = [_overheads(run, case) for run in each]
        means = [statistics.mean(found[part] for found in overheads) for part in overheads[0]]
        rows.append(
            [
                case.arm,
                f"{_at_the_rate(each, case):.1%}",
                spread([run["goodput"] for run in each], ".1%"),
                f"{_mean(each, 'up'):.1%}",
                *(f"{seconds:.1f}" for seconds in means),
            ]
        )
    return rows


def _at_the_rate(each: Sequence[Record], case: "Case") -> float:
    """Goodput at the mean rate of failures, from what each failure cost: the draw of their number has no part in it."""
    overhead_s = statistics.mean(_overheads(run, case)["whole_s"] for run in each)
    return (case.mtbf_s - overhead_s) / (case.mtbf_s + case.stop_s)


def _possible(case: "Case") -> float:
    """The same if nothing was lost but the stops."""
    return case.mtbf_s / (case.mtbf_s + case.stop_s)


def _is_usual(case: "Case", usual: "Case") -> bool:
    """Whether a case differs from the first in nothing but how learners mix."""
    return all(
        getattr(case, name) == getattr(usual, name) for name in ("learners", "chips", "stop_s", "model_s", "length_s")
    )


def _arms(arms: Mapping[str, str]) -> str:
    return "\n".join(f"* **{name}**: {text}" for name, text in arms.items())


def _sensitivity(runs: Runs, cases: Mapping[str, "Case"]) -> list[list[object]]:
    """A row for each case with 1.2 million chips and 8 learners, by stop and line."""
    usual = next(iter(cases.values()))
    rows: list[list[object]] = []
    methods = {cases[name].arm for name in runs if not _is_usual(cases[name], usual)}
    for name, each in runs.items():
        case = cases[name]
        if (case.chips, case.learners) == (usual.chips, usual.learners) and case.arm in methods:
            cells = [case.stop_s, case.model_s, case.arm, f"{_possible(case):.1%}"]
            rows.append([*cells, f"{_at_the_rate(each, case):.1%}"])
    return sorted(rows, key=lambda cells: (cells[1], cells[0], cells[2]))


def _findings(runs: Runs, cases: Mapping[str, "Case"]) -> str:
    usual = next(iter(cases.values()))
    by_arm = {cases[name].arm: cases[name] for name in runs if _is_usual(cases[name], usual)}
    found = {cases[name].arm: each for name, each in runs.items() if _is_usual(cases[name], usual)}
    reached = [arm for arm, each in found.items() if _at_the_rate(each, by_arm[arm]) >= GOAL]
    missed = [arm for arm in found if arm not in reached]
    budget_s = usual.mtbf_s * (1 / GOAL - 1)
    paper_s = usual.mtbf_s * (1 / PAPER[usual.chips, usual.learners] - 1)
    return f"""## What it says

* {GOAL:.0%} with {_millions(usual.chips)} chips and M = {usual.learners} is reached by
  {_names(reached)}, and not by
  {_names(missed)}.
* {GOAL:.0%} leaves {budget_s:.1f} s for each failure, stop included; the paper's
  {PAPER[usual.chips, usual.learners]:.0%} is {paper_s:.1f} s. With a stop as long as all of that no method could be
  above {PAPER[usual.chips, usual.learners]:.0%}: the goal is within reach only if part of what the paper loses comes
  after the stop. In the paper's own table a learner of n chips loses what an elastic job of n chips does, so it may
  well be that nothing does; read like that, the rows with a stop of 28.7 s are those to compare.
* What is lost with a learner that is gone is mostly work that no round had counted: half of the steps between two
  syncs, and those of the sync on its way. So syncing often is what counts, and lines must be fast for that. With state
  that survives, nothing is lost by syncing seldom.
* In gossip a learner that dies takes with it what it had handed on to nobody: nearly half of the outer steps are
  taken alone.
* A learner that lives but stands still is waited for as long as the patience of a round lasts; a quorum spares that.
* With the paper's 24 fragments and K = 1 at once it is **not** reached here. Tried with one seed, 8 learners of 150,000
  chips, H = 24 and the overlap as measured (`auto`), state kept: of 120 s, in which 94.8% were possible, 47.1% counted.
  A learner that stood still for 19 s comes back to rounds that are over, and as one is enough it closes others alone;
  from then on results come 25 to 48 steps after their launch. With 8 fragments and a planned overlap of 2 it was 85.1%
  of 94.7% in 90 s. So the 90% are those of a model that is synced as a whole.
* Who joins needs a second, most of it for the download; those who stay stand still for next to nothing.
"""


def _names(arms: Sequence[str]) -> str:
    return ", ".join(f"*{arm}*" for arm in arms) or "none"
