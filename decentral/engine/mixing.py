"""Which exchange a run mixes by, made from its options."""

from collections.abc import Callable, Sequence

from torch import Tensor

from decentral.engine.options import Parts, RunOptions
from decentral.exchange.allreduce import AllReduce
from decentral.exchange.api import Exchange
from decentral.exchange.cut import Wire
from decentral.exchange.gossip import Gossip
from decentral.exchange.random_gossip import Move, RandomGossip
from decentral.swarm.roster import Roster


def make_exchange(
    options: RunOptions,
    parts: Parts,
    roster: Roster,
    numels: Sequence[int],
    *,
    sends_changes: bool,
    until_launch_s: Callable[[int], float],
    anchor: Callable[[int], tuple[str, Tensor] | None],
    move: Move,
) -> Exchange:
    """The exchange of a run.

    Args:
        options: equal on all workers.
        parts: this worker's ports.
        roster: who is alive.
        numels: values in each fragment.
        sends_changes: see ``Wire``.
        until_launch_s: see ``Company``.
        anchor: see ``RandomGossip``, as is ``move``.
        move: moves an anchor outside of any round.
    """
    wire = Wire(
        tuple(numels),
        options.codec,
        options.mean_codec,
        over_senders=options.over_senders,
        keep_rest=options.keep_rest,
        sends_changes=sends_changes,
    )
    common = (parts.transport, parts.clock, roster, wire)
    if options.pairing is None:
        return AllReduce(*common, options.timing)
    if options.pairing.events_per_round is None:
        return Gossip(*common, options.pairing, options.timing, options.plan.inner_steps, until_launch_s)
    return RandomGossip(*common, options.pairing, options.timing, options.plan.inner_steps, anchor, move)
