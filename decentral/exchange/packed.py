"""Reading a packed message from a stranger: whatever is wrong with it becomes a ``FrameError``."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from decentral.errors import FrameError
from decentral.swarm import checked
from decentral.types import SyncKey

T = TypeVar("T")

#: Tokens, which are exact in a float up to here; two absurd weights must not add up to infinity.
MAX_WEIGHT = 2.0**53


def unpacked(data: bytes, limit: int, what: str) -> Any:
    """``data`` unpacked, or a FrameError that calls it ``what``: too long, or not msgpack."""
    if len(data) > limit:
        raise FrameError(f"{what} of {len(data)} bytes, allowed are {limit}")
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as err:
        raise FrameError(f"{what} is not msgpack: {err}") from err


def reading(what: str, read: Callable[[], T]) -> T:
    """The result of ``read``, any surprise in the structure turned into a FrameError."""
    try:
        return read()
    except (ValueError, TypeError, IndexError, KeyError) as err:
        raise FrameError(f"malformed {what}: {err}") from err


def key_of(value: Any) -> SyncKey:
    """A synchronisation."""
    round_, fragment = value
    return SyncKey(checked.count(round_), checked.count(fragment))
