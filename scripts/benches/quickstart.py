"""How much of what data-parallel training gains over one worker alone a swarm keeps, in a run as short as a quickstart.

    scripts/bench quickstart --arm alone --arm data-parallel --arm "name=sparseloco inner_steps=3" --steps 2000 ...
    scripts/bench quickstart         # writes the page anew from the raw numbers

An arm is ``alone`` (one worker), ``data-parallel`` (one process that takes the batches of all workers in every step),
or the settings of a swarm: of ``[method]``, or of any other section by the whole key. Two words among them are the
bench's own: ``workers=1`` for another number of workers, and ``moments=mean``, with which workers share the mean of
AdamW's second moments at every sync, as none do elsewhere. Every arm takes so many steps of a worker with each learning
rate. Runs that OUT.json has already are not run again, so that a bench that was stopped goes on. The section "Findings"
of OUT.md is written by hand and kept.
"""

import argparse
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from decentral.config.schema import SwarmConfig
from decentral.ports.trainer import Trainer
from decentral.workers.lm.corpus import Corpus
from scripts.benches.lib.arms import ALONE, DATA_PARALLEL, Run, by_seed, corpus_for, grow, made, set_up, share_kept
from scripts.benches.lib.command import Parser, enter, set_words
from scripts.benches.lib.report import Record, kept, places, read
from scripts.benches.lib.stats import grouped, listed, spread
from scripts.benches.lib.tables import table
from scripts.benches.lib.variants import agreed_loss

SCRIPT = "quickstart"
#: Of the mean of anchors that is tried in place of the last one.
EMA_DECAYS = (0.5, 0.8, 0.9)
_SHARED_MOMENTS = "moments=mean"


def record_of(run: Run, corpus: Corpus) -> Record:
    """What it comes to on this text."""
    return run.control(corpus) if run.is_control else swarm(run, corpus)


def swarm(run: Run, corpus: Corpus) -> Record:
    """Production workers; the network alone is simulated."""
    averages = Averages(EMA_DECAYS)
    trainers: list[Trainer] = []
    words = run.arm.split()

    def make(swarm: SwarmConfig, stream: int) -> Trainer:
        trainers.append(made(swarm, stream, corpus))
        return trainers[-1]

    def watch(worker: int, parameters: Mapping[str, Tensor]) -> None:
        if averages.first_of_round(worker) and _SHARED_MOMENTS in words:
            share_moments(trainers[1:])  # the first is a probe
        averages.take(worker, parameters)

    settings = " ".join(word for word in words if word != _SHARED_MOMENTS)
    play = replace(run, arm=settings).play(make, watch)
    loss = agreed_loss(play)
    # The last outer step is loaded by nobody.
    [anchors, *_] = [outcome.anchors for outcome in play.outcomes.values()]
    averages.take(0, anchors)
    return {
        "val_loss": loss,
        "values": sum(value.numel() for value in anchors.values()),
        "sent_bytes": statistics.mean(member.mixed()[-1].sent_bytes for member in play.members.values()),
        "syncs": play.swarm.run.rounds,
        "ema": {str(decay): play.loss(mean) for decay, mean in averages.means.items()},
    }


class Averages:
    """Running means of a swarm's anchors, one for each decay.

    Args:
        decays: what is kept at every outer step.
    """

    def __init__(self, decays: Sequence[float]) -> None:
        self.means: dict[float, dict[str, Tensor]] = {decay: {} for decay in decays}
        self._loads: dict[int, int] = {}

    def first_of_round(self, worker: int) -> bool:
        """Whether nobody else has loaded the anchors that this worker loads now; counts the load."""
        self._loads[worker] = self._loads.get(worker, 0) + 1
        return list(self._loads.values()).count(self._loads[worker]) == 1

    def take(self, worker: int, parameters: Mapping[str, Tensor]) -> None:
        """The anchors after an outer step; one worker's count, as all have the same."""
        if worker:
            return
        for decay, mean in self.means.items():
            for name, value in parameters.items():
                mean[name] = mean[name].lerp(value, 1 - decay) if name in mean else value.clone()


def share_moments(trainers: Sequence[Trainer]) -> None:
    """Give every worker the mean of all second moments. All stand at the same barrier when the first one loads."""
    states = [trainer.state_dict()["optimizer"] for trainer in trainers]  # type: ignore[attr-defined]
    for name in states[0]:
        if "exp_avg_sq" in states[0][name]:
            moments = [state[name]["exp_avg_sq"] for state in states]
            mean = torch.stack(moments).mean(0)
            for moment in moments:
                moment.copy_(mean)


# -- written ----------------------------------------------------------------------------------------------------------


def page(out: Path, records: list[Record]) -> str:
    """A table for each set-up."""
    sections = [section(title, runs) for title, runs in grouped(records, set_up).items()]
    return "\n".join([_HEAD, kept(out), *sections])


