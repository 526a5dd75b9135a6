"""Calls between peers, each over a libp2p stream of its own, a long one over several. Implements ``Transport``.

What is definite: a request counts as delivered once its last byte is with our daemon. Whatever breaks before that is
``PeerUnreachable`` (a request that arrives incomplete reaches no handler), whatever breaks after it ``CallTimeout``,
at once if the connection is known to be lost.

Whoever is not admitted is turned away before a byte of its request is read, and is not called (``admission``). This
module knows nothing of what the bytes mean.
"""

import asyncio
import contextlib
import math
import random
import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from decentral.adapters.admission import ADMISSION, Admission, refusal_in
from decentral.adapters.budget import Account, Accounts, Budget
from decentral.adapters.bundle import MAX_STREAMS, STREAM_BYTES, Bundles, Ends, part_sizes
from decentral.adapters.daemon import Daemon, DaemonError, DaemonGone, StreamHandler
from decentral.adapters.gate import Gate
from decentral.adapters.policy import MAX_POLICY_BYTES, SignedPolicy
from decentral.adapters.wire import KEY_BYTES, MAX_REFUSAL_BYTES, Meter, RequestHead, Status, cut, reply_head, together
from decentral.errors import (
    CallRefused,
    CallTimeout,
    FrameError,
    NotAdmitted,
    NotAdmittedBy,
    PeerUnreachable,
    TransportError,
)
from decentral.ports.transport import CALLS_PER_S, Handler, Traffic
from decentral.types import PeerId

T = TypeVar("T")

PROTOCOL = "/decentral/call/2"
#: The method that takes the swarm's policy.
POLICY = "policy"
#: A new policy is told to so many of those whom we have called last; each of them does the same.
_NUM_TOLD = 16
_MAX_CALLED = 256
_TELL_TIMEOUT_S = 5.0
#: Peers whose bytes are told one by one.
_NUM_BUSIEST = 32
#: Streams served at a time over all methods, and of one peer; libp2p's own limits are far above.
_MAX_STREAMS, _MAX_STREAMS_OF_ONE = 1024, 128
#: Further streams of long calls that are open to one peer at a time.
_MAX_FURTHER = 32
#: Of so many places of a method one is for others than the peer that has all the rest.
_PLACES_A_RESERVE = 4
_HEAD_TIMEOUT_S = 10.0
#: A peer that is slower than this over a whole message is cut off, or it could hold a slot for ever.
_MIN_BYTES_PER_S = 16_384
_GRACE_S = 30.0
#: How long a refused caller may take to notice before the stream is cut under it.
_LINGER_S = 5.0
#: Of what is passed on for others, read at a time.
_PASSED_BYTES = 1 << 16


@dataclass(slots=True)
class _Method:
    handler: Handler
    max_request_bytes: int
    max_concurrent: int
    budget: Budget | None
    """Of its replies, within that of everything."""
    calls_per_s: float
    """So many short ones may one peer make."""
    active: Counter[PeerId] = field(default_factory=Counter)
    """Handlers at work, by whom they are for."""

    def objection(self, name: str, sender: PeerId, size: int) -> str:
        """Why a request of that size is refused, before it is read; empty if it is not."""
        if size > self.max_request_bytes:
            return f"{name} takes {self.max_request_bytes} bytes, the request has {size}"
        num_active = self.active.total()
        if num_active >= self.max_concurrent:
            return f"busy: {num_active} calls of {name} are at work"
        if self.active[sender] >= self.max_concurrent - self.max_concurrent // _PLACES_A_RESERVE:
            return f"busy: {self.active[sender]} calls of {name} are at work for you"
        return ""

    @contextlib.contextmanager
    def slot(self, sender: PeerId) -> Iterator[None]:
        """One of the ``max_concurrent`` places."""
        self.active[sender] += 1
        try:
            yield
        finally:
            self.active[sender] -= 1
            if not self.active[sender]:
                del self.active[sender]


