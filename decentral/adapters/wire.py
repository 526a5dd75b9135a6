"""How a call looks on a stream: a request with its method, a reply with its status, both length-prefixed.

Request: one byte with the length of the method's name, the name (ASCII), eight bytes with the length of the body
(big endian), the body. Reply: one status byte, eight bytes with the length, the body (for a refusal: its text).
Lengths are checked by the reader before it reads what they announce.
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum

from decentral.adapters.budget import Budget

_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 18
#: A message up to this size is short and goes in one piece: a sign of life with seventeen records is.
SHORT_BYTES = 1 << 14
#: Text of a refusal; what is longer is cut.
MAX_REFUSAL_BYTES = 1000


class Status(IntEnum):
    """How a call ended."""

    OK = 0
    REFUSED = 1
    STRANGER = 2
    """The caller is not admitted; nothing of its request was read."""


def request_head(method: str, size: int) -> bytes:
    """What goes in front of a request's body."""
    name = method.encode("ascii")
    return bytes([len(name)]) + name + size.to_bytes(_LENGTH_BYTES, "big")


def reply_head(status: Status, size: int) -> bytes:
    """What goes in front of a reply's body."""
    return bytes([status]) + size.to_bytes(_LENGTH_BYTES, "big")


def pieces(head: bytes, body: bytes, piece_bytes: int) -> list[memoryview]:
    """A short message in one piece; of a long one the head, which is waited for, and the body without copying it."""
    if len(body) <= SHORT_BYTES:
        return [memoryview(head + body)]
    rest = memoryview(body)
    return [memoryview(head), *(rest[start : start + piece_bytes] for start in range(0, len(rest), piece_bytes))]


class Meter:
    """Moves bytes both ways, at the network's pace and within the budget, and counts them.

    Args:
        budget: of all that is written.
    """

    def __init__(self, budget: Budget) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self._budget = budget

    async def write(
        self,
        writer: asyncio.StreamWriter,
        head: bytes,
        body: bytes,
        before_last: Callable[[], None] = lambda: None,
        budget: Budget | None = None,
    ) -> None:
        """Write a message as fast as the budget and the daemon allow; about one piece is in a buffer at any time.

        Args:
            writer: of the stream.
            head: of the message.
            body: of the message.
            before_last: called before the last piece is handed over.
            budget: that the message is to keep within as well.
        """
        budgets = [self._budget] if budget is None else [budget, self._budget]
        message = pieces(head, body, min(each.piece_bytes for each in budgets))
        for number, piece in enumerate(message, 1):
            # The narrower one first: what waits for it has not been taken from what others may send meanwhile.
            for each in budgets:
                wait_s = each.take(asyncio.get_running_loop().time(), len(piece), first=number == 1)
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
            if number == len(message):
                before_last()
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
