"""Turns: how many at once, in which order, and what becomes of those that are given up or fail."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from decentral.pipeline.turns import Turns


class Way:
    """Turns that last until they are told to end, and the order in which they began."""

    def __init__(self, at_once: int) -> None:
        self.turns = Turns(at_once)
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str, first: bool = False) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._take(name, first))
            await _settled()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await _settled()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self._tasks[name].cancel()
        await _settled()

    async def _take(self, name: str, first: bool) -> None:
        async with self.turns.turn(first=first):
            self.began.append(name)
            await self._ends[name].wait()


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def check(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_so_many_at_once_and_the_others_in_order() -> None:
    async def scenario() -> None:
        way = Way(2)
        await way.ask("a", "b", "c", "d")
        assert way.began == ["a", "b"]
        await way.end("b")
        assert way.began == ["a", "b", "c"]
        await way.end("a", "c")
        assert way.began == ["a", "b", "c", "d"]
        await way.end("d")
        await way.ask("e", "f", "g")  # no turn was lost and none was made
        assert way.began[4:] == ["e", "f"]

    check(scenario())


def test_who_goes_first_overtakes_those_that_wait_and_not_its_like() -> None:
    async def scenario() -> None:
        way = Way(1)
        await way.ask("a", "b")
        await way.ask("c", "d", first=True)
        for name in "acd":
            await way.end(name)
        assert way.began == ["a", "c", "d", "b"]

    check(scenario())


def test_who_gives_up_waiting_takes_no_turn() -> None:
    async def scenario() -> None:
        way = Way(1)
        await way.ask("a", "b", "c")
        await way.cancel("b")
        await way.end("a")
        assert way.began == ["a", "c"]

    check(scenario())


def test_a_turn_passes_on_when_its_holder_is_cancelled() -> None:
    async def scenario() -> None:
        way = Way(1)
        await way.ask("a", "b")
        await way.cancel("a")
        assert way.began == ["a", "b"]

    check(scenario())


def test_a_turn_passes_on_when_who_is_called_is_cancelled_at_that_moment() -> None:
    async def scenario() -> None:
        way = Way(1)
        await way.ask("a", "b", "c")
        way._ends["a"].set()
        await asyncio.sleep(0)  # a is over: b has been called and has not begun
        assert way.began == ["a"]
        await way.cancel("b")
        assert way.began == ["a", "c"]

    check(scenario())


def test_a_turn_that_fails_is_over() -> None:
    async def scenario() -> None:
        turns = Turns(1)
        with pytest.raises(ValueError, match="broken"):
            async with turns.turn(first=False):
                raise ValueError("broken")
        async with asyncio.timeout(1), turns.turn(first=False):
            pass

    check(scenario())