class HivemindTransport:
    """Calls other peers and serves their calls through one libp2p daemon.

    Args:
        daemon: started, and stopped by its owner after ``close``.
        peer_id: the daemon's identity.
        max_upload_bytes_per_s: of all calls and replies together, as the link carries them (``adapters.budget``);
            ``None`` for no limit.
        gate: who is let in; by default anybody.
    """

    def __init__(
        self,
        daemon: Daemon,
        peer_id: PeerId,
        max_upload_bytes_per_s: float | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.gate = gate if gate is not None else Gate(peer_id)
        self.admission = Admission(peer_id, self.gate, self.stream, PROTOCOL, self._spawn)
        self._called: OrderedDict[PeerId, None] = OrderedDict()
        """Those whose reply we have had, the last one last."""
        self._daemon = daemon
        self._peer_id = peer_id
        self._methods: dict[str, _Method] = {}
        self._max_upload_bytes_per_s = math.inf if max_upload_bytes_per_s is None else max_upload_bytes_per_s
        self._meter = Meter(Budget(self._max_upload_bytes_per_s))
        self._bundles = Bundles()
        self._further: Counter[PeerId] = Counter()
        """Streams open to a peer beside the first ones of calls."""
        self._reply_bytes: dict[str, int] = {}
        """How long the last reply of a method was: the next one is expected to be alike."""
        self._accounts = Accounts()
        self._tasks: set[asyncio.Task[Any]] = set()  # Handlers at work and streams being served.
        self._writers: set[asyncio.StreamWriter] = set()  # Calls in flight.
        self._listening = False
        self._closed = False
        if self.gate.is_private:
            self._methods[POLICY] = _Method(self._on_policy, MAX_POLICY_BYTES, 8, None, CALLS_PER_S)
            self.gate.on_policy.append(self._spread)

    @property
    def peer_id(self) -> PeerId:
        """This peer's own identity."""
        return self._peer_id

    def traffic(self) -> Traffic:
        """Bytes of requests and replies with our framing (``wire``); what a link carries is 4 % more."""
        return Traffic(self._meter.sent_bytes, self._meter.received_bytes)

    def by_peer(self) -> Mapping[PeerId, Traffic]:
        """See ``ports.transport.Transport.by_peer``; bodies alone."""
        return {peer: Traffic(sent, received) for peer, sent, received in self._accounts.busiest(_NUM_BUSIEST)}

    async def call(self, peer: PeerId, method: str, request: bytes, *, timeout_s: float, max_reply_bytes: int) -> bytes:
        """See ``ports.transport.Transport.call``."""
        if self._closed:
            raise PeerUnreachable("this transport is closed")
        if peer == self._peer_id:
            reply = await self._call_self(method, request, timeout_s)
            if len(reply) > max_reply_bytes:
                raise CallRefused(_oversized(len(reply), max_reply_bytes))
            return reply
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._call(peer, call := _Call(self._meter, peer, method, request, max_reply_bytes))
                except _TurnedAway as err:
                    if not self.gate.is_private:
                        raise NotAdmitted(err.by) from None
                # It was restarted and knows nobody, or has heard that we are put out: it has to prove which.
                self.gate.forget(peer)
                return await self._call(peer, call := _Call(self._meter, peer, method, request, max_reply_bytes))
        except _TurnedAway:
            raise NotAdmitted(NotAdmittedBy.NO_PROOF) from None
        except TimeoutError:
            raise call.broken(f"no reply within {timeout_s:.3g} s") from None
        except (OSError, asyncio.IncompleteReadError) as err:
            raise call.broken("connection lost") from err

    async def _call(self, peer: PeerId, call: "_Call") -> bytes:
        await self.admission.introduce(peer)
        expected = max(call.size, self._reply_bytes.get(call.method, 0))
        with self._further_streams(peer, expected) as further:
            async with contextlib.AsyncExitStack() as stack:
                opening = [stack.enter_async_context(self.stream(peer, PROTOCOL)) for _ in range(1 + further)]
                reply = await call.exchange(await together(opening))
        self._reply_bytes[call.method] = len(reply)
        self._accounts.of(peer).moved(sent_bytes=call.size, received_bytes=len(reply))
        self._called[peer] = None
        self._called.move_to_end(peer)
        if len(self._called) > _MAX_CALLED:
            self._called.popitem(last=False)
        return reply

    @contextlib.contextmanager
    def _further_streams(self, peer: PeerId, size: int) -> Iterator[int]:
        """How many streams a call that moves so many bytes has beside the first; they are taken while it lasts."""
        number = max(0, min((size - 1) // STREAM_BYTES, MAX_STREAMS - 1, _MAX_FURTHER - self._further[peer]))
        self._further[peer] += number
        try:
            yield number
        finally:
            self._further[peer] -= number
            if not self._further[peer]:
                del self._further[peer]

    def is_barred(self, peer: PeerId) -> bool:
        """See ``ports.transport.Transport.is_barred``."""
        return self.gate.is_barred(peer)

    def bar(self, peer: PeerId) -> None:
        """See ``ports.transport.Transport.bar``."""
        self.gate.barred.add(peer)

    def banned(self) -> tuple[PeerId, ...]:
        """See ``ports.transport.Transport.banned``."""
        by_founder = () if self.gate.policy is None else self.gate.policy.policy.banned
        return (*by_founder, *sorted(self.gate.barred.difference(by_founder)))

    @contextlib.asynccontextmanager
    async def stream(self, peer: PeerId, protocol: str) -> AsyncIterator[Ends]:
        """A stream to ``peer`` for the length of a call; the peer sees it end at once if the call is given up."""
        try:
            reader, writer = await self._daemon.open_stream(peer, protocol)
        except DaemonGone as err:
            raise PeerUnreachable(str(err)) from err
        except DaemonError as err:
            if "protocols not supported" in str(err):
                raise CallRefused(f"{peer} does not serve {protocol}") from err
            raise PeerUnreachable(f"cannot reach {peer}: {err}") from err
        self._writers.add(writer)
        try:
            yield reader, writer
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _call_self(self, name: str, request: bytes, timeout_s: float) -> bytes:
        method = self._methods.get(name)
        objection = method.objection(name, self._peer_id, len(request)) if method else f"unknown method {name!r:.100}"
        if method is None or objection:
            raise CallRefused(objection)
        slot = contextlib.ExitStack()
        slot.enter_context(method.slot(self._peer_id))
        # The handler goes on after a timeout, as it would at another peer.
        work = self._spawn(self._handle(method, self._peer_id, request))
        work.add_done_callback(lambda _: slot.close())
        done, _ = await asyncio.wait({work}, timeout=timeout_s)
        if not done or work.cancelled():
            raise CallTimeout(f"no reply from myself to {name} within {timeout_s:.3g} s")
        status, reply, _ = work.result()
        if status is Status.REFUSED:
            raise CallRefused(reply.decode(errors="replace"))
        return reply

    async def serve(
        self,
        method: str,
        handler: Handler,
        *,
        max_request_bytes: int,
        max_concurrent: int = 64,
        upload_share: float = 1.0,
        calls_per_s: float = CALLS_PER_S,
    ) -> None:
        """See ``ports.transport.Transport.serve``."""
        budget = Budget(upload_share * self._max_upload_bytes_per_s) if upload_share < 1 else None
        self._methods[method] = _Method(handler, max_request_bytes, max_concurrent, budget, calls_per_s)
        await self.listen()

    async def listen(self, others: Mapping[str, StreamHandler] | None = None) -> None:
        """Answer others, with whatever is served. Idempotent.

        Args:
            others: handlers of further protocols, at the first call.
        """
        if not self._listening:
            self._listening = True
            own = {PROTOCOL: self._accept, ADMISSION: self.admission.receive}
            await self._daemon.serve_streams({**own, **(others or {})})

    async def splice(self, one: Ends, other: Ends) -> None:
        """Pass on, within the upload limit, what comes from either of two streams to the other, until one ends."""
        ways = {self._spawn(self._pass_on(one[0], other[1])), self._spawn(self._pass_on(other[0], one[1]))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for _, writer in (one, other):
                writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PASSED_BYTES):
                await self._meter.write(writer, b"", piece)

    async def _on_policy(self, sender: PeerId, request: bytes) -> bytes:
        return b"y" if self.gate.adopt(request) else b"n"

    def _spread(self, policy: SignedPolicy) -> None:
        """Tell some of the others of a policy, who tell others."""
        known = list(self._called)
        for peer in random.sample(known, min(_NUM_TOLD, len(known))):
            self._spawn(self._tell(peer, policy.data))

    async def _tell(self, peer: PeerId, policy: bytes) -> None:
        with contextlib.suppress(TransportError):
            await self.call(peer, POLICY, policy, timeout_s=_TELL_TIMEOUT_S, max_reply_bytes=1)

    async def _accept(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one stream. Nothing that a peer does raises from here."""
        if self._closed or len(self._tasks) >= _MAX_STREAMS:
            writer.close()
            return
        if self.gate.objection(sender) is not None:
            await self.admission.turn_away(sender, reader, writer)
            return
        account = self._accounts.of(sender)
        if account.active >= _MAX_STREAMS_OF_ONE:
            writer.close()
            return
        account.active += 1
        task = self._spawn(self._serve_stream(sender, account, reader, writer))
        try:
            await asyncio.wait({task})
        finally:
            account.active -= 1
            writer.close()

    async def _serve_stream(
        self, sender: PeerId, account: Account, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # A caller that breaks off, stalls or sends nonsense is its own business.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            # Who asks for too much waits: an honest one in a hurry is late by that, and nobody else is. If it would be
            # for too long this comes to nothing, but not at once: the next stream would be there at once.
            wait_s = account.wait_s(self._now())
            await asyncio.sleep(min(wait_s, _HEAD_TIMEOUT_S))
            if wait_s > _HEAD_TIMEOUT_S:
                return
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await self._meter.read_request_head(reader)
            if not 0 < head.num_streams <= MAX_STREAMS:
                return
            if not head.method:
                await self._bundles.lend(sender, head.key, head.num_streams, (reader, writer))
                return
            name, size = head.method, head.size
            method = self._methods.get(name)
            objection = method.objection(name, sender, size) if method else f"unknown method {name!r:.100}"
            if method is None or objection:
                account.charge(self._now(), 0, calls_per_s=CALLS_PER_S, bad=False)
                if head.key:
                    self._bundles.end(sender, head.key)
                await self._refuse_unread(objection, reader, writer)
                return
            with contextlib.ExitStack() as slot:
                slot.enter_context(method.slot(sender))  # Bodies on their way are bounded with the handlers.
                async with self._bundles.gathered(sender, head.key, head.num_streams) as further:
                    await self._answer(sender, account, method, size, [(reader, writer), *further])
                    slot.close()
                    await self._linger(reader, _GRACE_S)

    async def _answer(
        self, sender: PeerId, account: Account, method: _Method, size: int, streams: Sequence[Ends]
    ) -> None:
        """Read a request of that size, and write what the handler says of it."""
        async with asyncio.timeout(_GRACE_S + size / _MIN_BYTES_PER_S):
            request = await self._meter.read_parts([reader for reader, _ in streams], part_sizes(size, len(streams)))
        status, reply, bad = await self._handle(method, sender, request)
        account.charge(self._now(), len(request) + len(reply), calls_per_s=method.calls_per_s, bad=bad)
        async with asyncio.timeout(_GRACE_S + len(reply) / _MIN_BYTES_PER_S):
            await self._reply(streams, status, reply, method.budget)
        account.moved(sent_bytes=len(reply), received_bytes=len(request))

    async def _reply(self, streams: Sequence[Ends], status: Status, reply: bytes, budget: Budget | None) -> None:
        parts = cut(reply, part_sizes(len(reply), len(streams)))
        heads = [reply_head(status, len(reply)), *[b""] * (len(streams) - 1)]
        writes = [
            self._meter.write(writer, head, part, budget=budget)
            for (_, writer), head, part in zip(streams, heads, parts, strict=True)
            if head or part
        ]
        await together(writes)

    async def _refuse_unread(self, text: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = _cut(text)
        async with asyncio.timeout(_LINGER_S):
            await self._meter.write(writer, reply_head(Status.REFUSED, len(body)), body)
        await self._linger(reader, _LINGER_S)

    async def _linger(self, reader: asyncio.StreamReader, longest_s: float) -> None:
        """Keep the stream open until the caller has what was written and closes it.

        Closing may reset the stream, on unread bytes always and by a race in the daemons else: what has not been read
        by then is lost, and with it a reply in some hundreds or thousands (on links with a latency, none on loopback).
        """
        async with asyncio.timeout(longest_s):
            while await reader.read(1 << 16):
                pass

    async def _handle(self, method: _Method, sender: PeerId, request: bytes) -> tuple[Status, bytes, bool]:
        """What the handler says, or how it failed, and whether the request was none."""
        try:
            return Status.OK, await method.handler(sender, request), False
        except CallRefused as err:
            return Status.REFUSED, _cut(str(err)), False
        except Exception as err:  # A handler's bug is reported to its caller and harms nobody else.
            return Status.REFUSED, _cut(f"{type(err).__name__}: {err}"), isinstance(err, FrameError)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Stop serving, fail what is in flight, free everything. Idempotent."""
        self._closed = True
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))


class _TurnedAway(Exception):
    """The peer does not know us as one whom it has admitted; it has read nothing."""

    def __init__(self, by: NotAdmittedBy) -> None:
        self.by = by


class _Call:
    """One call on its way: sends and listens at the same time, because a refusal may come before the last byte."""

    def __init__(self, meter: Meter, peer: PeerId, method: str, request: bytes, max_reply_bytes: int) -> None:
        self._meter = meter
        self._peer = peer
        self.method = method
        self._request = request
        self._max_reply_bytes = max_reply_bytes
        self._to_deliver = 1

    @property
    def size(self) -> int:
        """Bytes of the request."""
        return len(self._request)

    async def exchange(self, streams: Sequence[Ends]) -> bytes:
        """Send the request over these streams, and have the reply over the same."""
        writers = [writer for _, writer in streams]
        sending = asyncio.create_task(self._send(writers))
        try:
            status, size = await self._meter.read_reply_head(streams[0][0])
            limit = self._max_reply_bytes if status == Status.OK else MAX_REFUSAL_BYTES
            if size > limit:
                raise CallRefused(_oversized(size, limit))
            reply = await self._meter.read_parts([reader for reader, _ in streams], part_sizes(size, len(streams)))
        finally:
            sending.cancel()
            await asyncio.wait({sending})
        if status == Status.STRANGER:
            raise _TurnedAway(refusal_in(reply.decode(errors="replace")))
        if status != Status.OK:
            raise CallRefused(reply.decode(errors="replace"))
        return reply

    async def _send(self, writers: Sequence[asyncio.StreamWriter]) -> None:
        size, self._to_deliver = len(self._request), len(writers)
        key = secrets.token_bytes(KEY_BYTES) if len(writers) > 1 else b""
        heads = [RequestHead(self.method, size, len(writers), key)]
        heads += [RequestHead("", 0, number, key) for number in range(1, len(writers))]
        parts = zip(writers, heads, cut(self._request, part_sizes(size, len(writers))), strict=True)
        # If a stream breaks, the reading side says so, or has the refusal that came before.
        with contextlib.suppress(OSError):
            await together(
                [self._meter.write(writer, head.packed(), part, self._deliver) for writer, head, part in parts]
            )

    def _deliver(self) -> None:
        self._to_deliver -= 1  # From the moment the last piece is handed over, nobody can tell.

    def broken(self, what: str) -> PeerUnreachable | CallTimeout:
        """The error for a call that ended without a reply."""
        if self._to_deliver <= 0:
            return CallTimeout(f"{what}: {self.method} at {self._peer} may have been carried out")
        return PeerUnreachable(f"{what}: {self.method} did not reach {self._peer}")


def _cut(text: str) -> bytes:
    return text.encode()[:MAX_REFUSAL_BYTES]


def _oversized(size: int, limit: int) -> str:
    return f"the reply has {size} bytes, allowed are {limit}"
