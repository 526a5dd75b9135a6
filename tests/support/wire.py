"""What a reader of messages must refuse: values that a field does not take, and messages that are cut or go on."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from decentral.errors import FrameError

Reader = Callable[[bytes], Any]
#: By name, what reads a message and one that it reads.
Good = Mapping[str, tuple[Reader, bytes]]

NESTED = functools.reduce(lambda inner, _: [inner], range(900), 0)
NOT_COUNTS = (-1, 1 << 53, 1.0, True, "1", [])
NOT_TEXTS = (1, b"a", ["a"], "a" * 201)
NOT_BLOBS = (None, 1, "a", [b"a"])


def refusal(read: Reader, data: bytes) -> str:
    """Why it is not read; empty if it is."""
    try:
        read(data)
    except FrameError as err:
        return str(err)
    return ""


def takes_no_other_fields(read: Reader, data: bytes, bad: Mapping[int, tuple[Any, ...]], what: str = "") -> None:
    """Every field of a message has values that it does not take, and is refused with each of them."""
    values = msgpack.unpackb(data)
    assert sorted(bad) == list(range(len(values)))
    for position, wrongs in bad.items():
        for wrong in wrongs:
            changed = [*values[:position], wrong, *values[position + 1 :]]
            assert f"malformed {what}" in refusal(read, msgpack.packb(changed)), f"field {position} is {wrong!r}"


def takes_no_other_length(read: Reader, data: bytes, what: str = "") -> None:
    """A message that is cut, has a field less or more, or goes on is refused."""
    assert refusal(read, data) == ""
    assert all(refusal(read, data[:length]) for length in range(len(data)))
    values = msgpack.unpackb(data)
    for wrong in (values[:-1], [*values, 0], bytes(len(values)), "0" * len(values)):
        assert f"malformed {what}" in refusal(read, msgpack.packb(wrong)), wrong
    assert "not msgpack" in refusal(read, data + b"\x00")
