"""How bytes reach a peer: one request, one reply, both bounded in size and time."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from decentral.types import PeerId

#: So many short calls a second has a peer of a method, if nothing else is said: no honest one has more.
CALLS_PER_S = 150.0
#: Called with the authenticated sender and its request; what it returns is the reply.
Handler = Callable[[PeerId, bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that crossed the transport since it started, requests and replies with their transport framing."""

    sent_bytes: int = 0
    received_bytes: int = 0


class Transport(Protocol):
    """Calls between peers. The sender a handler sees is authenticated; nothing else about a message is trusted."""

    @property
    def peer_id(self) -> PeerId:
        """This peer's own identity."""
        ...

    async def call(self, peer: PeerId, method: str, request: bytes, *, timeout_s: float, max_reply_bytes: int) -> bytes:
        """Send ``request`` to ``method`` of ``peer`` and return its reply.

        A call to oneself is served directly, without the network and without being counted as traffic.

        Raises:
            PeerUnreachable: definitely not delivered. Raised as soon as it is known, often long before the timeout.
            CallTimeout: no complete reply within ``timeout_s`` seconds; the peer may have acted on the request.
            CallRefused: the peer has no such method, is busy, refused the size, or its handler raised;
                or its reply was larger than ``max_reply_bytes`` (it is not read further).
        """
        ...

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
        """Answer ``method`` with ``handler``.

        A request above ``max_request_bytes`` or above ``max_concurrent`` handlers at work is refused before it is
        read; one caller may have to leave a part of these places to others. A handler that raises refuses its caller
        with the text of the error and harms nobody else. Of an upload limit, where one is set, replies take at most
        ``upload_share``. Who makes more than ``calls_per_s`` short calls for longer than some seconds waits.
        """
        ...

    def is_barred(self, peer: PeerId) -> bool:
        """Whether a peer is kept out for good, by the swarm or by this machine: it is neither served nor called."""
        ...

    def bar(self, peer: PeerId) -> None:
        """Keep a peer out from now on: it has been proven to lie."""
        ...

    def banned(self) -> tuple[PeerId, ...]:
        """Whom the founder of a private swarm has put out, as far as is known here, and who was barred."""
        ...

    def traffic(self) -> Traffic:
        """Bytes sent to and received from other peers so far."""
        ...

    def by_peer(self) -> Mapping[PeerId, Traffic]:
        """Of finished calls, with those peers with whom most was exchanged; empty where nobody counts."""
        ...

    async def close(self) -> None:
        """Stop serving, fail what is in flight, free everything. Idempotent."""
        ...
