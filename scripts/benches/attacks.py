"""What two liars of eight do to a run of the language model: nothing on, with the defaults, with a robust merge.

    scripts/bench attacks [--method all-reduce] [--attack negate] [--defence default] [--seed 0] ...
    scripts/bench attacks --real               # eight processes of this machine
    scripts/bench attacks --only-write         # writes the page anew from the raw numbers

The workers are the production ones with the language model trainer on a simulated network; the liars are those of
``lib.attacks``. A cell of the table is a method, an attack and a defence; all cells that OUT.json does not
have yet are run, seed by seed. Appends to OUT.json and writes OUT.md anew; the section "Findings" is written by hand
and kept.
"""

import argparse
import concurrent.futures
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from decentral.config.schema import SwarmConfig
from decentral.ports.trainer import Trainer
from decentral.sim.world import peer_id
from decentral.types import PeerId
from decentral.workers.lm.trainer import LmTrainer
from scripts.benches import attacks_real
from scripts.benches.attacks_real import Played
from scripts.benches.lib.attacks import KINDS, LEADERS, REDUCERS, VALUES, liars
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.processes import Event
from scripts.benches.lib.report import Record, kept, places, read, stamp, write
from scripts.benches.lib.stats import grouped, listed
from scripts.benches.lib.tables import table
from scripts.benches.lib.training import Play, configured, made_by_task, with_rounds

SCRIPT = "attacks"
WORKERS, LIARS, ROUNDS, STEPS = 8, (3, 6), 12, 8
#: Virtual seconds of an inner step: what workers say of themselves travels within a round, as where rounds are longer.
#: Older records have 0.1 s. What overlaps with training, or has no rounds, depends on it.
STEP_S = 1.0
#: Of all runs: a small model, so that many cells can be had.
MODEL = (
    "task.settings.model.d_model=32",
    "task.settings.model.num_layers=2",
    "task.settings.model.context=64",
    "task.settings.batch_sequences=4",
    "task.settings.val_batches=16",
)
METHODS: Mapping[str, tuple[str, ...]] = {
    "all-reduce": ("method.name=diloco", f"method.inner_steps={STEPS}"),
    "streaming": ("method.name=streaming", f"method.inner_steps={STEPS}"),
    "gossip": ("method.name=noloco", f"method.inner_steps={STEPS}"),
    "async": ("method.name=async", f"method.inner_steps={STEPS}"),
    "real processes": ("method.name=diloco", f"method.inner_steps={STEPS}"),
}
WITHOUT_REDUCERS = ("gossip", "async")
#: An all-reduce of processes on this machine.
REAL = "real processes"
DEFENCES: Mapping[str, tuple[str, ...]] = {
    "nothing": ("method.bound=0",),
    "default": (),
    "trimmed": ("method.merge=trimmed", f"method.liars={len(LIARS)}"),
    "median": ("method.merge=median", f"method.liars={len(LIARS)}"),
    "nearest": ("method.merge=nearest", f"method.liars={len(LIARS)}"),
    "centred": ("method.merge=centred", f"method.liars={len(LIARS)}"),
}
#: All are honest; the labels of two are wrong.
CLEAN, LABELS = "none", "label-flip"
#: The machines of the liars join under so many names each, which bring what ``foe`` does.
SYBILS: Mapping[str, int] = {"sybil-2": 2, "sybil-4": 4}
ALL = (CLEAN, LABELS, *KINDS, *SYBILS)
#: What is tried on all-reduces alone.
OF_ALL_REDUCES = (*REDUCERS, *LEADERS, "leader-away")


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    attack: str
    defence: str
    seed: int

    @property
    def liars(self) -> tuple[int, ...]:
        """Numbers of all names that liars have."""
        more = len(LIARS) * (SYBILS.get(self.attack, 1) - 1)
        return (*LIARS, *range(WORKERS, WORKERS + more))

    @property
    def settings(self) -> tuple[str, ...]:
        """Of the run."""
        return (*MODEL, *METHODS[self.method], *DEFENCES[self.defence])

    def play(self) -> Play:
        """The swarm from its start to its end."""
        workers = WORKERS + len(self.liars) - len(LIARS)
        swarm = with_rounds(configured(self.settings, seed=self.seed, workers=workers), ROUNDS)
        attack = "foe" if self.attack in SYBILS else self.attack
        meddle = liars(attack, self.liars)

        def make(swarm: SwarmConfig, stream: int) -> Trainer:
            trainer = made_by_task(swarm, stream)
            if self.attack == LABELS and stream % 1000 in LIARS and stream >= 1000:
                flip_labels(trainer)
            return trainer

        play = Play(swarm, STEP_S, make=make, meddle=meddle)
        play.run()
        return play


