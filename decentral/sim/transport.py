"""Calls over the memory network: the port ``Transport`` without sockets, with the failures of real ones.

A call is two messages, and one task for the handler. Connections cost nothing to set up; a dial to a peer that is
not there costs a round trip.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass

from decentral.errors import CallRefused, CallTimeout, PeerUnreachable, TransportError
from decentral.ports.transport import CALLS_PER_S, Handler, Traffic
from decentral.sim.faults import Kind
from decentral.sim.loop import virtual_loop
from decentral.sim.network import Endpoint, Line, Network
from decentral.types import PeerId

_MAX_REASON = 200


@dataclass(slots=True)
class _Method:
    """A served method and how many of its handlers are at work."""

    handler: Handler
    max_request_bytes: int
    max_concurrent: int
    num_active: int = 0


class MemoryTransport(Endpoint):
    """One peer's calls.

    Args:
        network: the network that it joins.
        peer_id: must be free in the network.
        line: bandwidth; unlimited by default.

    Raises:
        ValueError: the id is taken.
    """

    def __init__(self, network: Network, peer_id: PeerId, line: Line | None = None) -> None:
        super().__init__(peer_id, line or Line())
        self._network = network
        self._loop = virtual_loop()
        self._methods: dict[str, _Method] = {}
        self._barred: set[PeerId] = set()
        self.is_barred = self._barred.__contains__  # as cheap as can be: it is asked of everybody at every beat
        """Whether a peer was barred here: there are no strangers in a simulation."""
        self._outgoing: dict[_Call, None] = {}
        self._serving: dict[_Call, asyncio.Task[None]] = {}
        network.join(self)

    async def call(self, peer: PeerId, method: str, request: bytes, *, timeout_s: float, max_reply_bytes: int) -> bytes:
        """See ``ports.transport.Transport.call``."""
        if self.gone_s < math.inf:
            raise PeerUnreachable("this transport is closed")
        if peer == self.peer_id:
            return await self._call_self(method, request, timeout_s, max_reply_bytes)
        if peer in self._barred:
            raise CallRefused(f"{peer} is barred")
        call = _Call(self, peer, method, max_reply_bytes, self._loop.create_future())
        self._outgoing[call] = None
        now_s = self._loop.now_s
        timer = self._loop.call_at(now_s + timeout_s, call.expire, timeout_s)
        callee = self._network.find(peer)
        try:
            if callee is None:
                self._network.note("nobody", self.peer_id, peer, method)
                dialled_s = now_s + 2 * self._network.latency_s(self.peer_id, peer)
                self._loop.call_at(dialled_s, call.fail, PeerUnreachable, "nobody there")
            elif self._network.blocks(self.peer_id, peer):
                self._network.note("cut", self.peer_id, peer, method)
                given_up_s = now_s + self._network.conditions.give_up_s
                self._loop.call_at(given_up_s, call.fail, PeerUnreachable, "no way through")
            else:
                assert isinstance(callee, MemoryTransport)
                callee.in_flight[call] = None
                num_bytes = self._network.weight(method, len(request))
                self._network.send(self, callee, method, num_bytes, callee._receive, call, request)
            return await call.future
        finally:
            timer.cancel()
            del self._outgoing[call]
            if callee is not None:
                callee.in_flight.pop(call, None)

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
        """See ``ports.transport.Transport.serve``; a second handler of the same name takes the first one's place.

        Lines have a bandwidth, but no limit is set: ``upload_share`` is of nothing. Nobody floods: ``calls_per_s`` is
        never reached.
        """
        self._methods[method] = _Method(handler, max_request_bytes, max_concurrent)

    def bar(self, peer: PeerId) -> None:
        """See ``ports.transport.Transport.bar``."""
        self._barred.add(peer)

    def banned(self) -> tuple[PeerId, ...]:
        """Who was barred."""
        return tuple(sorted(self._barred))

    def traffic(self) -> Traffic:
        """Payloads and ``FRAME_BYTES`` for each message; of received ones, only what arrived."""
        return Traffic(self.sent_bytes, self.received_bytes)

    def by_peer(self) -> Mapping[PeerId, Traffic]:
        """Nobody looks at a simulation while it runs: its trace has every message."""
        return {}

    async def close(self) -> None:
        """Leave the network. Handlers at work are cancelled, calls in flight fail."""
        self._network.leave(self)
        for call in tuple(self._outgoing):
            call.fail(CallTimeout, "this transport was closed")
        handlers = [task for task in self._serving.values() if task is not asyncio.current_task()]
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    async def _call_self(self, name: str, request: bytes, timeout_s: float, max_reply_bytes: int) -> bytes:
        """Serve one's own call without the network."""
        method = self._admit(name, len(request))
        try:
            async with asyncio.timeout(timeout_s):
                reply = await _perform(method, self.peer_id, request)
        except TimeoutError as err:
            raise CallTimeout(f"{name} of this peer: no reply in {timeout_s:g} s") from err
        if len(reply) > max_reply_bytes:
            raise CallRefused(f"{name} of this peer: reply of {len(reply)} bytes, allowed are {max_reply_bytes}")
        return reply

    def _admit(self, name: str, num_bytes: int) -> _Method:
        """Take a place at a method, which ``_perform`` gives back; or raise CallRefused."""
        method = self._methods.get(name)
        if method is None:
            raise CallRefused(f"{name!r} is not served")
        if num_bytes > method.max_request_bytes:
            raise CallRefused(f"at most {method.max_request_bytes} bytes are taken, the request has {num_bytes}")
        if method.num_active >= method.max_concurrent:
            raise CallRefused(f"busy with {method.num_active} calls")
        method.num_active += 1
        return method

    def _receive(self, call: "_Call", request: bytes) -> None:
        """A request has arrived."""
        call.delivered = True
        if self.peer_id in self._network.silent:
            self._network.felt[Kind.HALF_OPEN] += 1
            return
        try:
            if call.caller.peer_id in self._barred:
                raise CallRefused("barred")
            method = self._admit(call.method, len(request))
        except CallRefused as refusal:
            self._refuse(call, refusal)
            return
        handling = self._handle(call, method, request)
        self._serving[call] = self._loop.create_task(handling, name=f"{self.peer_id} {call.method}")

    async def _handle(self, call: "_Call", method: _Method, request: bytes) -> None:
        """Run a handler and send what it says."""
        try:
            reply = await _perform(method, call.caller.peer_id, request)
        except CallRefused as refusal:
            self._refuse(call, refusal)
        else:
            num_bytes = self._network.weight(call.method, len(reply))
            self._network.send(self, call.caller, "reply", num_bytes, call.reply, reply)
        finally:
            self._serving.pop(call, None)

    def _refuse(self, call: "_Call", refusal: CallRefused) -> None:
        """Send a refusal: a message without payload."""
        self._network.send(self, call.caller, "refusal", 0, call.fail, CallRefused, str(refusal))


