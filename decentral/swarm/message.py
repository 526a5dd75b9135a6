"""Messages between peers: each a class whose fields have types and bounds, packed with msgpack as a list of the fields.

What comes from a stranger is read by ``from_wire``: whatever is wrong with it becomes a ``FrameError``, and nothing is
allocated by what it merely claims to hold. Knows no message in particular.
"""

import functools
import itertools
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta

from decentral.errors import FrameError
from decentral.types import PeerId

#: At most 200 characters.
Text = Annotated[str, Meta(max_length=200)]
Peer = Annotated[PeerId, Meta(max_length=200)]
#: Seconds from 0 on, perhaps without end.
Duration = Annotated[float, Meta(ge=0.0)]
#: Longest message without values, unless it says otherwise.
MAX_SMALL_BYTES = 1_024
#: In msgpack, the head of a list of at most 15 is this plus its length.
_SHORT_LIST = 0x90
#: What the decoder raises: no msgpack or another type, text that is no UTF-8, nested without end.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
#: How the decoder says which field of a list is wrong.
_PLACE = re.compile(r"\$\[(\d+)\]")


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """On the wire a list of exactly these fields, at most 15.

    A whole number may stand for a float, nothing else for another type.
    """

    what: ClassVar[str] = "message"
    """What it is, for people."""
    max_bytes: ClassVar[int] = MAX_SMALL_BYTES

    def check(self) -> None:
        """What types and bounds do not say; raises ``ValueError`` in a message that came from a peer."""


M = TypeVar("M", bound=Message)
to_wire = msgspec.msgpack.Encoder().encode


def from_wire(kind: type[M], data: bytes, limit: int | None = None) -> M:
    """The message in ``data``, checked.

    Args:
        kind: what it should be.
        data: what came.
        limit: its longest length in bytes, if ``kind`` cannot know.

    Raises:
        FrameError: too long, not msgpack, or not such a message.
    """
    allowed = kind.max_bytes if limit is None else limit
    if len(data) > allowed:
        raise FrameError(f"{kind.what} of {len(data)} bytes, allowed are {allowed}")
    head, decode = _decoder(kind)
    # Fields with a default would be filled in. A list of so few is announced by one byte.
    if not data.startswith(head):
        raise FrameError(f"malformed {kind.what}: a list of {len(kind.__struct_fields__)} fields expected")
    try:
        message: M = decode(data)
        message.check()
    except msgspec.ValidationError as err:
        named = _PLACE.sub(lambda place: kind.__struct_fields__[int(place[1])], str(err))
        raise FrameError(f"malformed {kind.what}: {named}") from err
    except UNREADABLE as err:
        raise FrameError(f"{kind.what} is not msgpack: {err}") from err
    except ValueError as err:
        raise FrameError(f"malformed {kind.what}: {err}") from err
    return message


def below(limit: int, what: str, number: int) -> None:
    """Refuse a number that is not below ``limit``."""
    if number >= limit:
        raise ValueError(f"{what} {number}, allowed are 0 to {limit - 1}")


def ascending(what: str, values: tuple[Any, ...]) -> None:
    """Refuse values that are not in order, or not all different."""
    if any(one >= other for one, other in itertools.pairwise(values)):
        raise ValueError(f"{what} are not in order")


@functools.cache
def _decoder(kind: type[M]) -> tuple[bytes, Callable[[bytes], M]]:
    """What such a message begins with, and what reads it."""
    return bytes([_SHORT_LIST + len(kind.__struct_fields__)]), msgspec.msgpack.Decoder(kind).decode
