"""Which exchange a run mixes by, made from its options."""

from collections.abc import Callable, Sequence

from torch import Tensor

from decentral.engine.options import Parts, RunOptions
from decentral.exchange.allreduce.exchange import AllReduce
from decentral.exchange.api import Exchange
from decentral.exchange.gossip.company import Company
from decentral.exchange.gossip.context import Context
from decentral.exchange.gossip.exchange import Gossip
from decentral.exchange.gossip.random_swaps import Move, RandomGossip
from decentral.exchange.merge import Range
from decentral.exchange.progress import Progress
from decentral.exchange.server.exchange import Asynchronous
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
        anchor: see ``RandomGossip``, as is ``move``.
        move: moves an anchor outside of any round.

    Raises:
        ValueError: options that do not go together.
    """
    others = (options.pairing is not None) + (options.server is not None)
    if others > 1:
        raise ValueError("a run gossips or has servers, not both")
    if others and (options.merge != "mean" or options.quorum is not None):
        raise ValueError("merge and quorum are the all-reduce's, and this run has none")
    wire = Wire(
        tuple(numels),
        options.codec,
        options.mean_codec,
        over_senders=options.over_senders,
        keep_rest=options.keep_rest,
        sends_changes=sends_changes,
        directed=tuple(layered) if options.merge == "rda" else (),
    )
    if options.server is not None:
        return Asynchronous(parts.transport, parts.clock, roster, wire, options.timing, options.server, anchor)
    if options.pairing is None:
        return AllReduce(parts.transport, parts.clock, roster, wire, options.timing, options.quorum)
    me, size, progress = parts.transport.peer_id, options.pairing.group_size, Progress(len(numels))
    company = Company(me, parts.clock, roster, progress, size, until_launch_s)
    inner_steps = options.plan.inner_steps
    context = Context(parts.transport, parts.clock, company, wire, options.pairing, options.timing, inner_steps)
    if options.pairing.events_per_round is None:
        return Gossip(context)
    return RandomGossip(context, anchor, move)
