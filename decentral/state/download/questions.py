"""What a download asks of a donor: its head, and pieces. Checks what can be checked of one answer alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from decentral.errors import CallRefused, FrameError
from decentral.ports.transport import Transport
from decentral.state.download.pieces import HEAD, PIECE, VALUES, Ask, AskValues, Cut, Head, Positions
from decentral.state.snapshot import from_bytes
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.tensors.finite import all_finite
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

    async def values(self, donor: PeerId, head: Head, positions: Sequence[Sequence[int]]) -> list[Tensor]:
        """What a donor holds of what it has named, at positions of each fragment; see ``comparison``.

        Args:
            donor: whom to ask.
            head: what it has said that it has.
            positions: indices into the tensors of each fragment.

        Returns:
            Of the first fragment each tensor's values at its positions, then of the next.

        Raises:
            TransportError: they cannot be had.
            FrameError: they are not so many finite values.
        """
        named = zip(head.fragments, positions, strict=True)
        request = to_wire(AskValues(tuple([Positions(fragment.digest, tuple(at)) for fragment, at in named])))
        lengths = [len(at) for at in positions for _ in range(self.cut.num_parts)]
        size = 4 * sum(lengths)
        timeout_s = self.timing.call_timeout_s(len(request) + size)
        reply = await self.transport.call(donor, VALUES, request, timeout_s=timeout_s, max_reply_bytes=size)
        if not reply:
            raise CallRefused("it does not have this state any more")
        if len(reply) != size:
            raise FrameError(f"{len(reply)} bytes of values, expected {size}")
        said = from_bytes(bytearray(reply))
        if not all_finite(said.numpy()):
            raise FrameError("its values are not finite")
        return [said[stop - length : stop] for length, stop in zip(lengths, accumulate(lengths), strict=True)]