def flip_labels(trainer: Trainer) -> None:
    """Have a trainer learn that byte b is 255 - b."""
    assert isinstance(trainer, LmTrainer)
    model = trainer._model

    def flipped(window_BT: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(window_BT[:, :-1]).flatten(0, 1), 255 - window_BT[:, 1:].flatten())

    model.loss = flipped  # type: ignore[method-assign]


def measure(cell: Cell) -> Record:
    """One cell: losses of the honest, who was named and when."""
    real = cell.method == REAL
    played = (
        attacks_real.play(cell.attack, cell.settings, cell.seed, WORKERS, ROUNDS, LIARS) if real else simulated(cell)
    )
    losses = list(played.losses.values())
    return {
        "method": cell.method,
        "attack": cell.attack,
        "defence": cell.defence,
        "seed": cell.seed,
        "workers": WORKERS,
        "rounds": ROUNDS,
        "step_s": None if real else STEP_S,
        "loss": statistics.mean(losses),
        "worst": max(losses),
        "replicas": len(losses),
        "ended": len(played.ended),
        **named(played.events, played.lying),
        "sent_bytes_a_round": statistics.mean(
            sent for peer in played.ended if (sent := sent_a_round(played.events[peer]))
        ),
        "seconds": played.seconds,
        "settings": list(cell.settings),
        **stamp(SCRIPT),
    }


def simulated(cell: Cell) -> Played:
    """The same of a swarm on a simulated network."""
    play = cell.play()
    lying = {peer_id(number) for number in cell.liars} if cell.attack != CLEAN else set[PeerId]()
    ends = {peer: outcome for peer, outcome in play.outcomes.items() if peer not in lying}
    by_digest = {outcome.digest: outcome.anchors for outcome in ends.values()}
    losses = {digest: play.loss(anchors) for digest, anchors in by_digest.items()}
    events = {peer: history for peer, history in play.journals.items() if peer not in lying}
    return Played(losses, list(ends), events, lying, play.seconds)


def sent_a_round(history: Sequence[Event]) -> float:
    """Bytes, on average over a worker's rounds but the first; 0 if it had no round."""
    mixed = [event for event in history if event["event"] == "round_mixed"]
    if not mixed:
        return 0.0
    sent_bytes: int = mixed[-1]["sent_bytes"] - mixed[0]["sent_bytes"]
    num_rounds: int = mixed[-1]["round"] - mixed[0]["round"]
    return sent_bytes / max(1, num_rounds)


def named(events: Mapping[str, Sequence[Event]], liars: Collection[str]) -> dict[str, Any]:
    """In which round an honest worker first named a liar, and how often an honest one was named.

    Args:
        events: of honest workers, as their journals have them.
        liars: peers.
    """
    first: dict[str, int] = {}
    false = aborted = 0
    for peer, history in events.items():
        round_ = 0
        for event in history:
            if event["event"] == "round_mixed":
                round_ = event["round"] + 1
                if any(other in liars for other, _ in event["absent"]):
                    first[peer] = min(first.get(peer, event["round"]), event["round"])
            elif event["event"] == "round_aborted":
                aborted += 1
            elif event["event"] in ("restrained", "avoided") and event["peer"] in liars:
                first.setdefault(peer, event.get("round", round_))
            elif event["event"] in ("restrained", "avoided"):
                false += 1
    noticed = list(first.values())
    return {
        "noticed_by": len(noticed),
        "noticed_after": 1 + min(noticed) if noticed else None,
        "false_alarms": false,
        "aborted": aborted,
    }