def section(title: str, records: list[Record]) -> str:
    """One set-up: each arm at its best learning rate, and all that were tried with the first seed."""
    arms = grouped(records, lambda record: str(record["key"][0]))
    at_best = {arm: best(runs) for arm, runs in arms.items()}
    rows, tried = [], []
    for arm, runs in at_best.items():
        rate, losses = runs[0]["key"][2], by_seed(runs)
        sent = runs[0]["sent_bytes"]
        dense = by_name(at_best, DATA_PARALLEL, "sent_bytes")
        row = [arm, f"{rate:g}", runs[0].get("syncs", ""), f"{sent / 1e6:.3g}"]
        row += [f"{dense[0] / sent:.0f}" if dense and sent else "", listed(losses.values(), ".4f")]
        shares = share_kept(losses, *(by_seed(at_best.get(control, [])) for control in (ALONE, DATA_PARALLEL)))
        row += [f"{statistics.mean(losses.values()):.4f}", spread(shares, ".0%") if shares else ""]
        rows.append(row)
        first = min(record["key"][1] for record in arms[arm])
        found = {record["key"][2]: record for record in arms[arm] if record["key"][1] == first}
        losses_by_rate = (f"{rate:g}: {found[rate]['val_loss']:.4f}" for rate in sorted(found))
        tried.append([arm, ", ".join(losses_by_rate), ema(found.values())])
    stamps = "".join(f"\n{place}\n" for place in places(records))
    _, _, _, steps, _, settings = records[0]["key"]
    command = shlex.join(["scripts/bench", SCRIPT, "--steps", str(steps), *set_words(settings)])
    return f"## {title}\n\n{table(_COLUMNS, rows)}\n\n{table(_TRIED, tried)}\n{stamps}\n    {command} {_AS_ABOVE}\n"


def best(runs: list[Record]) -> list[Record]:
    """The runs of an arm with the learning rate that is best with the first seed, by seed."""
    first = min(record["key"][1] for record in runs)
    chosen = min((record for record in runs if record["key"][1] == first), key=lambda record: float(record["val_loss"]))
    return sorted((run for run in runs if run["key"][2] == chosen["key"][2]), key=lambda run: int(run["key"][1]))


def by_name(arms: Mapping[str, list[Record]], arm: str, field: str) -> list[float]:
    """A figure of an arm's runs; nothing if it was not run."""
    return [float(record[field]) for record in arms.get(arm, [])]


def ema(records: Iterable[Record]) -> str:
    """By how much the mean of anchors is better than the last one, by decay, at the best learning rate."""
    run = min(records, key=lambda record: float(record["val_loss"]))
    gains = {decay: loss - run["val_loss"] for decay, loss in run.get("ema", {}).items()}
    return ", ".join(f"{decay}: {gain:+.4f}" for decay, gain in gains.items())


_HEAD = """# What a short run keeps of the gain

Written by `scripts/bench quickstart`; the raw numbers are in `quickstart.json`. Production workers train the language
model and the network alone is simulated; *alone* is one worker for as many steps, *data-parallel* one process that
takes the batches of all workers in every step. Loss in nats per byte on the same held-out windows.

* **lr**: the learning rate that is best with the first seed, of those in the second table; other seeds are run with it.
  Seeds differ in initial weights, in all streams of data and in the noise of codecs.
* **MB**: sent by one worker in the whole run. **fewer**: times fewer bytes than the ring all-reduce in fp32 of
  data-parallel training sends.
* **kept**: share of the gain, (alone - arm) / (alone - data-parallel), mean over seeds (least to greatest).
* **mean of anchors**: loss of an exponential mean of the anchors against that of the last one, by decay for each sync.
"""

_COLUMNS = "arm | lr: | syncs: | MB: | fewer: | loss by seed | mean: | kept"
_AS_ABOVE = "--arm ARM --rate LR --seed SEED"
_TRIED = "arm | loss by learning rate, first seed | mean of anchors"


def main() -> None:
    """Run every arm with every learning rate and seed that is not there yet, and write the page after each."""
    parser = Parser(SCRIPT, __doc__, "quickstart")
    parser.repeated("--arm", metavar="SETTINGS")
    parser.repeated("--rate", float, [0.006], help="learning rate")
    parser.repeated("--seed", int, [0])
    parser.add_argument("--steps", type=int, default=2000, help="of one worker")
    parser.add_argument("--workers", type=int, default=4)
    parser.settings()
    options: argparse.Namespace = parser.parse_args()
    common = (options.steps, options.workers, options.set)
    runs = [Run(arm, seed, rate, *common) for seed in options.seed for arm in options.arm for rate in options.rate]
    records: list[Record] = read(options.out, [])
    torch.set_num_threads(1)
    corpus = corpus_for(options.set)
    missing = (run for run in runs if run.key not in [record["key"] for record in records])
    grow(SCRIPT, options.out, records, missing, lambda run: record_of(run, corpus), page)


if __name__ == "__main__":
    enter(main)
