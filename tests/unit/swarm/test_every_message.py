"""Noise for every message that there is: whatever comes instead of it is read, or refused by a ``FrameError``."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decentral
from decentral.errors import FrameError
from decentral.swarm.message import Message, from_wire
from tests.support.mutant_messages import READERS, fuzz_messages
from tests.unit.swarm.test_presence import junk

LIMIT = 20_000
ROOT = Path(decentral.__file__).parents[1]


def kinds_below(kind: type[Message]) -> Iterator[type[Message]]:
    for below in kind.__subclasses__():
        if below.__module__.startswith("decentral."):
            yield below
        yield from kinds_below(below)


def kinds() -> list[type[Message]]:
    """Every message of the package, of modules that nobody has imported yet as well."""
    for path in (ROOT / "decentral").rglob("*.py"):
        if "(Message" in path.read_text():
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return sorted(kinds_below(Message), key=lambda kind: (kind.__module__, kind.__name__))


KINDS = {f"{kind.__module__.removeprefix('decentral.')}.{kind.__name__}": kind for kind in kinds()}
#: By type alone, and those that look at more of what they have read.
EVERYBODY: list[Callable[[bytes], object]] = [
    *(functools.partial(from_wire, kind, limit=LIMIT) for kind in KINDS.values()),
    *READERS.values(),
]


def test_all_messages_are_among_them() -> None:
    rooms = {name.partition(".")[0] for name in KINDS}
    assert rooms >= {"engine", "exchange", "pipeline", "state", "swarm"}
    assert {"state.download.pieces.Head", "state.guard._Piece", "pipeline.handover._Keep"} <= set(KINDS)
    assert "swarm.presence._Body" in KINDS


@settings(max_examples=50)
@given(data=st.binary(max_size=100))
def test_noise_is_only_ever_a_frame_error(data: bytes) -> None:
    for read in EVERYBODY:
        with contextlib.suppress(FrameError):
            read(data)


@settings(max_examples=60)
@given(content=junk | st.lists(junk, min_size=1, max_size=9))
def test_well_formed_nonsense_is_only_ever_a_frame_error(content: Any) -> None:
    data = bytes(msgpack.packb(content))
    for read in EVERYBODY:
        with contextlib.suppress(FrameError):
            read(data)


@pytest.mark.parametrize("depth", [900, 1100, 12_000])
def test_fields_nested_without_end_are_refused(depth: int) -> None:
    """The decoder gives up on them with a ``RecursionError``, which nobody expects of a message."""
    for num_fields in range(1, 16):
        data = bytes([0x90 + num_fields]) + (b"\x91" * depth + b"\x00") + bytes(num_fields - 1)
        for read in EVERYBODY:
            with pytest.raises(FrameError):
                read(data)


def test_some_thousand_mutants() -> None:
    tally = fuzz_messages(4_000, seed=1)
    assert tally.tried.total() == 4_000
    assert tally.tried.total() == tally.read.total() + tally.refusals.total()
    for kind in READERS:
        assert tally.read[kind] > 0.01 * tally.tried[kind], kind
        assert tally.read[kind] < 0.95 * tally.tried[kind], kind


def test_a_reader_that_raises_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "visit", lambda data: data[100])
    with pytest.raises(AssertionError, match=r"mutant \d+ of seed 1 \(visit\): IndexError"):
        fuzz_messages(100, seed=1)


def test_a_reader_that_takes_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "visit", lambda data: bytes(1 << 28))
    with pytest.raises(AssertionError, match="MemoryError"):
        fuzz_messages(100, seed=1)
