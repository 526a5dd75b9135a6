"""How fast the line to another peer is: a few megabytes that are thrown away, for one caller at a time."""

import asyncio
from dataclasses import dataclass

from decentral.errors import TransportError
from decentral.ports.transport import Transport
from decentral.types import PeerId

SPEED = "speed"
_MAX_BYTES = 4 << 20
_LENGTH_BYTES = 4
#: Each is moved if the one before it was there in less than this.
_SIZES, _ENOUGH_S = (64 << 10, 512 << 10, _MAX_BYTES), 0.5
_NUM_ECHOES = 5
_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Of the line between this peer and another one, for one transfer alone."""

    peer: PeerId
    round_trip_s: float
    up_bytes_per_s: float
    down_bytes_per_s: float


async def serve_speed(transport: Transport) -> None:
    """Take what is sent, and send as many bytes as are asked for."""

    async def answer(sender: PeerId, request: bytes) -> bytes:
        return bytes(min(int.from_bytes(request[:_LENGTH_BYTES]), _MAX_BYTES))

    await transport.serve(SPEED, answer, max_request_bytes=_MAX_BYTES, max_concurrent=1, upload_share=0.5)


async def measure_speed(transport: Transport, peer: PeerId) -> Speed | None:
    """Measure the line to ``peer``; ``None`` if it is not there, busy with another one, or of an older release.

    Each way the largest of the transfers counts, less a round trip. Takes a few seconds; no more than a minute.
    """

    async def seconds(sent_bytes: int, wanted_bytes: int) -> float:
        started = asyncio.get_running_loop().time()
        request = wanted_bytes.to_bytes(_LENGTH_BYTES) + bytes(max(0, sent_bytes - _LENGTH_BYTES))
        await transport.call(peer, SPEED, request, timeout_s=_TIMEOUT_S, max_reply_bytes=_MAX_BYTES)
        return asyncio.get_running_loop().time() - started

    async def rate(*, up: bool) -> float:
        found = 0.0
        for size in _SIZES:
            took_s = await seconds(size, 0) if up else await seconds(0, size)
            found = size / max(took_s - round_trip_s, 1e-6)
            if took_s >= _ENOUGH_S:
                break
        return found

    try:
        round_trip_s = min([await seconds(0, 0) for _ in range(_NUM_ECHOES)])
        return Speed(peer, round_trip_s, await rate(up=True), await rate(up=False))
    except TransportError:
        return None