# -- written ----------------------------------------------------------------------------------------------------------


def page(out: Path, records: Sequence[Record]) -> str:
    """A table for each method."""
    parts = [_HEAD, kept(out)]
    for method, runs in grouped(records, lambda run: str(run["method"])).items():
        defences = [name for name in DEFENCES if any(run["defence"] == name for run in runs)]
        attacks = [name for name in ALL if any(run["attack"] == name for run in runs)]
        columns = "attack | " + " | ".join(f"{name}: | noticed" for name in defences)
        rows = [[name, *(text for defence in defences for text in cells(runs, name, defence))] for name in attacks]
        by_step = grouped(clean(runs).items(), lambda item: item[0][1])
        losses = [
            listed([loss for _, loss in each], ".4f") + ("" if step is None else f" (steps of {step:g} s)")
            for step, each in by_step.items()
        ]
        parts.append(f"## {method}\n\nClean: {'; '.join(losses)}, nats per byte.\n\n{table(columns, rows)}\n")
    parts.extend(f"\n{place}\n" for place in places(records))
    return "\n".join(parts)


def clean(runs: Sequence[Record]) -> dict[tuple[int, float | None], float]:
    """By seed and seconds of a step, the loss when nobody lies and nothing is on."""
    honest = [run for run in runs if (run["attack"], run["defence"]) == (CLEAN, "nothing")]
    return {(run["seed"], run["step_s"]): run["loss"] for run in honest}


def cells(runs: Sequence[Record], attack: str, defence: str) -> tuple[str, str]:
    """Loss against the clean one of the same seed and as long steps, and who noticed."""
    against = clean(runs)
    told = [run for run in runs if (run["attack"], run["defence"]) == (attack, defence)]
    # Where honest runs were played at both, what is shown is what others are compared with.
    own = [run for run in told if run["step_s"] == told[-1]["step_s"] and (run["seed"], run["step_s"]) in against]
    if not own:
        return "", ""
    off = [run["loss"] / against[run["seed"], run["step_s"]] - 1 for run in own]
    mean, seeds = statistics.mean(off), f" ({len(own)})" if len(own) < 3 else ""
    loss = f"{mean:+.1%}" if mean < 1 else f"x {1 + mean:.3g}"
    after = [run["noticed_after"] for run in own if run["noticed_after"] is not None]
    noticed = f"{min(run['noticed_by'] for run in own)} of {own[0]['ended']}, round {max(after)}" if after else "nobody"
    alarms = sum(run["false_alarms"] for run in own)
    return f"{loss}{seeds}", ("-" if attack == CLEAN else noticed) + (f"; {alarms} false" if alarms else "")


