"""Messages through a budget, in virtual time: writers take everything at once and note when."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest

from decentral.adapters.budget import MESSAGE_BYTES, OVERHEAD, Budget
from decentral.adapters.wire import SHORT_BYTES, Meter, pieces
from decentral.sim.loop import run

CAP = 1e6
HEAD = b"head"


class Link:
    """Where all writers of a test meet."""

    def __init__(self, cap: float = CAP) -> None:
        self.budget = Budget(cap)
        self.meter = Meter(self.budget)
        self.log: list[tuple[float, str, int]] = []
        """Time, stream, bytes."""
        self.data: dict[str, bytearray] = {}

    async def send(self, stream: str, size: int, after_s: float = 0.0) -> float:
        """Send a message; the time at which all of it was written."""
        await asyncio.sleep(after_s)
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        await self.meter.write(Writer(self, stream), HEAD, body)  # type: ignore[arg-type]
        assert self.data[stream] == HEAD + body
        return asyncio.get_running_loop().time()

    def most_in(self, window_s: float) -> float:
        """The most bytes a second in any window that begins with a piece, with overhead."""
        costs = [(at, size * (1 + OVERHEAD) + MESSAGE_BYTES * (size < SHORT_BYTES)) for at, _, size in self.log]
        return max(sum(cost for at, cost in costs if 0 <= at - start < window_s) for start, _ in costs) / window_s


class Writer:
    """The part of a stream writer that is used."""

    def __init__(self, link: Link, stream: str) -> None:
        self._link, self._stream = link, stream

    def write(self, piece: memoryview) -> None:
        self._link.log.append((asyncio.get_running_loop().time(), self._stream, len(piece)))
        self._link.data.setdefault(self._stream, bytearray()).extend(piece)

    async def drain(self) -> None:
        pass


def at_once(*work: Coroutine[Any, Any, float]) -> list[float]:
    async def main() -> list[float]:
        return await asyncio.gather(*work)

    return run(main(), until_s=1e4)


def test_a_short_message_is_one_piece_and_a_long_one_begins_with_its_head() -> None:
    for size in (0, SHORT_BYTES, SHORT_BYTES + 1, 100_000):
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        message = pieces(HEAD, body, 30_000)
        assert b"".join(message) == HEAD + body
        assert len(message) == (1 if size <= SHORT_BYTES else 1 + math.ceil(size / 30_000))
        assert message[0][:4] == HEAD


def test_any_two_seconds_of_many_streams_keep_to_the_cap_and_none_of_it_is_wasted() -> None:
    link = Link()
    sizes = [40_000, 1_000_000, 3_000_000, 20_000, 2_500_000]
    long = [link.send(f"long {n}", size) for n, size in enumerate(sizes)]
    short = [link.send(f"short {n}", 3000, after_s=0.3 * n) for n in range(20)]
    ended = max(at_once(*long, *short))
    assert link.most_in(2.0) <= 1.05 * CAP
    cost = link.meter.sent_bytes * (1 + OVERHEAD) + MESSAGE_BYTES * 25
    assert link.meter.sent_bytes == sum(sizes) + 20 * 3000 + 25 * len(HEAD)
    assert ended == pytest.approx(cost / CAP - 0.05)  # The burst at the beginning.


def test_a_short_message_does_not_wait_for_long_ones() -> None:
    link = Link()
    long = [link.send(f"long {n}", 5_000_000) for n in range(30)]
    *_, ended = at_once(*long, link.send("short", 12_000, after_s=20.0))
    assert ended == pytest.approx(20.0, abs=0.02)


def test_streams_take_turns() -> None:
    link = Link()
    early, late = at_once(link.send("a", 2_000_000), link.send("b", 500_000, after_s=0.5))
    # From its beginning, b has half of the link.
    assert late - 0.5 == pytest.approx(2 * 500_000 * (1 + OVERHEAD) / CAP, rel=0.1)
    assert early == pytest.approx(2_500_000 * (1 + OVERHEAD) / CAP, rel=0.05)


def test_without_a_cap_no_time_passes() -> None:
    link = Link(math.inf)
    assert at_once(link.send("a", 50_000_000), link.send("b", 5)) == [0.0, 0.0]


def test_whoever_gives_up_while_it_waits_has_not_handed_over_the_last_piece() -> None:
    link, told = Link(), []

    async def main() -> None:
        writing = link.meter.write(Writer(link, "a"), HEAD, bytes(1_000_000), lambda: told.append(len(link.log)))  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.99):
                await writing
        assert told == []
        await link.meter.write(Writer(link, "b"), HEAD, bytes(100_000), lambda: told.append(len(link.log)))  # type: ignore[arg-type]
        assert told == [len(link.log) - 1]

    run(main(), until_s=100.0)
