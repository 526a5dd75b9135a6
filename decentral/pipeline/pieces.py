"""A long message in pieces that travel side by side, and its receiver's end. Knows nothing of what is in it.

A call is a stream of its own, of which 256 KB may be under way before its receiver has answered: what is longer stands
still for a round trip. Pieces that are shorter do not.
"""

import struct
from collections.abc import Iterator
from typing import Final

from decentral.errors import FrameError
from decentral.types import PeerId

PIECE_BYTES: Final = 192 * 1024
#: Number of the message at its sender, of the piece in it, of all its pieces; little-endian.
_HEADER: Final = struct.Struct("<QHH")
HEADER_BYTES: Final = _HEADER.size
#: Messages of one sender that are not complete; the oldest makes room.
_MAX_OPEN: Final = 16


def cut(message: bytes, number: int) -> Iterator[bytes]:
    """The pieces of a message that is not empty.

    Args:
        message: of any length up to 65,535 pieces.
        number: no other message to the same receiver has it.
    """
    count = -(-len(message) // PIECE_BYTES)
    for index in range(count):
        body = memoryview(message)[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
        yield b"".join((_HEADER.pack(number, index, count), body))


class Pieces:
    """What has come of messages that are not complete.

    Args:
        max_bytes: of a message.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_count = -(-max_bytes // PIECE_BYTES)
        self._open: dict[PeerId, dict[int, dict[int, bytes]]] = {}

    def add(self, sender: PeerId, piece: bytes) -> bytes | None:
        """The message, if this was its last missing piece.

        Raises:
            FrameError: it is no piece of a message of the right length.
        """
        if not HEADER_BYTES < len(piece) <= HEADER_BYTES + PIECE_BYTES:
            raise FrameError(f"piece of {len(piece)} bytes")
        number, index, count = _HEADER.unpack_from(piece)
        if not index < count <= self._max_count:
            raise FrameError(f"piece {index} of {count}, at most {self._max_count} make a message")
        body = piece[HEADER_BYTES:]
        if count == 1:
            return body
        messages = self._open.setdefault(sender, {})
        bodies = messages.setdefault(number, {})
        bodies[index] = body
        if len(bodies) < count:
            if len(messages) > _MAX_OPEN:
                del messages[next(iter(messages))]
            return None
        del messages[number]
        if not messages:
            del self._open[sender]
        if sorted(bodies) != list(range(count)):
            raise FrameError(f"pieces {sorted(bodies)} of {count}")
        return b"".join(bodies[index] for index in range(count))
