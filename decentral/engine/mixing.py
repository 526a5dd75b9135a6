"""Which exchange a run mixes by, made from its options."""

from collections.abc import Callable, Sequence

from torch import Tensor

from decentral.engine.options import Parts, RunOptions
from decentral.exchange.allreduce.exchange import AllReduce
from decentral.exchange.allreduce.options import AllReduceOptions, Merge
from decentral.exchange.api import Exchange
from decentral.exchange.gossip.company import Company
from decentral.exchange.gossip.context import Context
from decentral.exchange.gossip.exchange import Gossip
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.gossip.random_swaps import Move, RandomGossip
from decentral.exchange.merge import Range
from decentral.exchange.progress import Progress
from decentral.exchange.server.exchange import Asynchronous
from decentral.exchange.server.options import ServerOptions
from decentral.exchange.wire import Wire
from decentral.swarm.roster import Roster


def make_exchange(
    options: RunOptions,
    parts: Parts,
    roster: Roster,
    numels: Sequence[int],
    *,
    layered: Sequence[tuple[Range, ...]],
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
        layered: for each fragment the parameters that belong to a layer; the others take the plain mean.
        sends_changes: see ``Wire``.
        until_launch_s: see ``Company``.
        anchor: see ``Members``.
        move: see ``RandomGossip``; moves an anchor outside of any round.
    """
    me, transport, clock, timing = parts.transport.peer_id, parts.transport, parts.clock, options.timing
    values = (tuple(numels), options.codec, options.mean_codec)
    match options.mixing:
        case AllReduceOptions() as ours:
            wire = Wire(
                *values,
                over_senders=ours.merge is Merge.SENDERS,
                keep_rest=ours.keep_rest,
                sends_changes=sends_changes,
                directed=tuple(layered) if ours.merge is Merge.RADIAL else (),
                bound=ours.bound,
                robust=ours.robust,
                # Changes become ever smaller than what is owed of earlier ones: no answer would be near.
                audits=0.0 if sends_changes else ours.audits,
            )
            steps, identity = options.plan.inner_steps, parts.identity if wire.audits else None
            return AllReduce(transport, clock, roster, wire, timing, steps, ours.quorum, identity, anchor)
        case ServerOptions() as ours:
            return Asynchronous(transport, clock, roster, Wire(*values), timing, ours, anchor)
        case GossipOptions() as ours:
            wire = Wire(*values, over_senders=ours.over_senders, keep_rest=ours.keep_rest)
            company = Company(me, clock, roster, Progress(len(numels)), ours.group_size, until_launch_s)
            context = Context(transport, clock, company, wire, ours, timing, options.plan.inner_steps)
            return Gossip(context) if ours.swaps is None else RandomGossip(context, ours.swaps, anchor, move)
