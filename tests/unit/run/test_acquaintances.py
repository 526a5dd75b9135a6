"""The address book while a run goes on: newcomers are written down, the absent are looked for, both within bounds."""

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from decentral import PROTOCOL
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.engine.hello import Hello
from decentral.run.acquaintances import Acquaintances
from decentral.run.book import Book, read_book
from decentral.run.connection import Connection
from decentral.sim.loop import run
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.types import PeerId
from tests.unit.run.test_book import at, peer

ME = peer(0)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[PeerId, tuple[str, bytes]]:
    """What others say of their run and its settings; as a rule, those of this worker."""
    said: dict[PeerId, tuple[str, bytes]] = {}

    async def ask_hello(transport: Any, who: PeerId, verify: Any, *, timeout_s: float) -> Hello:
        run_id, config = said.get(who, ("demo-1", SwarmConfig().to_json().encode()))
        return Hello(who, PROTOCOL, "", run_id, config, ())

    monkeypatch.setattr("decentral.run.acquaintances.ask_hello", ask_hello)
    return said


class World:
    """A node among others, of whom some can be dialled."""

    def __init__(self, folder: Path, book: Book) -> None:
        self.roster = Roster(ttl_s=6.0)
        self.there: set[PeerId] = set()
        self.dialled: list[tuple[float, str]] = []
        self.told: list[PeerId] = []
        self.book = book
        self.folder = folder

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def see(self, who: PeerId) -> None:
        seq = int(1000 * self.monotonic()) + 1
        self.roster.observe(Presence(who, "demo-1", seq, State.TRAINING, 0, 0, ""), self.monotonic())

    async def addresses_of(self, who: PeerId) -> tuple[str, ...]:
        return next(((at(n),) for n in range(200) if peer(n) == who), ())

    async def dial(self, address: str) -> PeerId | None:
        self.dialled.append((self.monotonic(), address))
        who = PeerId(address.rpartition("/")[2])
        return who if who in self.there else None

    async def tell(self, who: PeerId) -> None:
        self.told.append(who)
        self.see(who)

    def play(self, scene: Coroutine[Any, Any, None]) -> None:
        """Keep the book while ``scene`` passes."""

        async def all_of_it() -> None:
            self.see(ME)
            async with AsyncExitStack() as resources:
                self.acquaintances.begin(resources)
                await scene

        run(all_of_it(), until_s=1000.0)

    @property
    def acquaintances(self) -> Acquaintances:
        node = SimpleNamespace(
            identity=SimpleNamespace(peer_id=ME, verify=None),
            transport=None,
            addresses_of=self.addresses_of,
            dial=self.dial,
        )
        own = WorkerConfig(out=str(self.folder))
        connection = Connection(cast(Any, node), SwarmConfig(), own, "demo-1", (), self.book)
        membership = SimpleNamespace(roster=self.roster, tell=self.tell)
        return Acquaintances(connection, cast(Any, membership), cast(Any, self))

    def written(self) -> list[PeerId]:
        found = read_book(self.folder)
        return [] if found is None else found.peers()


def test_the_first_one_found_is_written_at_once_and_others_every_half_minute(tmp_path: Path) -> None:
    world = World(tmp_path, Book("demo-1", 31337))

    async def scene() -> None:
        await asyncio.sleep(10.0)
        assert world.written() == []
        world.see(peer(1))
        await asyncio.sleep(3.0)
        assert world.written() == [peer(1)]
        world.see(peer(2))
        await asyncio.sleep(3.0)
        assert world.written() == [peer(1)]
        await asyncio.sleep(30.0)
        assert set(world.written()) == {peer(1), peer(2)}
        (tmp_path / "run.json").unlink()
        await asyncio.sleep(100.0)
        assert world.written() == []  # nothing new, nothing written

    world.play(scene())


def test_the_absent_are_dialled_in_turn_twice_a_minute_and_told_when_they_are_there(tmp_path: Path) -> None:
    book = Book("demo-1", 31337)
    for number in (3, 2, 1):
        book.heard([at(number)])
    world = World(tmp_path, book)

    async def scene() -> None:
        await asyncio.sleep(100.0)
        assert [address for _, address in world.dialled] == [at(1), at(2), at(3)]
        times = [time for time, _ in world.dialled]
        assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 30.0
        assert world.told == []
        world.there = {peer(2)}
        await asyncio.sleep(90.0)
        assert world.told == [peer(2)]
        for _ in range(40):  # whoever is heard of is not looked for
            world.see(peer(2))
            await asyncio.sleep(3.0)
        assert world.told == [peer(2)]

    world.play(scene())


def test_who_is_of_another_run_or_goes_on_with_other_settings_is_left_alone(
    tmp_path: Path, answers: dict[PeerId, tuple[str, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    book = Book("demo-1", 31337)
    for number in (3, 2, 1):
        book.heard([at(number)])
    world = World(tmp_path, book)
    world.there = {peer(1), peer(2), peer(3)}
    answers |= {peer(1): ("demo-2", b""), peer(2): ("demo-1", b"{}")}

    async def scene() -> None:
        await asyncio.sleep(200.0)
        assert set(world.told) == {peer(3)}

    world.play(scene())
    assert caplog.text.count("goes on with other settings of this run") == 1


def test_a_folder_that_is_full_ends_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "gone", Book("demo-1", 31337))

    async def scene() -> None:
        for number in (1, 2):
            world.see(peer(number))
            await asyncio.sleep(40.0)

    world.play(scene())
    assert set(world.book.peers()) == {peer(1), peer(2)}
