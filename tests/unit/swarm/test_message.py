"""What every message has in common: a list of exactly its fields, each with its type and bounds."""

from typing import Any, ClassVar

import msgpack
import pytest

from decentral.errors import FrameError
from decentral.swarm.message import Duration, Message, Text, from_wire, to_wire
from decentral.types import Count


class Inner(Message, frozen=True):
    number: Count


class Sample(Message, frozen=True):
    what: ClassVar[str] = "sample"
    max_bytes: ClassVar[int] = 400
    name: Text
    numbers: tuple[Count, ...] = ()
    inner: Inner | None = None
    seconds: Duration = 0.0

    def check(self) -> None:
        if self.name == "nobody":
            raise ValueError("nobody is no name")


def test_it_travels_as_a_list() -> None:
    sample = Sample("a", (1, 2), Inner(3), 0.5)
    assert msgpack.unpackb(to_wire(sample)) == ["a", [1, 2], [3], 0.5]
    assert from_wire(Sample, to_wire(sample)) == sample


def test_a_whole_number_becomes_a_float() -> None:
    seconds = from_wire(Sample, msgpack.packb(["a", [], None, 2])).seconds
    assert (seconds, type(seconds)) == (2.0, float)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (["a"], "malformed sample: a list of 4 fields expected"),
        (["a", [], None], "malformed sample: a list of 4 fields expected"),
        (["a", [], None, 0.0, 1], "malformed sample: a list of 4 fields expected"),
        ({"name": "a"}, "malformed sample: a list of 4 fields expected"),
        (["a", [1, -1], None, 0.0], r"malformed sample: Expected `int` >= 0 - at `numbers\[1\]`"),
        (["a", [], [1.0], 0.0], r"malformed sample: Expected `int`, got `float` - at `inner\[0\]`"),
        (["a" * 201, [], None, 0.0], "malformed sample: Expected `str` of length <= 200 - at `name`"),
        (["nobody", [], None, 0.0], "malformed sample: nobody is no name"),
    ],
)
def test_what_is_wrong_is_named(content: Any, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        from_wire(Sample, msgpack.packb(content))


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdd\x08\x00\x00\x00", b"\x91" * 300])
def test_nothing_is_believed_of_lengths(claim: bytes) -> None:
    with pytest.raises(FrameError, match="sample"):
        from_wire(Sample, b"\x94\xa1a" + claim)


def test_what_is_too_long_is_not_read() -> None:
    data = to_wire(Sample("a", tuple([1 << 40] * 50)))
    with pytest.raises(FrameError, match=f"sample of {len(data)} bytes, allowed are 400"):
        from_wire(Sample, data)
    assert from_wire(Sample, data, len(data)).name == "a"
