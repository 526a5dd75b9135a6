"""A member's part in a move of blocks: its stage is stopped where the batch ends, and goes on under another cut.

    prepare (from the head)   stop the own stage between two steps and keep its state
                              fetch from others what the new stage lacks, cut all of it anew, build the new stage
    follow  (from the head)   the cut in force: begin the new stage, or the old one again if the move did not come about

Both states are kept until the head's word is known, so whoever dies, those who live go on under one cut: the head's.
The point of no return is the head's own change to the new cut, which it makes when all are ready. If its word is lost a
member asks for it; if the head is lost its successor goes on with the newest cut that somebody who lives has. Which cut
comes next, and when, is decided in ``move_lead``.
"""

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from typing import ClassVar, Protocol

from decentral.engine.background import Background
from decentral.engine.membership import Membership
from decentral.engine.recut import blocks_of, recut
from decentral.engine.takeover import Brought
from decentral.errors import (
    CallRefused,
    CallTimeout,
    ConfigError,
    DecentralError,
    FrameError,
    IncapableError,
    TransportError,
)
from decentral.pipeline.compute import StageCompute
from decentral.pipeline.holders import Holders
from decentral.pipeline.moves import FOLLOW, PREPARE, WHERE, Follow, Prepare, Prepared, Where
from decentral.pipeline.parcels import Parcels, most_bytes
from decentral.pipeline.placement import CutInForce, Placement, number_of
from decentral.pipeline.stored import Span
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.state.worker_state import WorkerState
from decentral.swarm.message import Message, from_wire, to_wire
from decentral.swarm.presence import named, stages_of
from decentral.swarm.timing import Timing
from decentral.types import Count, PeerId

#: Before a member whose stage has not stopped yet is asked for its blocks again.
_PAUSE_S = 0.1
#: Who is asked to stop gives its blocks away first, if that does not take longer.
_LEAVE_S = 60.0
#: The head's word is asked for so often.
_TRIES = 3


class Holdings(Protocol):
    """What a process does with its stages."""

    async def freeze(self) -> WorkerState | None:
        """Stop the stage that it holds, between two steps; its state, or ``None`` if it holds none."""
        ...

    async def recall(self, compute: StageCompute, span: Span, step: int) -> Brought | str:
        """Fill a stage from checkpoints of a step that are on somebody's disk; in words why it cannot be had."""
        ...

    async def begin(self, stage: int, compute: StageCompute, state: WorkerState | None, step: int) -> None:
        """Run a stage from a state, or from the run's seed."""
        ...

    async def drop(self) -> None:
        """Give up the stage that it holds, if it does: others hold it."""
        ...

    def build(self, first: int, stop: int) -> StageCompute:
        """Blocks ``first`` to ``stop - 1`` as the run began with them; on the clock's thread.

        Raises:
            IncapableError: this machine cannot hold so many.
            ConfigError: the task refuses to build them.
        """
        ...


class _Blocks(Message, frozen=True):
    what: ClassVar[str] = "question for blocks"
    number: Count
    """Of the cut under which they are to be held."""
    first: Count
    stop: Count


@dataclass(frozen=True, slots=True)
class _Next:
    """What this member is to have under the new cut."""

    answer: Prepared
    compute: StageCompute | None = None
    """``None`` if it is to have no stage."""
    state: WorkerState | None = None
    """``None`` for blocks as the run begins with them."""


@dataclass(frozen=True, slots=True)
class _Move:
    """One that is under way here."""

    order: Prepare
    frozen: asyncio.Task[WorkerState | None]
    ready: asyncio.Task[_Next]


