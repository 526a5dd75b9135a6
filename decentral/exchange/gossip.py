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
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from decentral.codecs.frame import framed_nbytes, pack, unpack
from decentral.errors import CallRefused, CallTimeout, FrameError, PeerUnreachable, TransportError
from decentral.exchange.api import Aborted, Contribution, Exchange, Met, Reason, Verdict
from decentral.exchange.company import Company
from decentral.exchange.cut import Wire, seed_of
from decentral.exchange.gossip_messages import (
    MAX_SMALL_BYTES,
    Anchor,
    Bring,
    Kind,
    Plan,
    Poll,
    Reply,
    pack_anchor,
    pack_bring,
    pack_poll,
    pack_question,
    pack_reply,
    unpack_plan,
    unpack_reply,
)
from decentral.exchange.host import AHEAD, ASK, BRING, MAX_VISITORS, POLL, Host
from decentral.exchange.limits import Limit
from decentral.exchange.offences import Offences
from decentral.exchange.pairing import Pairing
from decentral.exchange.swap import FAR_OFF, Share, Swap, Taken
from decentral.exchange.table import Table
from decentral.outer.rule import Mixed
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey, short_id

#: Others asked at a time, and how often, when the plan has failed.
_ASKED_AT_ONCE = 4
_MAX_ASKED = 8
#: Waits for partners are limited to so many times the usual, but at least and at most ...
_WAIT_FACTOR = 1.5
_MIN_WAIT_S = 0.5
#: ... this, the latter in inner stretches: whoever is later than that is not worth it.
_MAX_WAIT_ROUNDS = 0.5
_MOVE_FACTOR = 4.0
_MIN_MOVE_S = 1.0
#: Between two questions to a guest that is about to come.
_TICK_S = 0.25


@dataclass(slots=True)
class _Sync:
    """One call of ``mix`` and what has come of it so far."""

    key: SyncKey
    mine: Contribution
    anchor_N: Tensor
    serial: int
    began: float
    wait_until: float
    """Partners that come later are not waited for."""
    absent: dict[PeerId, str] = field(default_factory=dict)
    unsure: set[PeerId] = field(default_factory=set)
    """Hosts that may count us though we do not know it."""
    sent_N: Tensor | None = None
    """What hosts decode of ours, once it is encoded."""
    delta: bytes = b""
    """Its frame."""
    moving_s: float = 0.0
    """Time that the values of the swap that succeeded were on their way."""


@dataclass(frozen=True, slots=True)
class _End:
    """What a sync has come to."""

    outcome: Mixed | Aborted
    sent_N: Tensor | None
    partners: tuple[PeerId, ...] = ()
    spread: float = math.nan


