"""A transport that several swarms of one process share: every method has the name of its swarm before it."""

from collections.abc import Mapping

from decentral.errors import CallRefused
from decentral.ports.transport import CALLS_PER_S, Handler, Traffic, Transport
from decentral.types import PeerId


class Scoped:
    """Implements ``ports.transport.Transport`` on another one, which it does not close.

    Args:
        transport: the one below.
        scope: of the swarm, such as ``2`` for a stage.
    """

    def __init__(self, transport: Transport, scope: str) -> None:
        self._transport = transport
        self._scope = scope
        self._open = True

    @property
    def peer_id(self) -> PeerId:
        """This peer's own identity, the same in all scopes."""
        return self._transport.peer_id

    async def call(self, peer: PeerId, method: str, request: bytes, *, timeout_s: float, max_reply_bytes: int) -> bytes:
        """See ``Transport.call``; reaches the same scope of the other peer."""
        return await self._transport.call(
            peer, f"{self._scope}/{method}", request, timeout_s=timeout_s, max_reply_bytes=max_reply_bytes
        )

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
        """See ``Transport.serve``."""

        async def answer(sender: PeerId, request: bytes) -> bytes:
            if not self._open:
                raise CallRefused(f"{self._scope} is not here any more")
            return await handler(sender, request)

        await self._transport.serve(
            f"{self._scope}/{method}",
            answer,
            max_request_bytes=max_request_bytes,
            max_concurrent=max_concurrent,
            upload_share=upload_share,
            calls_per_s=calls_per_s,
        )

    def is_barred(self, peer: PeerId) -> bool:
        """See ``Transport.is_barred``."""
        return self._transport.is_barred(peer)

    def bar(self, peer: PeerId) -> None:
        """See ``Transport.bar``; in all scopes."""
        self._transport.bar(peer)

    def banned(self) -> tuple[PeerId, ...]:
        """See ``Transport.banned``."""
        return self._transport.banned()

    def traffic(self) -> Traffic:
        """That of all scopes together."""
        return self._transport.traffic()

    def by_peer(self) -> Mapping[PeerId, Traffic]:
        """That of all scopes together."""
        return self._transport.by_peer()

    async def close(self) -> None:
        """Refuse all calls from now on. Idempotent."""
        self._open = False