class _Call:
    """One call in flight, seen from the caller."""

    __slots__ = ("caller", "delivered", "future", "max_reply_bytes", "method", "peer")

    def __init__(
        self, caller: MemoryTransport, peer: PeerId, method: str, max_reply_bytes: int, future: asyncio.Future[bytes]
    ) -> None:
        self.caller = caller
        self.peer = peer
        self.method = method
        self.max_reply_bytes = max_reply_bytes
        self.future = future
        self.delivered = False

    def reply(self, reply: bytes) -> None:
        """The reply has arrived."""
        if len(reply) > self.max_reply_bytes:
            self.fail(CallRefused, f"reply of {len(reply)} bytes, allowed are {self.max_reply_bytes}")
        elif not self.future.done():
            self.future.set_result(reply)

    def fail(self, kind: type[TransportError], reason: str) -> None:
        """It is over without a reply; nothing happens if it is over already."""
        if not self.future.done():
            self.future.set_exception(kind(f"{self.method} of {self.peer}: {reason}"))

    def expire(self, timeout_s: float) -> None:
        """There was no reply in so long."""
        self.fail(CallTimeout, f"no reply in {timeout_s:g} s")

    def broken(self) -> None:
        """The peer went away: its machine resets the connection, which takes the way back to be noticed."""
        kind = CallTimeout if self.delivered else PeerUnreachable
        network, caller = self.caller._network, self.caller
        noticed_s = network._loop.time() + network.latency_s(self.peer, caller.peer_id)
        network._loop.call_at(noticed_s, self.fail, kind, "the connection broke", context=caller.context)


async def _perform(method: _Method, sender: PeerId, request: bytes) -> bytes:
    """Run a handler in the place that it was admitted to.

    Raises:
        CallRefused: with the text of whatever the handler raised.
    """
    try:
        return await method.handler(sender, request)
    except Exception as err:
        raise CallRefused(f"{type(err).__name__}: {err}"[:_MAX_REASON]) from err
    finally:
        method.num_active -= 1
