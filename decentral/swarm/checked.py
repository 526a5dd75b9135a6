"""The fields of an unpacked message from a stranger: each has its type and its bound, or a ``ValueError`` says so.

Messages may be nested as deeply as their packer allows, so nothing here turns a container into text.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from decentral.types import PeerId

T = TypeVar("T")

_MAX_TEXT: Final = 200
_COUNTS: Final = 1 << 53


def text(value: object) -> str:
    """A string of at most 200 characters."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"text expected, got {shown(value)}")
    return value


def peer(value: object) -> PeerId:
    """A peer id."""
    return PeerId(text(value))


def count(value: object) -> int:
    """A whole number from 0 to below 2^53."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _COUNTS:
        raise ValueError(f"count expected, got {shown(value)}")
    return value


def duration(value: object) -> float:
    """Seconds from 0 on, perhaps without end."""
    if not isinstance(value, float) or not value >= 0:
        raise ValueError(f"duration expected, got {shown(value)}")
    return value


def flag(value: object) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise ValueError(f"yes or no expected, got {shown(value)}")
    return value


def blob(value: object) -> bytes:
    """Bytes."""
    if not isinstance(value, bytes):
        raise ValueError(f"bytes expected, got {shown(value)}")
    return value


def all_of(read: Callable[[Any], T], values: object) -> tuple[T, ...]:
    """A list whose every element ``read`` accepts."""
    if not isinstance(values, list):
        raise ValueError(f"list expected, got {shown(values)}")
    return tuple([read(value) for value in values])


def shown(value: object) -> str:
    """The value if it is a plain one, else its type."""
    if isinstance(value, (str, bytes)):
        return repr(value[:40])
    return repr(value) if value is None or isinstance(value, (bool, float)) else type(value).__name__
