"""What closes the gap of short runs: forms of the outer step beside one another, each with the same number of tries.

    scripts/bench outer-step                                     # goes on where the record stops
    scripts/bench outer-step --steps 1218 --inner-steps 30 --seeds 1

Workers with the trainers of production, in one process; their pseudo-gradients are averaged as they are, without
network and codec, and ``decentral.outer.diloco`` takes the steps of all forms with a momentum. Every form is tried at
``TRIES`` with the first seed, then further seeds are run at its best. Runs that OUT.json has already are not run again.
The section "Findings" of OUT.md is written by hand and kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from decentral.outer.diloco import DiLoCo
from decentral.outer.rule import Mixed
from decentral.tensors.layout import Layout
from decentral.workers.lm.corpus import Corpus
from scripts.benches.frontier_arms import SETTINGS, of_set_up
from scripts.benches.lib.arms import ALONE, DATA_PARALLEL, Run, by_seed, corpus_for, grow, made, set_up, share_kept
from scripts.benches.lib.command import Parser, enter
from scripts.benches.lib.report import Record, kept, places, read
from scripts.benches.lib.stats import gaps, grouped, listed, spread
from scripts.benches.lib.tables import table
from scripts.benches.lib.training import with_rounds

SCRIPT = "outer-step"
SEED, RATE = 0, 0.006
_PAIRS = ("lr=1 momentum=0.5", "lr=1 momentum=0.7", "lr=1 momentum=0.8", "lr=0.7 momentum=0.9")
#: By form: all have as many.
TRIES: Mapping[str, Sequence[str]] = {
    "nesterov": _PAIRS,
    "heavy-ball": _PAIRS,
    "warm-up": _PAIRS,
    "decay": _PAIRS,
    "restart-every-8": _PAIRS,
    "restart-when-against": _PAIRS,
    # Outer learning rates as large as those of (1, 0.7) in the long run: 1 / (1 - 0.7).
    "primal-averaging": tuple(
        f"lr=3.33 momentum={x} start={y}" for x, y in ((0.7, 0.7), (0.9, 0.7), (0.5, 0.7), (0.7, 0.9))
    ),
}


class Momentum:
    """Nesterov's or heavy-ball momentum, with a schedule and restarts.

    Args:
        form: one of ``TRIES``.
        lr: outer learning rate.
        momentum: at its highest.
        rounds: of the run.
        anchor_N: where workers start from.
    """

    def __init__(self, form: str, lr: float, momentum: float, rounds: int, anchor_N: Tensor) -> None:
        self._form, self._lr, self._momentum, self._rounds = form, lr, momentum, rounds
        self.anchor_N = anchor_N
        self._state = self._rule(0).init(anchor_N)

    @property
    def start(self) -> Tensor:
        """Where the next inner steps start, [N]."""
        return self.anchor_N

    def take(self, delta_N: Tensor, round_: int) -> None:
        """The step of a round."""
        rule = self._rule(round_)
        if self._restarts(delta_N, round_):
            self._state = rule.init(self.anchor_N)
        self.anchor_N, self._state = rule.step(self.anchor_N, Mixed(delta_N, ()), self._state)

    def _rule(self, round_: int) -> DiLoCo:
        share = {"warm-up": min(1.0, 2 * (round_ + 1) / self._rounds), "decay": 1 - round_ / self._rounds}
        return DiLoCo(self._lr, self._momentum * share.get(self._form, 1.0), nesterov=self._form != "heavy-ball")

    def _restarts(self, delta_N: Tensor, round_: int) -> bool:
        if self._form == "restart-when-against":
            return bool(torch.dot(self._state.buffers_N[0], delta_N) < 0)
        return self._form == "restart-every-8" and round_ % 8 == 0


class PrimalAveraging:
    """Plain steps of z; the anchor x is a running mean of z, and workers start between both.

    With ``start`` equal to ``momentum`` they start where Nesterov's momentum has its anchor, and x is a mean of that.
    GPA (arXiv 2512.17131) has it so in every step of one worker; here it is so in every round.

    Args:
        lr: of the steps.
        momentum: share of x that is kept in a round.
        start: share of x, in place of z, where workers start.
        anchor_N: where workers start from.
    """

    def __init__(self, lr: float, momentum: float, start: float, anchor_N: Tensor) -> None:
        self._lr, self._momentum, self._start = lr, momentum, start
        self.anchor_N = self._z_N = anchor_N

    @property
    def start(self) -> Tensor:
        """Where the next inner steps start, [N]."""
        return self._z_N.lerp(self.anchor_N, self._start)

    def take(self, delta_N: Tensor, round_: int) -> None:
        """The step of a round."""
        self._z_N = self._z_N - self._lr * delta_N
        self.anchor_N = self._z_N.lerp(self.anchor_N, self._momentum)


def outer(arm: str, rounds: int, anchor_N: Tensor) -> Momentum | PrimalAveraging:
    """The outer step of an arm."""
    form, *words = arm.split()
    of = {key: float(value) for key, value in (word.split("=") for word in words)}
    if form == "primal-averaging":
        return PrimalAveraging(of["lr"], of["momentum"], of["start"], anchor_N)
    return Momentum(form, of["lr"], of["momentum"], rounds, anchor_N)


def measure(run: Run, corpus: Corpus) -> Record:
    """What a run comes to."""
    if run.is_control:
        return run.control(corpus)
    inner_steps = int(run.arm.rpartition("inner_steps=")[2])
    rounds = run.steps // inner_steps
    swarm = with_rounds(run.configured(f"method.inner_steps={inner_steps}"), rounds)
    trainers = [made(swarm, 1000 * (run.seed + 1) + number, corpus) for number in range(run.workers)]
    layout = Layout.of(trainers[0].parameters())
    of_all = outer(run.arm, rounds, layout.gather(trainers[0].parameters(), 0))
    for round_ in range(rounds):
        start_N = of_all.start
        deltas_N = []
        for trainer in trainers:
            trainer.load(layout.scatter(start_N, 0))
            trainer.train_steps(round_ * inner_steps, inner_steps)
            deltas_N.append(start_N - layout.gather(trainer.parameters(), 0))
        of_all.take(torch.stack(deltas_N).mean(0), round_)
    trainers[0].load(layout.scatter(of_all.anchor_N, 0))
    return {"val_loss": trainers[0].validate(), "values": layout.total_numel, "syncs": rounds}


def missing(
    records: Sequence[Record], inner_steps: int, seeds: int, common: tuple[int, int, list[str]]
) -> Iterator[Run]:
    """What is to be run, the controls first; further seeds at what is best by then."""

    def run(arm: str, seed: int) -> Run:
        return Run(arm, seed, 0.01 if arm == DATA_PARALLEL else RATE, *common)

    def there(wanted: Run) -> bool:
        return any(record["key"] == wanted.key for record in records)

    forms = {form: [f"{form} {words} inner_steps={inner_steps}" for words in tries] for form, tries in TRIES.items()}
    first = [ALONE, DATA_PARALLEL, *(arm for arms in zip(*forms.values(), strict=True) for arm in arms)]
    yield from (run(arm, SEED) for arm in first if not there(run(arm, SEED)))
    for seed in range(SEED + 1, SEED + seeds):
        best = [
            best_of([record for record in of_set_up(records, common) if record["key"][0] in arms])
            for arms in forms.values()
        ]
        yield from (run(arm, seed) for arm in (ALONE, DATA_PARALLEL, *best) if not there(run(arm, seed)))


def best_of(records: Sequence[Record]) -> str:
    """The arm with the least loss, of the first seed."""
    return str(min((each for each in records if each["key"][1] == SEED), key=lambda each: each["val_loss"])["key"][0])


# -- written ----------------------------------------------------------------------------------------------------------


def page(out: Path, records: list[Record]) -> str:
    """A table for each set-up."""
    sections = [section(title, runs) for title, runs in grouped(records, set_up).items()]
    return "\n".join([_HEAD, kept(out), *sections])


def section(title: str, records: list[Record]) -> str:
    """Each form at its best, beside all that was tried."""
    forms = grouped(records, lambda record: str(record["key"][0]).partition(" ")[0])
    alone, dense = (by_seed(forms.get(name, [])) for name in (ALONE, DATA_PARALLEL))
    rows = []
    for form, runs in forms.items():
        best = best_of(runs)
        losses = by_seed([run for run in runs if run["key"][0] == best])
        off, shares = gaps(losses, dense), share_kept(losses, alone, dense)
        told = {
            plain(str(run["key"][0])): run["val_loss"] for run in runs if run["key"][1] == SEED and " " in run["key"][0]
        }
        row = [form, plain(best), listed(losses.values(), ".4f"), spread(off, "+.1%") if off else ""]
        rows.append(
            [*row, spread(shares, ".0%") if shares else "", "; ".join(f"{at}: {x:.4f}" for at, x in told.items())]
        )
    rounds = next((run["syncs"] for run in records if "syncs" in run), 0)
    stamps = "".join(f"\n{place}\n" for place in places(records))
    return f"## {title}; {rounds} rounds\n\n{table(_COLUMNS, rows)}\n{stamps}\n    scripts/bench {SCRIPT}\n"


def plain(arm: str) -> str:
    """Its numbers."""
    return "/".join(word.partition("=")[2] for word in arm.split()[1:] if not word.startswith("inner_steps"))


_HEAD = """# Forms of the outer step in short runs