class Mover:
    """One process's part.

    Args:
        transport: to the others.
        clock: builds stages on its thread.
        timing: bounds of calls.
        holders: who lives.
        membership: tells of the cut.
        cut: in force here; changed by nobody else.
        background: of the process.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        timing: Timing,
        holders: Holders,
        membership: Membership,
        cut: CutInForce,
        background: Background,
    ) -> None:
        self.preparing = 0
        """Of a head: the number of the cut that it has ordered, as long as nobody may follow it."""
        self._transport = transport
        self._clock = clock
        self._timing = timing
        self._holders = holders
        self._membership = membership
        self._cut = cut
        self._background = background
        self._parcels = Parcels(transport, clock, timing, self._parcel)
        self._move: _Move | None = None
        self.last = 0
        """The highest number of a cut that was heard of: an order that comes late is not carried out."""
        self.lock = asyncio.Lock()
        """Held while stages of this process change hands, for whatever reason."""

    @property
    def under_way(self) -> bool:
        """Whether the stage of this process stands still or changes."""
        return self._move is not None or self.lock.locked()

    async def start(self, holdings: Holdings) -> None:
        """Begin to answer, for a process with these stages."""
        self._holdings = holdings
        serve = self._transport.serve
        await serve(PREPARE, self._on_prepare, max_request_bytes=Prepare.max_bytes)
        await serve(FOLLOW, self._on_follow, max_request_bytes=Follow.max_bytes)
        await serve(WHERE, self._on_where, max_request_bytes=0)
        await self._parcels.start()

    async def hear(self, peer: PeerId) -> None:
        """Exchange records with a member."""
        await self._membership.tell(peer)

    # -- the head's orders --------------------------------------------------------------------------------------------

    async def _on_prepare(self, sender: PeerId, request: bytes) -> bytes:
        """Make ready; the answer waits for it as long as a call may."""
        order = from_wire(Prepare, request)
        if sender != self._holders.head():
            raise CallRefused(f"{sender} is not known as the head")
        async with self.lock:
            if self._move is None or self._move.order != order:
                if order.new.number <= self.last:
                    raise CallRefused(f"cut {self.last} was heard of here")
                await self._turn_to(order.now)
                self.last = order.new.number
                frozen = self._background.begin(self._holdings.freeze())
                self._move = _Move(order, frozen, self._background.begin(self._prepare(order, frozen)))
            ready = self._move.ready
        await asyncio.wait({ready}, timeout=self._timing.hold_s)
        if not ready.done():
            return to_wire(Prepared("busy", "", 0, 0.0))
        if ready.cancelled():
            raise CallRefused("another cut is in force by now")
        return to_wire(ready.result().answer)

    async def _on_follow(self, sender: PeerId, request: bytes) -> bytes:
        order = from_wire(Follow, request)
        if sender != self._holders.head():
            raise CallRefused(f"{sender} is not known as the head")
        await self.follow(order.cut)
        return b""

    async def _on_where(self, sender: PeerId, request: bytes) -> bytes:
        return to_wire(Where(self._cut.placement, self.preparing, self.last))

    # -- making ready -------------------------------------------------------------------------------------------------

    async def _prepare(self, order: Prepare, frozen: asyncio.Task[WorkerState | None]) -> _Next:
        """The stage that this member is to have, as of the last step, or why it cannot have it."""
        own, stage = await frozen, order.new.stage_of(self._transport.peer_id)
        if not stage:
            return _Next(Prepared("ready", "", 0, 0.0))
        first, stop = order.new.spans[stage - 1]
        try:
            compute = await self._clock.run(functools.partial(self._holdings.build, first, stop))
            if not order.now.bounds:
                return await self._first(compute, (first, stop), order.step)
            began = self._clock.monotonic()
            parameters = compute.parameters()
            states, num_fetched = await self._states(order, own, (first, stop), most_bytes(parameters))
            state = await self._clock.run_aside(lambda: recut(states, parameters))
        except (ConfigError, IncapableError) as err:
            return _Next(Prepared("unfit", err.message[:200], 0, 0.0))
        except (DecentralError, TransportError, FrameError, ValueError) as err:
            return _Next(Prepared("failed", str(err)[:200], 0, 0.0))
        if state.step != order.step:
            why = f"the blocks are those of step {state.step}, not of {order.step}"
            return _Next(Prepared("failed", why, 0, 0.0))
        return _Next(Prepared("ready", "", num_fetched, self._clock.monotonic() - began), compute, state)

    async def _first(self, compute: StageCompute, span: Span, step: int) -> _Next:
        """Blocks as the run begins, or as it was saved when all ended."""
        if not step:
            return _Next(Prepared("ready", "", 0, 0.0), compute)
        brought = await self._holdings.recall(compute, span, step)
        if isinstance(brought, str):
            return _Next(Prepared("failed", brought[:200], 0, 0.0))
        return _Next(Prepared("ready", "", 0, 0.0), compute, brought.state)

    async def _states(
        self, order: Prepare, own: WorkerState | None, span: Span, max_bytes: int
    ) -> tuple[list[WorkerState], int]:
        """States that have these blocks and perhaps others, in order; how many blocks were fetched.

        Raises:
            TransportError: who holds some of them is gone.
            FrameError: what came is no state.
        """
        (first, stop), me, calls = span, self._transport.peer_id, list[tuple[PeerId, int, int]]()
        for (low, high), peer in zip(order.now.spans, order.now.peers, strict=True):
            if max(low, first) < min(high, stop) and not (peer == me and own is not None):
                calls.append((peer, max(low, first), min(high, stop)))
        found = await asyncio.gather(
            *[self._fetch(peer, _Blocks(order.new.number, low, high), max_bytes) for peer, low, high in calls]
        )
        states = [*found, own] if own is not None else list(found)
        num_fetched = sum(high - low for _, low, high in calls)
        return sorted(states, key=lambda state: self._cut.span_of(state.anchors)), num_fetched

    async def _fetch(self, peer: PeerId, blocks: _Blocks, max_bytes: int) -> WorkerState:
        """Some blocks of one who holds them, as soon as its stage stands still.

        Raises:
            TransportError: it is gone. If it only takes long, the head gives up.
            FrameError: what came is no state.
        """
        while True:
            with contextlib.suppress(CallTimeout):
                state = await self._parcels.fetch(peer, to_wire(blocks), max_bytes)
                if state is not None:
                    return state
            await asyncio.sleep(_PAUSE_S)

    async def _parcel(self, key: bytes) -> WorkerState | None:
        """Blocks of the stage that stands still here, for those who are to have them; ``None`` if it does not yet."""
        wanted, move = from_wire(_Blocks, key), self._move
        if move is None or move.order.new.number != wanted.number or not move.frozen.done() or move.frozen.cancelled():
            return None
        state = move.frozen.result()
        if state is None:
            return None
        return await self._clock.run_aside(lambda: blocks_of(state, self._cut, wanted.first, wanted.stop))

    # -- the cut in force ---------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """If the head has another cut, or a move hangs here, ask what is in force; to be called now and then."""
        self._parcels.look()
        there = next((presence for presence in self._holders.present() if 0 in stages_of(presence.holds)), None)
        if there is None or there.peer == self._transport.peer_id:
            return
        if self._move is None and number_of(there.cut) == self._cut.number:
            return
        where = await self._ask(there.peer)
        if where is not None and (self._move is None or where.preparing != self._move.order.new.number):
            await self.follow(where.cut)

    async def follow(self, cut: Placement) -> None:
        """Go on under a cut: the head's word."""
        async with self.lock:
            await self._turn_to(cut)

    async def leave(self) -> None:
        """Have the head give this member's blocks to others, if there is room for them, before it leaves."""
        me, until = self._transport.peer_id, self._clock.monotonic() + _LEAVE_S
        self._membership.update(room=0)
        await self._membership.announce()
        blocks = self._cut.spans[-1][1] if self._cut.spans else 0
        while self._clock.monotonic() < until and stages_of(self._membership.own.holds) - {0}:
            head = self._holders.head()
            if (
                head in (None, me)
                or sum(other.room for other in self._holders.present() if other.peer != head) < blocks
            ):
                break
            await self.look()
            await asyncio.sleep(_PAUSE_S)

    async def settle(self) -> None:
        """Of one that is about to be the head: take the newest cut that somebody has who lives."""
        others = [presence.peer for presence in self._holders.present() if presence.peer != self._transport.peer_id]
        found = [where for where in await asyncio.gather(*map(self._ask, others)) if where is not None]
        self.last = max([self.last, *(where.last for where in found)])
        newest = max((where.cut for where in found), key=lambda cut: cut.number, default=self._cut.placement)
        if newest.number > self._cut.number:
            await self.follow(newest)

    async def _turn_to(self, cut: Placement) -> None:
        move, self._move = self._move, None
        if move is None and cut.number == self._cut.number:
            return
        mine = self._transport.peer_id
        if move is None:
            await self._holdings.drop()
            self._tell(cut)
            return
        frozen = await move.frozen
        following = move.ready.result() if move.ready.done() and not move.ready.cancelled() else None
        if cut.number == move.order.new.number and following is not None and following.answer.state == "ready":
            self._tell(cut, takes=cut.stage_of(mine))
            if following.compute is None:
                await self._holdings.drop()
            else:
                await self._holdings.begin(cut.stage_of(mine), following.compute, following.state, move.order.step)
            return
        move.ready.cancel()
        stage = move.order.now.stage_of(mine)
        self._tell(cut)
        if frozen is not None and stage and cut.number == move.order.now.number:
            compute = await self._clock.run(functools.partial(self._holdings.build, *cut.spans[stage - 1]))
            await self._holdings.begin(stage, compute, frozen, move.order.step)

    def _tell(self, cut: Placement, takes: int = 0) -> None:
        """From now on everybody hears of this one here, of which this process does not hold a stage yet."""
        if cut.number != self._cut.number:
            self._cut.change(cut)
            head = named(stages_of(self._membership.own.holds) & {0})
            self._membership.update(cut=cut.text, holds=head, takes=named({takes} - {0}))

    async def _ask(self, peer: PeerId) -> Where | None:
        for _ in range(_TRIES):
            try:
                timeout_s = self._timing.call_timeout_s(Where.max_bytes)
                reply = await self._transport.call(
                    peer, WHERE, b"", timeout_s=timeout_s, max_reply_bytes=Where.max_bytes
                )
                return from_wire(Where, reply)
            except FrameError:
                return None
            except TransportError:
                continue
        return None
