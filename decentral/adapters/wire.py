"""How a call looks on a stream: a request with its method, a reply with its status, both length-prefixed.

Request: one byte with the length of the method's name, the name (ASCII), eight bytes with the length of the body
(big endian), the body. Reply: one status byte, eight bytes with the length, the body (for a refusal: its text).
Lengths are checked by the reader before it reads what they announce.
"""

import asyncio
from collections.abc import Sequence
from enum import IntEnum

_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 18
#: Text of a refusal; what is longer is cut.
MAX_REFUSAL_BYTES = 1000


class Status(IntEnum):
    """How a call ended."""

    OK = 0
    REFUSED = 1


def request_head(method: str, size: int) -> bytes:
    """What goes in front of a request's body."""
    name = method.encode("ascii")
    return bytes([len(name)]) + name + size.to_bytes(_LENGTH_BYTES, "big")


def reply_head(status: Status, size: int) -> bytes:
    """What goes in front of a reply's body."""
    return bytes([status]) + size.to_bytes(_LENGTH_BYTES, "big")


def pieces(head: bytes, body: bytes) -> list[memoryview]:
    """A message in pieces of 256 kB at most: the head goes with the first piece, the rest is not copied."""
    rest = memoryview(body)[_CHUNK_BYTES:]
    first = memoryview(head + body[:_CHUNK_BYTES])
    return [first, *(rest[start : start + _CHUNK_BYTES] for start in range(0, len(rest), _CHUNK_BYTES))]


class Meter:
    """Moves bytes both ways at the network's pace and counts them."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0

    async def write(self, writer: asyncio.StreamWriter, pieces: Sequence[memoryview]) -> None:
        """Write ``pieces`` as fast as the daemon takes them; about one of them is in a buffer at any time."""
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            self.sent_bytes += len(piece)

    async def read(self, reader: asyncio.StreamReader, size: int) -> bytes:
        """Read exactly ``size`` bytes, which the caller has checked. Memory grows with what arrives, not before.

        Raises:
            asyncio.IncompleteReadError: the stream ended early.
        """
        chunks, missing = [], size
        while missing:
            chunk = await reader.read(min(missing, _CHUNK_BYTES))
            if not chunk:
                raise asyncio.IncompleteReadError(b"", size)
            self.received_bytes += len(chunk)
            missing -= len(chunk)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_request_head(self, reader: asyncio.StreamReader) -> tuple[str, int]:
        """Method and size of the body that follows."""
        name = await self.read(reader, (await self.read(reader, 1))[0])
        return name.decode("ascii", errors="replace"), int.from_bytes(await self.read(reader, _LENGTH_BYTES), "big")

    async def read_reply_head(self, reader: asyncio.StreamReader) -> tuple[int, int]:
        """Status and size of the body that follows."""
        head = await self.read(reader, 1 + _LENGTH_BYTES)
        return head[0], int.from_bytes(head[1:], "big")
