"""What counts as goodput, and a run short enough for every day."""

import pytest

from decentral.monitor.events import Joined, RoundMixed
from decentral.monitor.journal import MemoryJournal
from decentral.sim.loop import run
from decentral.types import PeerId
from scripts.benches.goodput import (
    QUIET_S,
    Case,
    Launches,
    Lives,
    available,
    last_wish,
    measure,
    shared,
    stops,
    unheard,
)

A, B = PeerId("a"), PeerId("b")


def mixed(round_: int, *members: PeerId) -> RoundMixed:
    return RoundMixed(round_, 0, members, (), 0.0, 0.0, 0, 0, 0.0, 0.0, "")


def journal(*events: RoundMixed | Joined) -> MemoryJournal:
    made = MemoryJournal()
    for event in events:
        made.record(event)
    return made


def book(*counted: float, on_its_way: float = 0.0) -> Launches:
    async def make() -> Launches:
        return Launches(Lives(list), 0.0, 1)

    made = run(make(), until_s=1.0)
    made.counted, made.open = list(counted), [on_its_way]
    return made


def test_what_stands_is_not_stopped_again() -> None:
    failures = [QUIET_S + at_s for at_s in (0.0, 9.0, 10.0, 25.0)]
    assert list(stops(failures, 10.0)) == [failures[0], failures[2], failures[3]]
    assert available(failures, 10.0, 40.0) == pytest.approx(10 / 40)
    assert available(failures[3:], 100.0, 40.0) == pytest.approx(25 / 40)


def test_work_counts_that_was_on_its_way_when_its_learner_died_if_others_have_it() -> None:
    first, second = journal(mixed(0, A, B)), journal(Joined(B, 5, 0, 1.0, 0.0), mixed(5, A, B))
    others = [mixed(0, A, B), mixed(1, A, B), mixed(2, B), mixed(5, A, B)]
    rounds = unheard({A: [first, second], B: [journal(*others)]})
    assert rounds == {A: {(1, 0)}, B: set()}
    books = [book(7.0, on_its_way=3.0), book(4.0, on_its_way=2.0)]
    assert last_wish(books, [first, second], rounds[A]) == 3.0
    assert last_wish(books, [first, second], set()) == 0.0


def test_steps_that_a_gossip_took_alone_are_lost_unless_it_met_somebody_afterwards() -> None:
    life = journal(mixed(0, A), mixed(1, A, B), mixed(2, A), mixed(3, A))
    assert shared(book(1.0, 2.0, 4.0, 8.0), life, gossips=True) == 3.0
    assert shared(book(1.0, 2.0, 4.0, 8.0), life, gossips=False) == 15.0


def test_learners_that_fail_lose_little_more_than_their_stops() -> None:
    case = Case("all-reduce", learners=3, chips=3_000_000, stop_s=5.0, length_s=40.0)
    found = measure(case, 1)
    assert found["failures"] >= 2
    assert found["up"] - 0.4 < found["goodput"] < found["up"] + 0.02 < 1.0
    assert found["rigid"] < found["elastic"] < found["up"]
