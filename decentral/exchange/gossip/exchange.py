"""Gossip in rounds: at the end of its inner steps a worker mixes with a random partner, or goes on alone.

1. The plan names a group (``company``). Its host stays at home, its guests come with their pseudo-gradients; their
   anchors went ahead when they were new, so nothing but the pseudo-gradient is on the critical path.
2. The host waits for guests that say they will come in time, closes its table, and answers with the mean and with each
   guest's pull (``swap``). It does not wait for the answers to arrive.
3. Who finds the host gone, busy, in another round or too slow asks others for a place at their tables. Who finds
   none takes the outer step alone.

Nobody agrees on anything: a swap that only one side completes leaves two anchors a little further apart, and the next
pulls bring them together. Every wait is below a deadline that follows what waits have been like (``limits``).

Legend: N = values in the fragment.
"""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from decentral.codecs.frame import framed_nbytes
from decentral.errors import FrameError
from decentral.exchange.api import Aborted, Contribution, Exchange, Memory, Met, Onward, Reason, Restrained, Verdict
from decentral.exchange.gossip.context import Context
from decentral.exchange.gossip.guest import Guest, Sync
from decentral.exchange.gossip.host import Host
from decentral.exchange.gossip.messages import Kind, Reply, ms
from decentral.exchange.gossip.swap import Share, Swap, Taken, part_of
from decentral.exchange.gossip.table import Seat, Table
from decentral.exchange.limits import Budget
from decentral.outer.rule import Mixed
from decentral.swarm.message import to_wire
from decentral.types import PeerId, SyncKey, short_id

#: So many others are asked for a place when the plan has failed; the first to be ready is the one.
_MAX_ASKED = 8
#: So much of the time of its inner steps a worker waits for partners in the long run, and so much of a stretch at once.
_WAIT_SHARE, _WAIT_MOST = 0.03, 0.25
#: Within that, a wait of so much of a stretch is always worth it: to fall out of step costs more. And whatever the
#: budget says, so many seconds may be waited: on the scale of messages there is nothing to save.
_MIN_WAIT_ROUNDS, _MIN_WAIT_S = 0.1, 0.5
#: Who is alone so often in a row is out of step with the others, and may be for ever: it is told when they are ready.
_OUT_OF_STEP = 3
#: To be in step again a guest leaves out less than the other part of its stretch.
_STRETCH_LEAST = 0.5
#: Between two questions to a guest that is about to come.
_TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class _End:
    """What a sync has come to."""

    outcome: Mixed | Aborted
    sent_N: Tensor | None
    partners: tuple[PeerId, ...] = ()
    spread: float = math.nan
    restrained: tuple[Restrained, ...] = ()


