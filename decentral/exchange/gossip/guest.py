"""A guest's side of gossip: the anchor goes ahead, the pseudo-gradient follows, and the host's answer is waited for.

Legend: N = values in the fragment.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from decentral.codecs.frame import framed_nbytes, pack, unpack
from decentral.errors import CallRefused, CallTimeout, FrameError, PeerUnreachable, TransportError
from decentral.exchange.api import Contribution
from decentral.exchange.gossip.context import HOLD_S, Context
from decentral.exchange.gossip.host import AHEAD, ASK, BRING, FETCH, MAX_VISITORS, POLL, Host
from decentral.exchange.gossip.messages import (
    Anchor,
    Bring,
    Given,
    Kind,
    Plan,
    Question,
    Reply,
    Visit,
    ms,
    unpack_reply,
)
from decentral.exchange.wire import seed_of
from decentral.swarm.message import MAX_SMALL_BYTES, from_wire, to_wire
from decentral.types import PeerId, SyncKey

T = TypeVar("T")

#: Before a lost call is made again: one that breaks at once would be made without end.
_AGAIN_S = 0.1


@dataclass(slots=True)
class Sync:
    """One call of ``mix`` and what has come of it so far."""

    key: SyncKey
    mine: Contribution
    serial: int
    began: float
    wait_until: float
    """Partners that come later are not waited for."""
    sent_N: Tensor | None = None
    """What others decode of ours; ``None`` if it is not encoded, or there is none."""
    delta: bytes = b""
    """Its frame."""
    absent: dict[PeerId, str] = field(default_factory=dict)
    ready_at: list[float] = field(default_factory=list)
    """When others whom we have asked will be ready."""
    unsure: set[PeerId] = field(default_factory=set)
    """Hosts that may count us though we do not know it."""
    theirs: bytes | None = None
    """The frame of what the host brought itself, if the mean is for us to take."""
    moving_s: float = 0.0
    """Time that the values of the swap that succeeded were on their way."""
    behind_s: float = 0.0
    """How much later than the planned host we go on: it did so when our values were there."""


class Guest:
    """Brings this worker's values to hosts.

    Args:
        context: ports, agreements, and what was learnt of others.
        host: this worker's own other side, told where this one is.
    """

    def __init__(self, context: Context, host: Host) -> None:
        self._context = context
        self._host = host
        self._frames: dict[int, tuple[str, bytes]] = {}
        """Of every fragment's anchor, with its digest."""
        self._sent_ahead: dict[int, tuple[str, PeerId]] = {}
        self._new: dict[int, tuple[str, Tensor]] = {}
        """Anchors that have not set out yet."""
        self._news = asyncio.Event()

    def adopted(self, fragment: int, base: str, anchor_N: Tensor) -> None:
        """A new anchor, to be sent ahead."""
        self._new[fragment] = base, anchor_N
        self._news.set()

    async def run(self) -> None:
        """Send anchors ahead, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._new:
                fragment, (base, anchor_N) = self._new.popitem()
                await self._send_ahead(fragment, base, anchor_N)

    async def visit(self, sync: Sync, host: PeerId) -> Reply | None:
        """Bring our values to a host and stay for its answer; ``None`` if it will not have us."""
        context, fragment, began = self._context, sync.key.fragment, self._context.clock.monotonic()
        if context.avoids(host):
            sync.absent[host] = "is avoided for a while"
            return None
        self._host.visit(fragment, host)
        is_planned = host == context.company.group(fragment)[0]
        sync.absent[host] = "has not answered in time"
        try:
            reply = await self._stay(sync, host) if await self._is_welcome(sync, host) else None
        except asyncio.CancelledError:
            # What was cut off counts with the limit at which it was, so that this one can grow.
            context.moves.observe(context.clock.monotonic() - sync.wait_until)
            raise
        finally:
            self._host.visit(fragment, None)
        if reply is None or reply.kind is not Kind.DONE:
            if reply is not None and reply.eta_s is not None:
                context.waits.observe(began + reply.eta_s - sync.began)
            return None
        context.waits.observe(began + reply.held_s - sync.began)
        sync.moving_s = max(0.0, context.clock.monotonic() - began - reply.held_s)
        if is_planned:
            sync.behind_s = max(0.0, sync.moving_s * self._share_of(reply, fragment) - reply.held_s)
        context.moves.observe(sync.moving_s)
        return reply

    def is_expected(self, sync: Sync, host: PeerId) -> bool:
        """Whether a host has our anchor already: it plans this group as we do, and waits for the rest."""
        return self._sent_ahead.get(sync.key.fragment) == (sync.mine.base.digest, host)

    async def ask(self, sync: Sync, peer: PeerId, patience_s: float | None = None) -> Plan | None:
        """Where a peer will be and when; ``None`` if it does not say. With a patience we come if it is in time."""
        context = self._context
        question = to_wire(Question(sync.key.fragment, None if patience_s is None else ms(patience_s)))
        try:
            timeout_s = context.answer_s(MAX_SMALL_BYTES)
            reply = await context.transport.call(
                peer, ASK, question, timeout_s=timeout_s, max_reply_bytes=MAX_SMALL_BYTES
            )
            return from_wire(Plan, reply)
        except PeerUnreachable:
            context.company.bury(peer)
            sync.absent[peer] = "cannot be reached"
        except (TransportError, FrameError) as err:
            sync.absent[peer] = str(err)
        return None

    async def _is_welcome(self, sync: Sync, host: PeerId) -> bool:
        """Whether a host keeps a seat for us: values sent in vain cost more than a question. Silence is no no."""
        if self.is_expected(sync, host):
            return True
        patience_s = max(0.0, sync.wait_until - self._context.clock.monotonic())
        plan = await self.ask(sync, host, patience_s)
        welcome = plan is None or (plan.host == host and plan.eta_s is not None and plan.eta_s <= patience_s)
        if not welcome:
            sync.absent[host] = "has no place for us"
        return welcome

    async def encoded(self, key: SyncKey, mine: Contribution) -> tuple[bytes, Tensor | None]:
        """The frame of our pseudo-gradient, and what others make of it; empty for one that listens."""
        if not mine.weight:
            return b"", None
        codec, seed = self._context.wire.codec, seed_of(f"{self._context.company.me}/{key.round}/{key.fragment}")

        def packed() -> tuple[bytes, Tensor]:
            frame = pack(codec, mine.delta_N, seed)
            return frame, mine.delta_N if codec.lossless else unpack(frame, codec, mine.delta_N.numel())

        return await self._context.clock.run_aside(packed)

    async def _stay(self, sync: Sync, host: PeerId) -> Reply | None:
        """Bring our values and fetch the host's, at the same time: a line has two ways."""
        answered = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(self._fetch(sync, host, answered))
            reply = await self._bring(sync, host)
            answered.set()
            if reply is None or not reply.is_of_two:
                fetching.cancel()
        if reply is None or not reply.is_of_two:
            return reply
        given = fetching.result()
        if given is not None and given.kind is Kind.DONE:
            sync.theirs = given.delta
            return reply
        sync.unsure.add(host)
        if given is not None:
            sync.absent[host] = "keeps back the values that it says we have"
            self._context.offend(host, sync.absent[host], brief=True)
        return None

    async def _fetch(self, sync: Sync, host: PeerId, answered: asyncio.Event) -> Given | None:
        """What a host brings itself, ``HOLD`` or ``NO`` if it does not give it; ``None`` if it cannot be reached."""
        wire, fragment = self._context.wire, sync.key.fragment
        limit = framed_nbytes(wire.codec, wire.numels[fragment]) + MAX_SMALL_BYTES
        request = to_wire(Visit(fragment, sync.serial))
        while True:
            given = await self._call(sync, host, FETCH, request, limit, lambda data: from_wire(Given, data, limit))
            if given is None or given.kind is not Kind.HOLD or answered.is_set():
                return given
            await asyncio.sleep(_AGAIN_S)

    async def _bring(self, sync: Sync, host: PeerId) -> Reply | None:
        """Bring, and ask again until the host says yes or no."""
        fragment = sync.key.fragment
        limit, request = self._reply_limit(fragment), await self._packed(sync, host)
        method, most = BRING, self._context.options.group_size + MAX_VISITORS

        def read(data: bytes) -> Reply:
            return unpack_reply(data, limit, most)

        while True:
            # It has our values, or may have them from now on: whether they count only its answer can tell.
            sync.unsure.add(host)
            reply = await self._call(sync, host, method, request, limit, read)
            if reply is None:
                return None
            if reply.kind is Kind.HOLD:
                if method == POLL:  # a host that holds nothing is not asked without a pause
                    await asyncio.sleep(_AGAIN_S)
                method, request = POLL, to_wire(Visit(fragment, sync.serial))
            elif reply.kind is Kind.ANCHOR and self._sent_ahead.pop(fragment, None) is not None:
                request = await self._packed(sync, host)  # what went ahead is not there any more
            else:
                sync.unsure.discard(host)
                if reply.kind is not Kind.DONE:
                    when = "" if reply.eta_s is None else f", ready in {reply.eta_s:.1f} s"
                    sync.absent[host] = f"has no place for us{when}"
                return reply

    async def _call(
        self, sync: Sync, host: PeerId, method: str, request: bytes, limit: int, read: Callable[[bytes], T]
    ) -> T | None:
        """Call a host until it answers: saying the same twice changes nothing. ``None`` if it will not."""
        context = self._context
        timeout_s = context.answer_s(len(request) + limit, HOLD_S)
        while True:
            try:
                return read(
                    await context.transport.call(host, method, request, timeout_s=timeout_s, max_reply_bytes=limit)
                )
            except CallTimeout:
                await asyncio.sleep(_AGAIN_S)
                continue
            except PeerUnreachable:
                context.company.bury(host)
                sync.absent[host] = "cannot be reached"
            except CallRefused as err:
                sync.absent[host] = str(err)
            except FrameError as err:
                sync.absent[host] = str(err)
                context.offend(host, str(err))
            break
        if method == BRING:
            sync.unsure.discard(host)
        return None

    async def _packed(self, sync: Sync, host: PeerId) -> bytes:
        """What we bring; with the anchor, unless this host has it."""
        fragment, mine, base = sync.key.fragment, sync.mine, sync.mine.base
        anchor = b"" if self.is_expected(sync, host) else await self._frame(fragment, base.digest, base.anchor_N)
        # Who is ready for us closes its table soon, however late a lost question has made us.
        patience_s = max(HOLD_S, sync.wait_until - self._context.clock.monotonic())
        bring = Bring(fragment, base.digest, sync.serial, mine.weight, ms(patience_s), sync.delta, anchor)
        return await self._context.clock.run_aside(lambda: to_wire(bring))

    async def _frame(self, fragment: int, base: str, anchor_N: Tensor) -> bytes:
        """The frame of an anchor, made once."""
        known, frame = self._frames.get(fragment, ("", b""))
        if known != base:
            codec, seed = self._context.options.anchor_codec, seed_of(f"anchor/{self._context.company.me}/{base}")
            frame = await self._context.clock.run_aside(lambda: pack(codec, anchor_N, seed))
            self._frames[fragment] = base, frame
        return frame

    async def _send_ahead(self, fragment: int, base: str, anchor_N: Tensor) -> None:
        """Send a new anchor to the next host, if this worker is to be a guest. If that fails it goes later."""
        host = self._context.company.group(fragment)[0]
        if host == self._context.company.me:
            return
        anchor = Anchor(fragment, base, await self._frame(fragment, base, anchor_N))
        request = await self._context.clock.run_aside(lambda: to_wire(anchor))
        timeout_s = self._context.timing.call_timeout_s(len(request))
        with contextlib.suppress(TransportError):
            await self._context.transport.call(host, AHEAD, request, timeout_s=timeout_s, max_reply_bytes=0)
            self._sent_ahead[fragment] = base, host

    def _share_of(self, reply: Reply, fragment: int) -> float:
        """How much of the values of a swap was on its way from the host when that had gone on."""
        later = len(reply.mean) + len(reply.pull)
        return later / (later + framed_nbytes(self._context.wire.codec, self._context.wire.numels[fragment]))

    def _reply_limit(self, fragment: int) -> int:
        """The longest answer of a host."""
        wire, options = self._context.wire, self._context.options
        frames = sum(framed_nbytes(codec, wire.numels[fragment]) for codec in (wire.mean_codec, options.pull_codec))
        return frames + 256 * (options.group_size + MAX_VISITORS) + MAX_SMALL_BYTES
