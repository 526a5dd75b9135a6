"""How a micro-batch gets from hop to hop: encoded, sent with a deadline, decoded and checked. Decides nothing."""

import asyncio
import math
from collections import defaultdict
from dataclasses import dataclass

from msgspec.structs import replace
from torch import Tensor

from decentral.codecs.codec import Codec
from decentral.codecs.frame import framed_nbytes, pack, unpack
from decentral.errors import CallRefused, CallTimeout, FrameError, PeerUnreachable
from decentral.pipeline import packets
from decentral.pipeline.packets import MAX_HEADER_BYTES, Failed, Packet, shortened
from decentral.pipeline.pieces import HEADER_BYTES, PIECE_BYTES, Pieces, cut
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.turns import Turns
from decentral.ports.clock import Clock
from decentral.ports.transport import Handler, Transport
from decentral.swarm.message import to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId

FORWARD = "forward"
BACKWARD = "backward"
FAILED = "failed"
COMMIT = "commit"
SETTLE = "settle"
#: Packets under way to one peer come to about so much: a little more than 100 Mbit/s carry in a round trip of 50 ms,
#: which is how long it takes until an arrival is known.
_UNDER_WAY_BYTES = 1_000_000
#: Calls of one method that are served at a time, each with its values in memory.
_MAX_CONCURRENT = 64
#: A stage is called some times for every micro-batch.
_CALLS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A packet that did not arrive, or of which that is not known."""

    peer: PeerId
    reason: str
    gone: bool
    """Whether the peer could not be reached at all."""


class Courier:
    """Sends and receives for all stages of one process.

    Args:
        transport: to the peers.
        clock: packing is done on its second thread.
        codec: of the values.
        shape: of a micro-batch's activations.
        cut: the stages there are.
        timing: deadlines of calls.
        marks_bytes: that a micro-batch has beside its activations.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        codec: Codec,
        shape: tuple[int, ...],
        cut: CutInForce,
        timing: Timing,
        marks_bytes: int = 0,
    ) -> None:
        self.sent_bytes = 0
        """Of activations and gradients that went to other peers."""
        self._transport = transport
        self._clock = clock
        self._codec = codec
        self._shape = shape
        self._numel = math.prod(shape)
        self._frame_bytes = framed_nbytes(codec, self._numel)
        self._marks_bytes = marks_bytes
        self._cut = cut
        self._timing = timing
        at_once = max(2, math.ceil(_UNDER_WAY_BYTES / self._frame_bytes))
        self._number = int(clock.monotonic() * 1e6)  # none of those of an earlier life under the same identity
        self._turns: defaultdict[PeerId, Turns] = defaultdict(lambda: Turns(at_once))

    @property
    def peer_id(self) -> PeerId:
        """This peer's own identity."""
        return self._transport.peer_id

    async def serve(self, stage: int, method: str, handler: Handler) -> None:
        """Answer ``method`` of a stage; packets carry values, other messages are small."""
        size = packets.MAX_SMALL_BYTES
        if method in (FORWARD, BACKWARD):
            handler, size = self._joined(handler), HEADER_BYTES + PIECE_BYTES
        await self._transport.serve(
            f"{stage}/{method}",
            handler,
            max_request_bytes=size,
            max_concurrent=_MAX_CONCURRENT,
            calls_per_s=_CALLS_PER_S,
        )

    def _joined(self, handler: Handler) -> Handler:
        """Called with whole packets where their pieces come; what it says of a packet is said to the last of them."""
        pieces = Pieces(MAX_HEADER_BYTES + self._frame_bytes + self._marks_bytes)

        async def take(sender: PeerId, request: bytes) -> bytes:
            try:
                whole = pieces.add(sender, request)
            except FrameError as err:
                raise CallRefused(str(err)) from err
            return b"" if whole is None else await handler(sender, whole)

        return take

    async def read(self, sender: PeerId, request: bytes, stage: int, *, backward: bool) -> tuple[Packet, Tensor]:
        """What a packet to ``stage`` holds: its header, and its values in the shape of activations.

        Raises:
            FrameError: it is malformed, not for this hop, or not from the hop before.
        """
        packet = packets.unpack_packet(
            request,
            num_stages=self._cut.num_stages,
            frame_bytes=self._frame_bytes,
            marks_bytes=0 if backward else self._marks_bytes,
        )
        here, before = packet.path[packet.hop], packet.hop + (1 if backward else -1)
        if (here.stage, here.peer) != (stage, self.peer_id):
            raise FrameError(f"packet for stage {here.stage} of {here.peer}")
        if not 0 <= before < len(packet.path) or packet.path[before].peer != sender:
            raise FrameError("packet that does not come from the hop before")
        values_N = await self._clock.run_aside(lambda: unpack(packet.frame, self._codec, self._numel))
        return replace(packet, frame=b""), values_N.view(self._shape)

    async def send(self, packet: Packet, values: Tensor, *, backward: bool) -> Undelivered | None:
        """Send ``values`` to the next hop of ``packet``, which is as it is here; returns what went wrong.

        Raises:
            ValueError: the values are not finite.
        """
        at = packet.hop + (-1 if backward else 1)
        to = packet.path[at]
        frame = await self._clock.run_aside(lambda: pack(self._codec, values.reshape(-1)))
        self._number += 1
        marks = b"" if backward else packet.marks
        pieces = list(cut(to_wire(replace(packet, hop=at, frame=frame, marks=marks)), self._number))
        if to.peer != self.peer_id:
            self.sent_bytes += sum(map(len, pieces))
        method = BACKWARD if backward else FORWARD
        async with self._turns[to.peer].turn(first=backward):
            told = await asyncio.gather(*[self.tell(to.peer, to.stage, method, piece) for piece in pieces])
        return next(filter(None, told), None)

    async def tell(self, peer: PeerId, stage: int, method: str, request: bytes) -> Undelivered | None:
        """A message that wants no answer but that it has arrived."""
        reply = await self.ask(peer, stage, method, request)
        return reply if isinstance(reply, Undelivered) else None

    async def ask(self, peer: PeerId, stage: int, method: str, request: bytes) -> bytes | Undelivered:
        """A message and its answer, which is small."""
        timeout_s = self._timing.call_timeout_s(len(request))
        try:
            return await self._transport.call(
                peer, f"{stage}/{method}", request, timeout_s=timeout_s, max_reply_bytes=packets.MAX_SMALL_BYTES
            )
        except PeerUnreachable as err:
            return Undelivered(peer, str(err), gone=True)
        except (CallTimeout, CallRefused) as err:
            return Undelivered(peer, str(err), gone=False)

    async def report(self, packet: Packet, culprit: PeerId | None, reason: str) -> None:
        """Tell the head of a packet that it goes no further; if the head is gone nobody needs to know."""
        failed = Failed(packet.slot, packet.batch, packet.index, packet.attempt, culprit, shortened(reason))
        await self.tell(packet.head, 0, FAILED, to_wire(failed))