Written by `scripts/bench outer-step`; the raw numbers are in `outer-step.json`. Workers with the trainers of production
in one process; their pseudo-gradients are averaged as they are, without network and codec, and the outer step is taken
in one of several forms. Loss in nats per byte on held-out windows, of the anchor at the end.

* **nesterov**, **heavy-ball**: those of `method.nesterov`. **warm-up**: Nesterov's momentum grows from 0 over the first
  half of the rounds. **decay**: it falls to 0 over all of them. **restart-every-8**: the buffer is emptied every eight
  rounds. **restart-when-against**: it is emptied when it points against the round's pseudo-gradient.
  **primal-averaging**: plain steps of z, the anchor is a running mean of z, workers start between both, as GPA (arXiv
  2512.17131) has it for the steps of one worker.
* **at**: the best of the tries with the first seed: outer learning rate, momentum, and of primal averaging the share of
  the mean where workers start. Every form has four tries, and one learning rate (0.006; data-parallel training 0.01,
  its best in [longer runs](frontier.md)). Other seeds are run with it.
* **to data-parallel**: loss above that of one process with the batches of all workers, mean over seeds (least to
  greatest). **kept**: share of what that gains over one worker alone.
"""

_COLUMNS = "form | at | loss by seed | to data-parallel | kept | tries, first seed"


def main() -> None:
    """Run what is missing, and write the page after each cell."""
    parser = Parser(SCRIPT, __doc__, "outer-step")
    parser.add_argument("--steps", type=int, default=348, help="of one worker")
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="the first is tried with, the others at the best")
    parser.repeated("--set", metavar="KEY=VALUE", default=SETTINGS)
    options = parser.parse_args()
    records: list[Record] = read(options.out, [])
    torch.set_num_threads(1)
    corpus = corpus_for(options.set)
    runs = missing(records, options.inner_steps, options.seeds, (options.steps, options.workers, options.set))
    grow(SCRIPT, options.out, records, runs, lambda run: measure(run, corpus), page)


if __name__ == "__main__":
    enter(main)
