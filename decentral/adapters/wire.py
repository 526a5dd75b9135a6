"""How a call looks on a stream: a request with its method, a reply with its status, both length-prefixed.

Request: one byte with the length of the method's name, the name (ASCII), eight bytes with the length of the body
(big endian), one with the number of streams that it has, and if that is not 1 eight with their key; the body. Reply:
one status byte, eight bytes with the length, the body (for a refusal: its text). A further stream of a call has no name
and no length, its own number among them and the key; then its part of the request, and back that of the reply
(``bundle``). Lengths are checked by the reader before it reads what they announce.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from decentral.adapters.budget import Budget

T = TypeVar("T")

_LENGTH_BYTES = 8
KEY_BYTES = 8
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


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What goes in front of a request's body, or of a part of it on a further stream."""

    method: str
    """Empty on a further stream."""
    size: int
    """Of the whole body."""
    num_streams: int = 1
    """On a further stream its number, from 1 on."""
    key: bytes = b""
    """Of the call, where it has several streams."""

    def packed(self) -> bytes:
        """As bytes."""
        name = self.method.encode("ascii")
        return b"".join(
            (bytes([len(name)]), name, self.size.to_bytes(_LENGTH_BYTES, "big"), bytes([self.num_streams]), self.key)
        )


def cut(body: bytes, sizes: Sequence[int]) -> Iterator[memoryview]:
    """Parts of these sizes, without copying."""
    whole = memoryview(body)
    return (whole[start:stop] for start, stop in pairwise(accumulate(sizes, initial=0)))


def reply_head(status: Status, size: int) -> bytes:
    """What goes in front of a reply's body."""
    return bytes([status]) + size.to_bytes(_LENGTH_BYTES, "big")


def pieces(head: bytes, body: bytes | memoryview, piece_bytes: int) -> list[memoryview]:
    """A short message in one piece; of a long one the head, which is waited for, and the body without copying it."""
    if len(body) <= SHORT_BYTES:
        return [memoryview(b"".join((head, body)))]
    rest = memoryview(body)
    return [memoryview(head), *(rest[start : start + piece_bytes] for start in range(0, len(rest), piece_bytes))]


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return; if one fails the others are cancelled first, and its error is raised."""
    if len(works) == 1:  # as most calls have one stream: no task for it
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


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
        body: bytes | memoryview,
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

    async def read_request_head(self, reader: asyncio.StreamReader) -> RequestHead:
        """What is said of the body that follows."""
        name = (await self.read(reader, (await self.read(reader, 1))[0])).decode("ascii", errors="replace")
        numbers = await self.read(reader, _LENGTH_BYTES + 1)
        size, num_streams = int.from_bytes(numbers[:-1], "big"), numbers[-1]
        key = await self.read(reader, KEY_BYTES) if num_streams != 1 or not name else b""
        return RequestHead(name, size, num_streams, key)

    async def read_parts(self, readers: Sequence[asyncio.StreamReader], sizes: Sequence[int]) -> bytes:
        """Read a body whose parts come over several streams at the same time; see ``read``."""
        parts = await together([self.read(reader, size) for reader, size in zip(readers, sizes, strict=True)])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_reply_head(self, reader: asyncio.StreamReader) -> tuple[int, int]:
        """Status and size of the body that follows."""
        head = await self.read(reader, 1 + _LENGTH_BYTES)
        return head[0], int.from_bytes(head[1:], "big")
