"""Loss against bytes: every method at one task, at the papers' twenty tokens a parameter, all tuned with one budget.

    scripts/bench frontier                # goes on where the record stops
    scripts/bench frontier --steps 6090 --arm data-parallel --arm "DiLoCo, H 30, fp32"    # these arms alone
    scripts/bench frontier --cells 0      # writes page and plot anew from the raw numbers

Each arm is searched with the first seed, one try after the other, breadth first, so that at any moment all have had the
same number of tries (within one); then further seeds are run at each arm's best. The record is written after every
cell, and a bench that was stopped goes on. The section "Findings" of OUT.md is written by hand and kept.
"""

import statistics
from functools import partial
from itertools import islice

import torch

from decentral.config.names import ALL_REDUCE
from decentral.config.schema import SwarmConfig
from decentral.engine.membership import PRESENCE
from decentral.ports.trainer import Trainer
from decentral.sim.network import Conditions
from decentral.state.average import Replica, survey
from decentral.workers.lm.corpus import Corpus
from scripts.benches.frontier_arms import ARMS, SETTINGS, next_run, of_set_up
from scripts.benches.frontier_page import page, plot
from scripts.benches.lib.arms import Run, corpus_for, grow, made
from scripts.benches.lib.command import BenchError, Parser, enter
from scripts.benches.lib.report import Record, read
from scripts.benches.lib.training import Play, drawn_ids
from scripts.benches.lib.variants import agreed_loss

SCRIPT = "frontier"
#: What signs of life say weighs nothing: it goes by time, whatever the size of the model.
_QUIET = Conditions(stands_for={PRESENCE: 0.0})


def measure(run: Run, corpus: Corpus) -> Record:
    """What a cell comes to."""
    if run.is_control:
        return run.control(corpus)

    def make(swarm: SwarmConfig, stream: int) -> Trainer:
        return made(swarm, stream, corpus)

    return outcome(run.play(make, ids=drawn_ids(run.seed), conditions=_QUIET))


def outcome(play: Play) -> Record:
    """What a swarm comes to; where its workers end with anchors of their own, the mean of their losses."""
    outcomes, members = play.outcomes, play.members.values()
    [anchors, *_] = [made.anchors for made in outcomes.values()]
    sent = [member.mixed()[-1].sent_bytes for member in members]
    in_rounds = statistics.mean(member.sent_a_round() for member in members) * play.swarm.run.rounds
    record: Record = {
        "values": sum(value.numel() for value in anchors.values()),
        "sent_bytes": statistics.mean(sent),
        "sent_bytes_in_rounds": in_rounds or statistics.mean(sent),
        "most_sent_bytes": max(sent),
        "syncs": play.swarm.run.rounds,
        "delays": sorted({event.delay_steps for member in members for event in member.mixed()}),
    }
    if play.swarm.method.family in ALL_REDUCE:
        return {"val_loss": agreed_loss(play), **record}
    if len(outcomes) != play.swarm.run.min_workers:
        raise BenchError(f"{len(outcomes)} of {play.swarm.run.min_workers} workers came to the end")
    replicas = [Replica(peer, "", end.round, partial(dict, end.anchors)) for peer, end in outcomes.items()]
    found = survey(replicas, play.loss)
    losses = [row.loss for row in found.rows]
    return {"val_loss": statistics.mean(losses), "losses": losses, "average_loss": found.average_loss, **record}


def main() -> None:
    """Run what is missing, and write the page after each cell; the plot at the end."""
    parser = Parser(SCRIPT, __doc__, "frontier")
    parser.add_argument("--tries", type=int, default=6, help="of an arm, with the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="the first is searched with, the others at the best")
    parser.add_argument("--steps", type=int, default=1218, help="of one worker")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--cells", type=int, default=1000, help="at most; the next call goes on")
    names = [arm.name for arm in ARMS]
    parser.repeated("--arm", choices=names, metavar="NAME", default=names, help="of those in the table; all of them")
    parser.repeated("--set", metavar="KEY=VALUE", default=SETTINGS)
    options = parser.parse_args()
    records: list[Record] = read(options.out, [])
    torch.set_num_threads(1)
    common = (options.steps, options.workers, options.set)
    corpus = corpus_for(options.set)
    arms = [arm for arm in ARMS if arm.name in options.arm]

    def missing() -> Run | None:
        return next_run(arms, of_set_up(records, common), options.tries, options.seeds, common)

    cells = islice(iter(missing, None), options.cells)
    grow(SCRIPT, options.out, records, cells, lambda run: measure(run, corpus), page)
    plot(options.out, records)


if __name__ == "__main__":
    enter(main)
