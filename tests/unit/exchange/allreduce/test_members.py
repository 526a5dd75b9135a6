"""What members say of a round, asked by one that a leader has sent away."""

from collections.abc import Collection

import pytest
import torch
from msgspec.structs import replace

from decentral.errors import CallRefused
from decentral.exchange.allreduce.members import HELD, Members, Word
from decentral.exchange.allreduce.messages import Held, Where
from decentral.exchange.progress import Progress
from decentral.sim.loop import run
from decentral.sim.world import World, peer_id
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.presence import Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

HERE, PAST, OTHER = Where(4, "base", b""), Where(5, "new", b""), Where(4, "other", b"")
NAMED, OF_LIARS = Where(4, "base", b"list"), Where(4, "base", b"of liars")


def word(*told: Where, silent: int = 0) -> Word:
    """Of so many others, and some that do not answer; the one that asks is one more."""
    return Word(len(told) + silent, {PeerId(f"{number}"): where for number, where in enumerate(told)})


@pytest.mark.parametrize(
    ("heard", "is_open"),
    [
        (word(HERE, HERE, OF_LIARS, OF_LIARS), True),
        (word(HERE, PAST, PAST), False),  # half are not most
        (word(HERE, HERE, PAST, silent=2), False),
        (word(NAMED, NAMED, OF_LIARS), True),
        (word(HERE, OF_LIARS, OF_LIARS), False),
        (word(PAST), False),
        (word(), False),  # one alone are not most
    ],
)
def test_a_round_is_open_where_most_are_in_it_and_were_told_something_else(heard: Word, is_open: bool) -> None:
    assert heard.is_open(4, b"of liars") == is_open


def test_who_was_told_participants_does_not_say_that_a_round_without_any_is_over() -> None:
    assert word(NAMED, HERE, PAST).is_open(4, b"")


@pytest.mark.parametrize(
    ("heard", "are_with"),
    [(word(HERE, NAMED, OTHER), True), (word(HERE, OTHER, OTHER), False), (word(HERE, PAST, PAST), False)],
)
def test_the_anchor_of_most_is_no_reason_to_repair(heard: Word, are_with: bool) -> None:
    assert heard.are_with(4, "base") == are_with


def test_half_are_left_out_only_if_they_are_there_unnamed_and_told_of_nobody() -> None:
    heard = word(HERE, HERE, HERE, NAMED, NAMED)
    assert heard.are_left_out(4, "base", [])
    assert not heard.are_left_out(4, "base", [PeerId("0")]), "who is named is not left out"
    assert not heard.are_left_out(4, "another", [])
    assert not heard.are_left_out(5, "base", [])
    assert not word(HERE, HERE, NAMED, NAMED).are_left_out(4, "base", []), "it asks itself, who is named"


def test_the_list_that_most_were_told_and_who_says_so() -> None:
    assert word(OF_LIARS, NAMED, NAMED).list_of_most() is None, "half are not most"
    assert word(OF_LIARS, NAMED, NAMED, NAMED).list_of_most() == (b"list", "1")
    assert word(HERE, HERE).list_of_most() is None
    assert word().list_of_most() is None


def test_a_repair_goes_to_the_source_that_was_named_unless_most_hold_another_anchor() -> None:
    assert word(OTHER, HERE, OTHER, OTHER).holder_of_most(PeerId("1")) == "0"
    assert word(OTHER, HERE, OTHER, OTHER).holder_of_most(PeerId("2")) == "2"
    assert word(OTHER, HERE, PAST).holder_of_most(PeerId("1")) == "1"
    assert word(silent=3).holder_of_most(PeerId("1")) == "1"
    assert word(silent=3).holder_of_most(None) is None


async def heard(num_others: int, key: SyncKey, newcomers: Collection[int] = (), donor: int | None = None) -> Word:
    """What worker 0 hears of others, each a round further than the one before; one has finished, the last is gone."""
    world, timing = World(0), Timing()
    roster = Roster(timing.ttl_s)
    members = []
    for number in range(num_others + 1):
        state = State.DONE if number == 2 else State.TRAINING
        roster.observe(Presence(peer_id(number), "run", 1, state, number, 0, ""), 0.0)
        peer, progress = world.add(peer_id(number)), Progress(1)
        progress.resume([number])
        if number in newcomers:
            progress.donor = peer_id(0)
        if number == 0 and donor is not None:
            progress.donor = peer_id(donor)
        if number == 3:
            progress.participants[SyncKey(1, 0)] = b"list"
        members.append(
            Members(
                *(peer.transport, peer.clock, roster, progress, timing),
                expected=lambda: [peer_id(0), *map(peer_id, range(3, num_others + 1))],
                anchor=lambda fragment, n=number: (f"base {n}", torch.zeros(1)),  # type: ignore[misc]
            )
        )
        await members[-1].start()
    world.network.crash(peer_id(num_others))
    return await members[0].word(key)


def where(number: int, packed: bytes = b"") -> Where:
    return Where(number, f"base {number}", packed)


def test_those_expected_and_those_who_have_finished_say_where_they_are() -> None:
    word = run(heard(5, SyncKey(1, 0)), until_s=60.0)
    assert word == Word(4, {peer_id(2): where(2), peer_id(3): where(3, b"list"), peer_id(4): where(4)})
    later = run(heard(5, SyncKey(2, 0)), until_s=60.0)
    assert later.told[peer_id(3)].participants == b"", "of the round in question"


def test_newcomers_count_in_the_first_round_alone() -> None:
    later = run(heard(5, SyncKey(1, 0), newcomers=(3, 4)), until_s=60.0)
    assert later == Word(2, {peer_id(2): where(2)})
    first = run(heard(5, SyncKey(0, 0), newcomers=(3, 4)), until_s=60.0)
    assert (first.num_asked, len(first.told)) == (4, 3)


def test_a_newcomer_asks_its_donor_alone() -> None:
    word = run(heard(5, SyncKey(1, 0), newcomers=(4,), donor=4), until_s=60.0)
    assert word == Word(1, {peer_id(4): replace(where(4), is_new=True)})


def test_of_many_a_sample_is_asked() -> None:
    word = run(heard(40, SyncKey(1, 0)), until_s=60.0)
    assert word.num_asked == 16
    assert set(word.told) - {peer_id(number) for number in range(17)}


async def asks_about_a_fragment_that_there_is_not() -> None:
    world, roster, timing = World(0), Roster(6.0), Timing()
    peer, other = world.add(peer_id(0)), world.add(peer_id(1))
    members = Members(peer.transport, peer.clock, roster, Progress(2), timing, list, lambda fragment: None)
    await members.start()
    question = to_wire(Held(1, 1))
    answer = await other.transport.call(peer_id(0), HELD, question, timeout_s=1.0, max_reply_bytes=64)
    assert from_wire(Where, answer) == Where(0, "", b""), "it has no anchor yet"
    await other.transport.call(peer_id(0), HELD, to_wire(Held(1, 2)), timeout_s=1.0, max_reply_bytes=64)


def test_questions_about_a_fragment_that_there_is_not_are_refused() -> None:
    with pytest.raises(CallRefused, match="there is no fragment 2"):
        run(asks_about_a_fragment_that_there_is_not(), until_s=60.0)
