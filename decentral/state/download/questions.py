"""What a download asks of a donor: its head, and pieces. Checks what can be checked of one answer alone."""

from dataclasses import dataclass

from decentral.errors import FrameError
from decentral.ports.transport import Transport
from decentral.state.download.pieces import HEAD, PIECE, Ask, Cut, Head
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId


class OtherModelError(FrameError):
    """A donor trains another model."""


@dataclass(frozen=True, slots=True)
class Questions:
    """How donors are asked."""

    transport: Transport
    layout: str
    """Signature of the cut of this worker's model."""
    cut: Cut
    timing: Timing

    async def head(self, donor: PeerId) -> Head:
        """What a donor has.

        Raises:
            TransportError: it cannot be had.
            OtherModelError: it is of another model.
            FrameError: it is no head of this one.
        """
        timeout_s = self.timing.call_timeout_s(Head.max_bytes)
        reply = await self.transport.call(donor, HEAD, b"", timeout_s=timeout_s, max_reply_bytes=Head.max_bytes)
        head = from_wire(Head, reply)
        if head.layout != self.layout:
            raise OtherModelError(f"it trains another model (layout {head.layout[:16]}, ours is {self.layout})")
        if not self.cut.suits(head):
            raise FrameError("head with a wrong number of fragments or pieces")
        return head

    async def piece(self, donor: PeerId, digest: str, index: int, *, in_flight: int) -> bytes:
        """A piece of the fragment of that digest; empty if the donor does not have it.

        Args:
            donor: whom to ask.
            digest: of the fragment.
            index: of the piece.
            in_flight: pieces that share this worker's line, this one among them.

        Raises:
            TransportError: it cannot be had.
        """
        size = self.cut.piece_bytes
        timeout_s = self.timing.call_timeout_s(size * in_flight)
        request = to_wire(Ask(digest, index))
        return await self.transport.call(donor, PIECE, request, timeout_s=timeout_s, max_reply_bytes=size)