_HEAD = f"""# What liars do to a run

Written by `scripts/bench attacks`; the raw numbers are in `attacks.json`. Production workers train the language
model; the network alone is simulated. {WORKERS} workers, of which {len(LIARS)} lie from the first round on,
{ROUNDS} rounds of {STEPS} inner steps. Every cell: the loss of the honest workers on held-out text against the run
of the same seed in which nobody lies and no bound is on, mean over three seeds (in brackets how many, if not all);
and how many honest workers named a liar (in the seed with the fewest), the first of them after how many rounds (in
the slowest seed). *false*: how often an honest worker was named. `absent`: the two bring nothing, which is what
leaving them out costs. An empty cell was not run. What is done about them: [threat model](../threat-model.md).
Defences: *nothing* is `method.bound = 0`, *default* the method as it comes, the others `method.merge` with
`method.liars = {len(LIARS)}`.

* `negate`, `scale-3`, `scale-1e6`, `negate-1e6`: the own pseudo-gradient times -1, 3, 10^6, -10^6. `noise`:
  Gaussian, as long as the own. `huge`: its signs times 3 10^38. `free-rider`: zeros. `weight-1e6`: honest values, a
  million times the weight. `nan`: frames of NaN with checksums that fit. `label-flip`: trained on 255 minus the
  byte.
* `alie`: mean of the honest minus 1.5 standard deviations in every coordinate. `foe`: that mean times -1.1. Both
  know what all honest workers bring, and both liars bring the same.
* `reducer-negate`, `reducer-3`, `reducer-1e6`, `reducer-nan`: honest contributions, and means times -1, 3, 10^6, NaN.

* Of these kinds, and in a gossip with the defaults, an inner step takes {STEP_S:g} s in place of 0.1, as in the run
  that they are compared with. `leader`: the two say that they are the oldest, and name themselves alone in rounds
  that they lead, with honest values; `leader-negate`: with their own times -2. `leader-away`: they tell all others to
  download their state, whose anchors have the other sign; `donor`: whoever downloads from them gets that.
  `false-deaths`: everybody is said to be unreachable and long silent. `replay`: what was brought to the first round,
  in all rounds, and all calls again 64 calls later. `sybil-2`, `sybil-4`: the two machines have so many names each,
  4 of 10 and 8 of 14 members, which bring what `foe` does.

*Real processes*: the same all-reduce and the same lies, by eight `decentral worker` with their libp2p daemons on the
loopback of this machine (`--real`), whose inner steps take what they take.
"""


def main() -> None:
    """Run what is missing, then write the page."""
    parser = Parser(SCRIPT, __doc__, "attacks")
    simulated = [name for name in METHODS if name != REAL]
    parser.repeated("--method", default=simulated, metavar="|".join(simulated))
    parser.add_argument(
        "--real", action="store_true", help="real workers on this machine, one run at a time, by all-reduce"
    )
    parser.repeated("--attack", default=list(ALL), metavar="NAME")
    parser.repeated("--defence", default=["nothing", "default", "trimmed"], metavar="|".join(DEFENCES))
    parser.repeated("--seed", int, [0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only-write", action="store_true")
    options = parser.parse_args()
    if options.real:
        options.method, options.jobs = [REAL], 1
    records: list[Record] = read(options.out, [])
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(measure, cell) for cell in missing(options, records)]
        for future in concurrent.futures.as_completed(futures):
            if future.exception() is not None:
                print(f"failed: {future.exception()!r}", flush=True)
                continue
            record = future.result()
            records.append(record)
            print("{method} {attack} {defence} {seed}: {loss:.4f} {seconds:.0f} s".format_map(record), flush=True)
            write(options.out, records, page(options.out, records))
    write(options.out, records, page(options.out, records))


def missing(options: argparse.Namespace, records: Sequence[Record]) -> list[Cell]:
    """The cells asked for that there are not yet, in the order in which they tell most."""
    there = {
        (run["method"], run["attack"], run["defence"], run["seed"])
        for run in records
        if run["step_s"] in (STEP_S, None) or (run["attack"], run["defence"]) != (CLEAN, "nothing")
    }
    asked = [
        Cell(method, attack, defence, seed)
        for seed in options.seed
        for method in options.method
        for attack in options.attack
        for defence in options.defence
        if not (method in WITHOUT_REDUCERS and (defence not in ("nothing", "default") or attack in OF_ALL_REDUCES))
        and not (method == REAL and (attack not in (CLEAN, *VALUES) or defence not in ("nothing", "default")))
    ]
    if options.only_write:
        return []
    return [cell for cell in asked if (cell.method, cell.attack, cell.defence, cell.seed) not in there]


if __name__ == "__main__":
    enter(main)