class Gossip(Exchange):
    """Implements ``Exchange``; a guest's side, and through its parts a host's.

    Args:
        transport: to the peers.
        clock: for durations.
        roster: who is alive.
        wire: sizes and codecs of pseudo-gradients and means, equal on all members.
        pairing: codecs of anchors and pulls, and the size of a group.
        timing: bounds for calls.
        until_launch_s: see ``Company``.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        wire: Wire,
        pairing: Pairing,
        timing: Timing,
        until_launch_s: Callable[[int], float],
    ) -> None:
        super().__init__(len(wire.numels))
        self._transport = transport
        self._clock = clock
        self._wire = wire
        self._pairing = pairing
        self._timing = timing
        self._offences = Offences()
        self._swap = Swap(wire, pairing)
        size = pairing.group_size
        self._company = Company(transport.peer_id, clock, roster, self.progress, size, until_launch_s)
        self._host = Host(transport, clock, self._company, wire, pairing, self._offences, timing)
        self._waits = Limit(_WAIT_FACTOR, _MIN_WAIT_S)
        self._moves = Limit(_MOVE_FACTOR, _MIN_MOVE_S)
        self._serial = 0
        self._frames: dict[int, tuple[str, bytes]] = {}
        """Of every fragment's anchor, with its digest."""
        self._sent_ahead: dict[int, tuple[str, PeerId]] = {}
        self._new: dict[int, tuple[str, Tensor]] = {}
        """Anchors that have not set out yet."""
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Begin to serve other members."""
        await self._host.start()

    def adopted(self, fragment: int, base: str, anchor_N: Tensor) -> None:
        """A new anchor: it goes ahead to the next host."""
        self._new[fragment] = base, anchor_N
        self._news.set()

    async def run(self) -> None:
        """Send anchors ahead."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._new:
                fragment, (base, anchor_N) = self._new.popitem()
                await self._send_ahead(fragment, base, anchor_N)

    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        """Mix ``mine`` with a partner's contribution, or find that there is none.

        A weight of 0 listens only: nothing is brought, mean and pull are received.
        """
        if mine.anchor_N is None:
            raise ValueError("gossip needs the anchor of a contribution")
        began, fragment = self._clock.monotonic(), key.fragment
        wait_s, move_s = self._limits(fragment)
        self._serial += 1
        sync = _Sync(key, mine, mine.anchor_N, self._serial, began, began + wait_s)
        unconfirmed = self._host.unconfirmed(fragment)
        answer: tuple[PeerId, Reply] | None = None
        self._host.attend(fragment)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s + move_s):
                    answer = await self._meet(sync)
            ended = self._clock.monotonic()
            end = await self._take(sync, *answer) if answer is not None else None
            end = end or await self._settle(sync) or self._alone(sync)
        finally:
            self._host.depart(fragment)
            self.progress.finish(key)
        met = Met(
            partners=end.partners,
            spread=end.spread,
            deadline_s=wait_s + move_s,
            unconfirmed=tuple(sorted({*unconfirmed, *sync.unsure})),
            avoided=self._offences.avoided(self._clock.monotonic()),
        )
        return Verdict(
            end.outcome,
            end.sent_N,
            absent=tuple(sorted((peer, why) for peer, why in sync.absent.items() if peer not in end.partners)),
            waiting_s=max(0.0, ended - began - sync.moving_s),
            transfer_s=sync.moving_s + self._clock.monotonic() - ended,
            met=met,
        )

    def _limits(self, fragment: int) -> tuple[float, float]:
        """How long to wait for partners, and how long for values on their way, seconds."""
        pace_s = self._company.round_s()
        most_s = max(_MIN_WAIT_S, _MAX_WAIT_ROUNDS * pace_s) if pace_s else self._timing.min_patience_s
        codecs = (self._wire.codec, self._wire.mean_codec, self._pairing.anchor_codec, self._pairing.pull_codec)
        size = sum(framed_nbytes(codec, self._wire.numels[fragment]) for codec in codecs)
        slowest_s = self._timing.call_timeout_s(size)
        wait_s = self._waits.seconds(at_first=most_s, at_most=most_s)
        return wait_s, self._moves.seconds(at_first=slowest_s, at_most=slowest_s)

    # -- finding each other -------------------------------------------------------------------------------------------

    async def _meet(self, sync: _Sync) -> tuple[PeerId, Reply] | None:
        """A host's answer; ``None`` if this worker has guests, or nobody."""
        fragment, me = sync.key.fragment, self._company.me
        group = self._company.group(fragment)
        if self._host.table(fragment).seats or group[0] == me:
            if await self._receive(sync, group[1:] if group[0] == me else ()):
                return None
        elif (answer := await self._visit(sync, group[0])) is not None:
            return answer
        return await self._seek(sync, tried=set(group))

    async def _receive(self, sync: _Sync, planned: Sequence[PeerId]) -> bool:
        """Wait for the guests that say they come in time; returns whether there are any guests."""
        table = self._host.table(sync.key.fragment)
        gone: set[PeerId] = set()
        try:
            async with asyncio.TaskGroup() as group:
                missing = [peer for peer in planned if peer not in table.seats]
                watches = [group.create_task(self._watch(sync, peer, table, gone)) for peer in missing]
                while any(peer not in gone and peer not in table.seats for peer in missing):
                    await table.changed()
                for watch in watches:
                    watch.cancel()
        finally:
            for peer in planned:
                if peer not in gone:
                    seat = table.seats.get(peer)
                    at = seat.since if seat is not None else self._clock.monotonic()
                    self._waits.observe(at - sync.began)
        return bool(table.seats)

    async def _watch(self, sync: _Sync, peer: PeerId, table: Table, gone: set[PeerId]) -> None:
        """Ask a planned guest now and then whether it is coming, until it has come or is not."""
        while peer not in table.seats:
            plan = await self._ask(sync, peer)
            if plan is not None and plan.host == self._company.me and plan.eta_s is not None:
                if self._clock.monotonic() + plan.eta_s <= sync.wait_until:
                    await asyncio.sleep(min(self._timing.hold_s, max(_TICK_S, plan.eta_s)))
                    continue
                self._waits.observe(self._clock.monotonic() + plan.eta_s - sync.began)
                sync.absent[peer] = f"would have come {plan.eta_s:.1f} s later"
            elif plan is not None:
                sync.absent[peer] = f"goes to {short_id(plan.host)}"
            break
        gone.add(peer)
        table.stir()

    async def _seek(self, sync: _Sync, tried: Collection[PeerId]) -> tuple[PeerId, Reply] | None:
        """Ask others for a place at their tables; meanwhile others may come to ours."""
        fragment, now = sync.key.fragment, self._clock.monotonic()
        table = self._host.table(fragment)
        free = [p for p in self._company.others(fragment) if p not in tried and not self._offences.avoids(p, now)]
        for start in range(0, min(len(free), _MAX_ASKED), _ASKED_AT_ONCE):
            asked = free[start : start + _ASKED_AT_ONCE]
            async with asyncio.TaskGroup() as group:
                asks = [group.create_task(self._ask(sync, peer)) for peer in asked]
            plans = zip(asked, (ask.result() for ask in asks), strict=True)
            places = [(plan.eta_s, p) for p, plan in plans if plan and plan.host == p and plan.eta_s is not None]
            for eta_s, peer in sorted(places):
                if table.seats or self._clock.monotonic() + eta_s > sync.wait_until:
                    break
                answer = await self._visit(sync, peer)
                if answer is not None:
                    return answer
            if table.seats:
                break
        return None

    async def _ask(self, sync: _Sync, peer: PeerId) -> Plan | None:
        """Where a peer will be and when; ``None`` if it does not say."""
        question = pack_question(sync.key.fragment)
        try:
            reply = await self._transport.call(
                peer, ASK, question, timeout_s=self._timing.hold_s, max_reply_bytes=MAX_SMALL_BYTES
            )
            return unpack_plan(reply)
        except PeerUnreachable:
            self._company.bury(peer)
            sync.absent[peer] = "cannot be reached"
        except (TransportError, FrameError) as err:
            sync.absent[peer] = str(err)
        return None

    # -- as a guest ---------------------------------------------------------------------------------------------------

    async def _visit(self, sync: _Sync, host: PeerId) -> tuple[PeerId, Reply] | None:
        """Bring our values to a host and stay for its answer; ``None`` if it will not have us."""
        fragment, began = sync.key.fragment, self._clock.monotonic()
        if self._offences.avoids(host, began):
            sync.absent[host] = "is avoided for a while"
            return None
        self._host.visit(fragment, host)
        try:
            reply = await self._stay(sync, host)
        finally:
            self._host.visit(fragment, None)
        if reply is None or reply.kind is not Kind.DONE:
            if reply is not None and reply.eta_s is not None:
                self._waits.observe(began + reply.eta_s - sync.began)
            return None
        self._waits.observe(began + reply.held_s - sync.began)
        sync.moving_s = max(0.0, self._clock.monotonic() - began - reply.held_s)
        self._moves.observe(sync.moving_s)
        return host, reply

    async def _stay(self, sync: _Sync, host: PeerId) -> Reply | None:
        """Bring, and ask again until the host says yes or no."""
        fragment = sync.key.fragment
        limit, max_members = self._reply_limit(fragment), self._pairing.group_size + MAX_VISITORS
        method, request = BRING, await self._packed(sync, host)
        while True:
            timeout_s = self._timing.call_timeout_s(len(request) + limit)
            try:
                data = await self._transport.call(host, method, request, timeout_s=timeout_s, max_reply_bytes=limit)
                reply = unpack_reply(data, limit, max_members)
            except PeerUnreachable:
                self._company.bury(host)
                sync.absent[host] = "cannot be reached"
                return None
            except CallTimeout:
                reply = Reply(Kind.HOLD)
            except (CallRefused, FrameError) as err:
                sync.absent[host] = str(err)
                return None
            if reply.kind is Kind.HOLD:
                # It has our values, or may have them: whether they count only its answer can tell.
                sync.unsure.add(host)
                method, request = POLL, pack_poll(Poll(fragment, sync.serial))
            elif reply.kind is Kind.ANCHOR and fragment in self._sent_ahead:
                # Another guest's plan, a restart: what went ahead is not there any more.
                del self._sent_ahead[fragment]
                request = await self._packed(sync, host)
            else:
                sync.unsure.discard(host)
                if reply.kind is not Kind.DONE:
                    when = "" if reply.eta_s is None else f", ready in {reply.eta_s:.1f} s"
                    sync.absent[host] = f"has no place for us{when}"
                return reply

    async def _packed(self, sync: _Sync, host: PeerId) -> bytes:
        """What we bring; with the anchor, unless this host has it."""
        fragment, mine = sync.key.fragment, sync.mine
        if mine.weight and not sync.delta:
            sync.delta, sync.sent_N = await self._clock.run_aside(lambda: self._encoded(sync))
        ahead = self._sent_ahead.get(fragment) == (mine.base, host)
        anchor = b"" if ahead else await self._frame(fragment, mine.base, sync.anchor_N)
        patience_s = max(0.0, sync.wait_until - self._clock.monotonic())
        return pack_bring(Bring(fragment, mine.base, sync.serial, mine.weight, patience_s, sync.delta, anchor))

    def _encoded(self, sync: _Sync) -> tuple[bytes, Tensor]:
        """The frame of our pseudo-gradient, and what a host makes of it."""
        codec, delta_N, key = self._wire.codec, sync.mine.delta_N, sync.key
        frame = pack(codec, delta_N, seed_of(f"{self._company.me}/{key.round}/{key.fragment}"))
        return frame, delta_N if codec.lossless else unpack(frame, codec, delta_N.numel())

    async def _frame(self, fragment: int, base: str, anchor_N: Tensor) -> bytes:
        """The frame of an anchor, made once."""
        known, frame = self._frames.get(fragment, ("", b""))
        if known != base:
            codec, seed = self._pairing.anchor_codec, seed_of(f"anchor/{self._company.me}/{base}")
            frame = await self._clock.run_aside(lambda: pack(codec, anchor_N, seed))
            self._frames[fragment] = base, frame
        return frame

    async def _send_ahead(self, fragment: int, base: str, anchor_N: Tensor) -> None:
        """Send a new anchor to the next host, if this worker is to be a guest. If that fails it goes later."""
        host = self._company.group(fragment)[0]
        if host == self._company.me:
            return
        request = pack_anchor(Anchor(fragment, base, await self._frame(fragment, base, anchor_N)))
        timeout_s = self._timing.call_timeout_s(len(request))
        with contextlib.suppress(TransportError):
            await self._transport.call(host, AHEAD, request, timeout_s=timeout_s, max_reply_bytes=0)
            self._sent_ahead[fragment] = base, host

    async def _take(self, sync: _Sync, host: PeerId, reply: Reply) -> _End | None:
        """The outcome that a host's answer means; ``None`` if the answer is not one."""
        key, mine, me = sync.key, sync.mine, self._company.me
        share = Share(me, mine.weight, sync.sent_N if mine.weight else None, sync.anchor_N)
        try:
            if not reply.members or reply.members[0] != host or me not in reply.members[1:]:
                raise FrameError("the answer is for another group")
            if (reply.members.index(me) in reply.contributors) != bool(mine.weight):
                raise FrameError("the answer counts somebody else's values for ours")
            taken = await self._clock.run_aside(
                lambda: self._swap.take(key, share, reply.members, reply.contributors, reply.mean, reply.pull)
            )
        except FrameError as err:
            sync.absent[host] = str(err)
            self._offend(host, str(err))
            return None
        return self._ended(taken, sync.sent_N, [peer for peer in reply.members if peer != me])

    def _reply_limit(self, fragment: int) -> int:
        """The longest answer of a host."""
        numel = self._wire.numels[fragment]
        frames = framed_nbytes(self._wire.mean_codec, numel) + framed_nbytes(self._pairing.pull_codec, numel)
        return frames + 256 * (self._pairing.group_size + MAX_VISITORS) + MAX_SMALL_BYTES

    # -- as a host, or alone ------------------------------------------------------------------------------------------

    async def _settle(self, sync: _Sync) -> _End | None:
        """Close the table and answer its guests; ``None`` if there are none."""
        key, mine, me = sync.key, sync.mine, self._company.me
        seats, table = self._host.clear(key.fragment)
        answers: dict[tuple[PeerId, int], bytes] = {}
        try:
            if not seats:
                return None
            now = self._clock.monotonic()
            host = Share(me, mine.weight, mine.delta_N if mine.weight else None, sync.anchor_N)
            guests = [seat.share for seat in seats]
            taken, given = await self._clock.run_aside(lambda: self._swap.settle(key, host, guests))
            for seat in seats:
                peer, held_s = seat.share.peer, now - seat.since
                reply = Reply(Kind.DONE, None, held_s, given.members, given.contributors, given.mean, given.pulls[peer])
                answers[peer, seat.serial] = pack_reply(reply)
        finally:
            table.close(answers)
        return self._ended(taken, mine.delta_N, [guest.peer for guest in guests])

    def _alone(self, sync: _Sync) -> _End:
        """The step without a partner: what we bring is the mean, and no codec spoils it."""
        mine = sync.mine
        if not mine.weight:
            return _End(Aborted(Reason.ALONE, "nothing to give, and nobody to listen to"), None)
        return _End(Mixed(mine.delta_N, (self._company.me,)), mine.delta_N)

    def _ended(self, taken: Taken, sent_N: Tensor | None, partners: Sequence[PeerId]) -> _End:
        """The outcome of a swap; who was wild is noted."""
        for peer in taken.wild:
            self._offend(peer, FAR_OFF)
        return _End(taken.mixed, sent_N, tuple(partners), taken.spread)

    def _offend(self, peer: PeerId, reason: str) -> None:
        self._offences.note(peer, reason, self._clock.monotonic(), self._company.round_s())
