"""The page of the peers' bench, from its records."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benches.lib.plots import figure
from scripts.benches.lib.report import Record, kept, places
from scripts.benches.lib.stats import bars, grouped, spread
from scripts.benches.lib.tables import table
from scripts.benches.peers_worker import PLAIN, SYSTEMS, VALUES

#: Networks by name, as they are called in the plot.
_TITLES = {"one machine": "one machine", "home": "behind links of 100 Mbit/s, 25 ms one way"}
#: To which the seconds are told.
TARGET = 2.4


def waited_ms(record: Record) -> float:
    """For how long the loop stood still in a round, without the first, in which connections are made."""
    rounds = record["steps"] // record["inner_steps"]
    later = sum(seconds for step, seconds in record["waits"] if step > record["inner_steps"])
    return float(1000 * later / (rounds - 1))


def seconds_to(record: Record, loss: float) -> float:
    """When the loss was first reached at the end of a round; infinite if it was not."""
    return min((seconds for _, seconds, reached in record["curve"] if reached <= loss), default=float("inf"))


def _speed(record: Record) -> float:
    return float(record["tokens"] / record["wall_s"])


_COLUMNS: dict[str, tuple[str, Callable[[Record], float]]] = {
    "tokens/s": (",.0f", _speed),
    f"s to {TARGET:g}": (".1f", lambda record: seconds_to(record, TARGET)),
    "loss": (".3f", lambda record: float(record["curve"][-1][2])),
    "MB": (".2f", lambda record: record["sent_bytes"] / 1e6),
    "waits (ms)": (".0f", waited_ms),
    "processor (s)": (".2f", lambda record: 1e5 * record["processor_s"] / record["tokens"]),
    "memory (MB)": (".0f", lambda record: record["memory_bytes"] / 1e6),
}


def trained(records: Sequence[Record]) -> str:
    """The table of a network."""
    rows = []
    by_system = grouped(records, lambda record: str(record["system"]))
    for name, system in SYSTEMS.items():
        if name in VALUES or name not in by_system:
            continue
        whole = [record for record in by_system[name] if "failure" not in record]
        if not whole:
            rows.append([name, system.note, f"failed: {by_system[name][0]['failure'].splitlines()[-1]}"])
            continue
        figures = [spread([of(record) for record in whole], form) for form, of in _COLUMNS.values()]
        rows.append([name, system.note, *figures])
    return table(f"system | at a sync | {' | '.join(f'{name}:' for name in _COLUMNS)}", rows)


def ratios(records: Sequence[Record]) -> str:
    """Waits of a round behind the links against the plain loop's, seed by seed."""
    waits = {(record["system"], record["seed"]): waited_ms(record) for record in records if "failure" not in record}
    rows = []
    for name in SYSTEMS:
        both = [seed for other, seed in waits if other == name and (PLAIN, seed) in waits]
        pairs = {seed: waits[name, seed] / waits[PLAIN, seed] for seed in both}
        if name.startswith("ours, diloco") and pairs:
            rows.append([name, spread([waits[name, seed] for seed in pairs], ".0f"), spread([*pairs.values()], ".2f")])
    return table("a round behind the links | waits (ms): | of the plain loop:", rows)


def values(records: Sequence[Record]) -> str:
    """Seconds of a round of many values."""
    rows = []
    for name, whole in grouped(records, lambda record: str(record["system"])).items():
        done = [record for record in whole if "failure" not in record]
        exchanges = [statistics.mean(record["exchanges_s"][1:]) for record in done if record["exchanges_s"]]
        figures = [
            spread([waited_ms(record) / 1000 for record in done], ".2f") if done else "failed",
            spread(exchanges, ".2f") if exchanges else "",
            spread([record["memory_bytes"] / 1e6 for record in done], ".0f") if done else "",
        ]
        rows.append([name, *figures])
    return table("system | s a round: | of it the exchange: | memory (MB):", rows)


def plot(path: Path, records: Sequence[Record]) -> None:
    """Speed against bytes on each network, of those that train."""
    with figure(path, 15, 6, len(_TITLES)) as panels:
        for axes, (network, title) in zip(panels, _TITLES.items(), strict=True):
            there = [each for each in records if each["network"] == network and "failure" not in each]
            for name, runs in grouped(there, lambda record: str(record["system"])).items():
                if name in VALUES:
                    continue
                speeds = [_speed(run) for run in runs]
                sent, speed = statistics.mean(run["sent_bytes"] for run in runs) / 1e6, statistics.mean(speeds)
                colour = "tab:red" if name.startswith("ours") else "tab:blue"
                axes.errorbar(sent, speed, yerr=bars(speeds, speed), fmt="o", capsize=3, color=colour)
                axes.annotate(name, (sent, speed), textcoords="offset points", xytext=(5, 4), fontsize=7)
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.set_xlabel(f"MB sent by a worker; {title}")
            axes.set_ylabel("tokens a second")
            axes.margins(x=0.2)


def page(out: Path, records: Sequence[Record]) -> str:
    """The report for people."""
    training = [record for record in records if record["system"] not in VALUES]
    averaging = [record for record in records if record["system"] in VALUES]
    near, far = ([each for each in training if each["network"] == name] for name in ("one machine", "home"))
    first = training[0]
    peers = ", ".join(dict.fromkeys(each["peers"] for each in records))
    commits = ", ".join(dict.fromkeys(each["commit"] for each in records))
    return f"""# Beside others

Written by `scripts/bench peers`; the raw record is `{out.name}.json`. The same training with ours and with others'
libraries, in one sitting: two workers, a core and a thread each, train our language model of 0.8 M parameters on
{first["tokens"]:,} tokens together: {first["steps"]} steps of AdamW each, a round every {first["inner_steps"]}.
Weights, streams of data, the learning rate's schedule and the loop itself are the same; the outer step, where
there is one, is Nesterov's with 0.7 and 0.9. Versions: {peers}.

* **tokens/s**: of both workers, from the first step to the end of the last. **s to {TARGET:g}**: until the mean of the
  workers' weights has this validation loss at the end of a round, inf if never. **loss**: at the end, at equal tokens.
* **MB**: sent by all in the whole run, divided by the number of workers, with all headers, as the kernel counts them on
  the interface; where there is a server, what it sends is in it.
* **waits**: milliseconds for which the loop stands still in a round, on average without the first, where connections
  are made; of what happens inside the step itself (DDP) nobody can tell.
* **processor**: seconds of processor time for 100,000 tokens, with daemons, helpers and servers. **memory**: of a
  worker with its helpers at the end (PSS).
* Means over seeds, in brackets the least and the greatest.

![speed against bytes]({out.name}.png)

{kept(out)}
## On one machine

{trained(near)}

## Behind links of 100 Mbit/s, 25 ms one way

A server, where there is one, has such a link as well.

{trained(far)}

{ratios(far)}

## 50 million values on one machine

Averaged by two workers, round after round, of which the first does not count. In place of training each worker's
values grow between the rounds, at a rate of its own; hivemind's averager is given them and takes the mean back. Ours
also keeps an anchor, and takes an outer step: the exchange alone is told beside it, as the
journal has it.

{values(averaging)}

## Not in the tables

* **OpenDiLoCo**: its package, `opendiloco` 0.2.0, has one function that returns a greeting, and no optimizer. What
  its paper used lies in a repository alone, and no registry has it.
* **exo gym**: its package, `exogym` 0.0.0a0, says of itself that "this 0.0.0a0 release contains no usable code".

{chr(10).join(places(records))}; commit {commits}

    scripts/bench peers
"""
