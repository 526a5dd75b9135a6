"""What codecs cost in quality: real swarms of four workers, the same tokens and seeds, one run for each variant.

    scripts/bench codec-quality --variant codec=fp32 --variant "codec=int4-b128 feedback=none" [--tokens 1000000] ...
    scripts/bench codec-quality         # writes page and plot anew from the raw numbers

The workers are the production ones (rounds, codecs, error feedback, outer rule) with the language model trainer; only
the network and its time are simulated, so that a run depends on nothing but its settings. A variant is a list of
settings of ``[method]``. Appends to OUT.json and writes OUT.md and OUT.png anew.
"""

import math
import statistics
from pathlib import Path

from scripts.benches.lib.command import enter
from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, places
from scripts.benches.lib.stats import bars, between, grouped, listed
from scripts.benches.lib.tables import table
from scripts.benches.lib.variants import Run, agreed_loss, by_variant, run_variants, set_up

BASELINE = "codec=fp32"
#: A variant, its runs, and the gaps of their losses to fp32 of the same seed.
Line = tuple[str, list[Record], list[float]]


def measure(run: Run) -> Record:
    """One swarm from its start to its end."""
    play = run.play()
    [first, *_], [*_, last] = play.outcomes, play.members.values()
    owed = {event.fragment: event.residual_norm for event in play.members[first].mixed()}
    return {
        **run.record(play),
        "val_loss": agreed_loss(play),
        "mean_codec": play.swarm.method.mean_codec,
        "sent_bytes_a_round": last.sent_a_round(),
        # Of all that a worker still has to send.
        "residual_norm": math.hypot(*owed.values()),
    }


def lines(runs: list[Record]) -> list[Line]:
    """The variants of a set-up in the order of the bits that they send."""
    exact = {(run["seed"], run["rounds"]): run["val_loss"] for run in runs if BASELINE in run["variant"].split()}
    comparable = [run for run in runs if (run["seed"], run["rounds"]) in exact]
    found = [
        (variant, own, [run["val_loss"] / exact[run["seed"], run["rounds"]] - 1 for run in own])
        for variant, own in by_variant(comparable).items()
    ]
    return sorted(found, key=lambda line: -line[1][0]["bits_up"] - line[1][0]["bits_down"])


def page(out: Path, records: list[Record]) -> str:
    """The raw numbers as a table for each set-up, and a plot of the first."""
    parts = [_HEAD]
    for number, (title, runs) in enumerate(grouped(records, set_up).items()):
        parts.append(f"\n## {title}\n\n")
        found = lines(runs)
        with_feedback = [line for line in found if "feedback=" not in line[0] and "inner_steps=" not in line[0]]
        if number == 0 and len(with_feedback) > 1:
            plot(out, with_feedback)
            parts.append(f"![loss against bits per value]({out.name}.png)\n\n")
        parts.append(table(_COLUMNS, map(cells, found)))
        shown = [run for _, own, _ in found for run in own]
        seeds = ", ".join(map(str, sorted({run["seed"] for run in shown})))
        rounds = dict.fromkeys(f"{run['rounds']} of {run['inner_steps']} steps" for run in shown)
        parts.append(f"\n\nSeeds {seeds}, in the order of their losses. Rounds: {', '.join(rounds)}.\n")
        parts.extend(f"\n{place}\n" for place in places(shown))
    return "".join(parts)


def cells(line: Line) -> list[object]:
    """A row."""
    variant, runs, gaps = line
    run, losses = runs[0], [run["val_loss"] for run in runs]
    return [
        variant,
        f"{run['bits_up']:.3g}",
        f"{run['bits_down']:.3g} ({run['mean_codec']})",
        f"{run['sent_bytes_a_round'] / 1e6:.3g}",
        listed(losses, ".4f"),
        f"{statistics.mean(losses):.4f}",
        f"{statistics.mean(gaps):+.2%}",
        between(gaps, "+.2%"),
    ]


def plot(path: Path, found: list[Line]) -> None:
    """Mean gap against bits per value, both ways together; bars from the best to the worst seed."""
    with figure(path, 8, 5) as [axes]:
        for variant, runs, gaps in found:
            bits, gap = runs[0]["bits_up"] + runs[0]["bits_down"], 100 * statistics.mean(gaps)
            axes.errorbar(bits, gap, yerr=bars([100 * each for each in gaps], gap), fmt="o", capsize=3)
            label = variant.removeprefix("codec=").replace(" ", "\n")
            axes.annotate(label, (bits, gap), textcoords="offset points", xytext=(5, 4), fontsize=7)
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("bits per value, contribution and mean together")
        axes.set_ylabel("validation loss against fp32, %")
        axes.margins(x=0.12)


_HEAD = """# What codecs cost in quality

Written by `scripts/bench codec-quality`; the raw numbers are in `codec-quality.json`. Production workers (rounds,
codecs, error feedback, outer rule) train the language model; the network alone is simulated. All runs of a table have
the same tokens, data streams and initial weights for a seed, and differ in the named settings of `[method]` only;
`feedback` is `auto` unless a variant says otherwise: `none` for codecs of eight bits and more, `ef14` for others. Loss
in nats per byte on held-out text; the gap is to fp32 with the same seed and rounds, its spread from the best to the
worst seed. Runs that differ in anything at all drift apart, so a gap of some tenths of a per cent, of either sign, is
what one seed's luck looks like.
"""

_COLUMNS = "variant | bits up: | bits down: | MB sent in a round: | loss by seed | mean: | gap to fp32: | spread"


def main() -> None:
    """See ``run_variants``."""
    say = "{val_loss:.4f}".format_map
    run_variants("codec-quality", __doc__, "codec-quality", measure, page, say)


if __name__ == "__main__":
    enter(main)