class Gossip(Exchange):
    """Implements ``Exchange``; a guest's side, and through its parts a host's.

    Args:
        context: ports, agreements, and what was learnt of others.
    """

    has_common_anchor = False

    def __init__(self, context: Context) -> None:
        super().__init__(context.company.progress)
        self._context = context
        self._company, self._clock = context.company, context.clock
        self._host = Host(context)
        self._guest = Guest(context, self._host)
        self._swap = Swap(context.wire, context.options)
        self._serial = 0
        self._rounds_alone = [0 for _ in context.wire.numels]
        self._budget = Budget(_WAIT_SHARE, _WAIT_MOST)
        self._due_at = math.nan
        """When others will be ready, as of the last sync, if they are not when we are."""

    async def start(self) -> None:
        """Begin to serve other members."""
        await self._host.start()

    def adopted(self, fragment: int, base: str, anchor_N: Tensor) -> None:
        """A new anchor: it goes ahead to the next host."""
        self._guest.adopted(fragment, base, anchor_N)

    async def run(self) -> None:
        """Send anchors ahead."""
        await self._guest.run()

    def onward(self) -> Onward:
        """In the round of the others; and whoever would be ready later than they are takes fewer steps.

        With several fragments it would jump over events of the plan: those meet somebody sooner or later.
        """
        due_in_s, self._due_at = self._due_at - self._clock.monotonic(), math.nan
        return Onward(self._company.round_to_join(), due_in_s if len(self._rounds_alone) == 1 else math.nan)

    def memory(self) -> Memory:
        """What its arithmetic remembers."""
        return self._swap.memory()

    def remember(self, memory: Memory, anchors_N: Sequence[Tensor]) -> None:
        """See ``Exchange``."""
        self._swap.remember(memory)

    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        """Mix ``mine`` with a partner's contribution, or find that there is none.

        A weight of 0 listens only: nothing is brought, mean and pull are received.
        """
        came, fragment, has_others = self._clock.monotonic(), key.fragment, bool(self._company.others())
        delta, sent_N = await self._guest.encoded(key, mine) if has_others else (b"", None)
        began = self._clock.monotonic()
        wait_s, move_s = self._limits(fragment)
        self._serial += 1
        sync = Sync(key, mine, self._serial, began, began + wait_s, sent_N, delta)
        unconfirmed = self._host.unconfirmed(fragment)
        answer: tuple[PeerId, Reply] | None = None
        answers: dict[tuple[PeerId, int], bytes] = {}
        self._host.attend(fragment, delta if has_others else None)
        try:
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s + move_s):
                        answer = await self._meet(sync)
            finally:
                # At one moment: whoever comes later is a guest of the next sync, which is a stretch of steps away.
                self.progress.finish(key)
                seats, table = self._host.clear(fragment)
            ended = self._clock.monotonic()
            end = await self._take(sync, *answer) if answer is not None else None
            end = end or await self._settle(sync, seats, table, answers) or self._alone(sync)
        finally:
            table.close(answers)
        alone = self._rounds_alone[fragment] = 0 if end.partners else self._rounds_alone[fragment] + 1
        self._due_at = self._ready_at(sync, alone)
        waiting_s = max(0.0, ended - began - sync.moving_s)
        self._budget.spend(waiting_s)
        met = Met(
            partners=end.partners,
            spread=end.spread,
            deadline_s=wait_s + move_s if has_others else math.nan,
            unconfirmed=tuple(sorted({*unconfirmed, *sync.unsure})),
            avoided=self._context.offences.avoided(self._clock.monotonic()),
        )
        return Verdict(
            end.outcome,
            end.sent_N,
            absent=tuple(sorted((peer, why) for peer, why in sync.absent.items() if peer not in end.partners)),
            waiting_s=waiting_s,
            transfer_s=began - came + sync.moving_s + self._clock.monotonic() - ended,
            met=met,
            restrained=end.restrained,
        )

    def _limits(self, fragment: int) -> tuple[float, float]:
        """How long to wait for partners, and how long for values on their way, seconds."""
        context, pace_s = self._context, self._company.round_s()
        share_s = pace_s / len(context.wire.numels)
        most_s = self._budget.earn(share_s) if pace_s else context.timing.min_patience_s
        codecs = (context.wire.codec, context.wire.mean_codec, context.options.anchor_codec, context.options.pull_codec)
        slowest_s = context.timing.call_timeout_s(
            sum(framed_nbytes(codec, context.wire.numels[fragment]) for codec in codecs)
        )
        learnt_s = context.waits.seconds(at_first=most_s, at_most=most_s)
        wait_s = max(_MIN_WAIT_S, min(most_s, max(_MIN_WAIT_ROUNDS * pace_s, learnt_s)))
        return wait_s, context.moves.seconds(at_first=slowest_s, at_most=slowest_s)

    def _ready_at(self, sync: Sync, alone: int) -> float:
        """When the others will be ready; NaN if they are when we are, or if it is not known.

        A guest goes on later than its host, which did so when the guest's values were there. Who was alone for so many
        syncs is told by those who have no place for it.
        """
        round_s, nearest = self._company.round_s(), min(sync.ready_at, default=math.inf)
        if not alone and sync.behind_s and round_s:
            return self._clock.monotonic() + max(_STRETCH_LEAST * round_s, round_s - sync.behind_s)
        # One that was ready in time and had no place does not tell that we are out of step.
        if alone and alone % _OUT_OF_STEP == 0 and sync.wait_until < nearest < math.inf:
            return nearest
        return math.nan

    # -- finding each other -------------------------------------------------------------------------------------------

    async def _meet(self, sync: Sync) -> tuple[PeerId, Reply] | None:
        """A host's answer; ``None`` if this worker has guests, or nobody."""
        fragment, me = sync.key.fragment, self._company.me
        group = self._company.group(fragment)
        if self._host.table(fragment).guests or group[0] == me:
            planned = [peer for peer in group[1:] if not self._context.avoids(peer)] if group[0] == me else []
            if await self._receive(sync, planned):
                return None
        elif (reply := await self._guest.visit(sync, group[0])) is not None:
            return group[0], reply
        return await self._seek(sync, tried=group[0])

    async def _receive(self, sync: Sync, planned: Sequence[PeerId]) -> bool:
        """Wait for the guests that say they come in time; returns whether there are any guests."""
        table = self._host.table(sync.key.fragment)
        gone: set[PeerId] = set()
        watches: dict[PeerId, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while missing := ({*planned} | table.promised) - table.seats.keys() - gone:
                    for peer in sorted(missing - watches.keys()):
                        watches[peer] = group.create_task(self._watch(sync, peer, table, gone))
                    await table.changed()
                for watch in watches.values():
                    watch.cancel()
        finally:
            for peer in sorted({*planned, *watches} - gone):
                seat = table.seats.get(peer)
                at = seat.since if seat is not None else self._clock.monotonic()
                self._context.waits.observe(at - sync.began)
                if peer in table.promised:
                    self._context.offend(peer, "has a seat, and does not come", brief=True)
        return bool(table.seats)

    async def _watch(self, sync: Sync, peer: PeerId, table: Table, gone: set[PeerId]) -> None:
        """Ask a guest now and then whether it is coming, until it has come or is not."""
        while peer not in table.seats:
            plan = await self._guest.ask(sync, peer)
            if plan is not None and plan.host == self._company.me and plan.eta_s is not None:
                # Once it has set out to us its values are on their way: for these there is time of their own.
                if not plan.eta_s or self._clock.monotonic() + plan.eta_s <= sync.wait_until:
                    await asyncio.sleep(min(self._context.timing.hold_s, max(_TICK_S, plan.eta_s)))
                    continue
                self._context.waits.observe(self._clock.monotonic() + plan.eta_s - sync.began)
                sync.absent[peer] = f"would have come {plan.eta_s:.1f} s later"
            elif plan is not None:
                sync.absent[peer] = f"goes to {short_id(plan.host)}"
            break
        gone.add(peer)
        table.promised.discard(peer)
        table.stir()

    async def _seek(self, sync: Sync, tried: PeerId) -> tuple[PeerId, Reply] | None:
        """Ask others for a place at their tables; meanwhile others may come to ours."""
        fragment = sync.key.fragment
        table = self._host.table(fragment)
        unwanted = {tried, *(each.peer for each in self._context.offences.avoided(self._clock.monotonic()))}
        free = [peer for peer in self._company.others() if peer not in unwanted]
        asked = self._company.some(fragment, free, _MAX_ASKED)
        async with asyncio.TaskGroup() as group:
            asks = [group.create_task(self._guest.ask(sync, peer)) for peer in asked]
        plans = zip(asked, (ask.result() for ask in asks), strict=True)
        places = [(plan.eta_s, p) for p, plan in plans if plan and plan.host == p and plan.eta_s is not None]
        sync.ready_at = [self._clock.monotonic() + eta_s for eta_s, _ in places]
        for eta_s, peer in sorted(places):
            if table.guests or self._clock.monotonic() + eta_s > sync.wait_until:
                break
            reply = await self._guest.visit(sync, peer)
            if reply is not None:
                return peer, reply
        await self._receive(sync, [])
        return None

    # -- what comes of it ----------------------------------------------------------------------------------------------

    async def _take(self, sync: Sync, host: PeerId, reply: Reply) -> _End | None:
        """The outcome that a host's answer means; ``None`` if the answer is not one."""
        key, mine, me = sync.key, sync.mine, self._company.me
        share = self._share(sync, sync.sent_N)
        try:
            if not reply.members or reply.members[0] != host or me not in reply.members[1:]:
                raise FrameError("the answer is for another group")
            if (reply.members.index(me) in reply.contributors) != bool(mine.weight):
                raise FrameError("the answer counts somebody else's values for ours")
            taken = await self._clock.run_aside(
                lambda: self._swap.take(
                    key, share, reply.members, reply.contributors, reply.mean, reply.pull, reply.own_share, sync.theirs
                )
            )
        except FrameError as err:
            sync.absent[host] = str(err)
            self._context.offend(host, str(err))
            return None
        return self._ended(taken, sync.sent_N, [peer for peer in reply.members if peer != me])

    async def _settle(
        self, sync: Sync, seats: Sequence[Seat], table: Table, answers: dict[tuple[PeerId, int], bytes]
    ) -> _End | None:
        """The outcome for a host, and its answers to those at its table; ``None`` if there is nobody."""
        if not seats:
            return None
        key, now = sync.key, self._clock.monotonic()
        if not sync.delta:  # they came to one that knew of nobody
            sync.delta, sync.sent_N = await self._guest.encoded(key, sync.mine)
        host = self._share(sync, sync.sent_N)
        guests = [seat.share for seat in seats]
        has_ours = len(seats) == 1 and table.given.get(seats[0].share.peer) == seats[0].serial

        def settle() -> Taken:
            taken, given = self._swap.settle(key, host, guests, has_ours=has_ours)
            for seat in seats:
                peer, held_s = seat.share.peer, now - seat.since
                told = given.members, given.contributors, given.mean, given.pulls[peer], given.shares[peer]
                reply = Reply(Kind.DONE, None, ms(held_s), *told)
                answers[peer, seat.serial] = to_wire(reply)
            return taken

        taken = await self._clock.run_aside(settle)
        return self._ended(taken, sync.sent_N, [guest.peer for guest in guests])

    def _share(self, sync: Sync, delta_N: Tensor | None) -> Share:
        """What this worker brings to a group."""
        mine = sync.mine
        part = part_of(mine, self._context.inner_steps)
        return Share(self._company.me, mine.weight, delta_N if mine.weight else None, mine.base.anchor_N, part)

    def _alone(self, sync: Sync) -> _End:
        """The step without a partner: what we bring is the mean, and no codec spoils it."""
        mine = sync.mine
        if not mine.weight:
            return _End(Aborted(Reason.ALONE, "nothing to give, and nobody to listen to"), None)
        return _End(Mixed(mine.delta_N, (self._company.me,)), mine.delta_N)

    def _ended(self, taken: Taken, sent_N: Tensor | None, partners: Sequence[PeerId]) -> _End:
        """The outcome of a swap; who lied is noted."""
        self._context.judge(taken.restrained)
        return _End(taken.mixed, sent_N, tuple(partners), taken.spread, taken.restrained)
