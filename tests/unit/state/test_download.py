"""Downloads over the memory network, with donors that fail in every way that a donor can."""

import asyncio
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from decentral.sim.network import Line
from decentral.sim.world import peer_id
from decentral.state.download.downloader import NoDownload
from decentral.state.download.pieces import HEAD, PIECE, Ask
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.message import to_wire
from tests.unit.state.nursery import (
    DONORS,
    FIRST,
    JOINER,
    SECOND,
    THIRD,
    TOTAL,
    Change,
    Nursery,
    check_equal,
    fragment,
    play,
    snapshot,
)


def test_a_download_is_the_donors_state() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        download = check_equal(await nursery.fetch(FIRST), snapshot())
        assert download.donor == FIRST
        assert download.received_bytes == TOTAL
        # 2800 and 2800 bytes of the first fragment, 360 and 360 of the second: no piece crosses an end.
        sizes = [1000, 1000, 800, 1000, 1000, 800, 360, 360]
        assert [each.received_bytes for each in nursery.seen] == [sum(sizes[: i + 1]) for i in range(len(sizes))]
        assert all((each.total_bytes, each.num_donors) == (TOTAL, 1) for each in nursery.seen)
        assert nursery.seen[-1].left_s == 0

    play(scenario)


def test_all_who_have_the_same_give_of_it() -> None:
    async def scenario(nursery: Nursery) -> None:
        for peer in DONORS[:3]:
            await nursery.donor(peer, snapshot())
        download = check_equal(await nursery.fetch(*DONORS[:3]), snapshot())
        assert download.received_bytes == TOTAL
        assert all(nursery.pieces_of(peer) >= 2 for peer in DONORS[:3])
        assert sum(nursery.pieces_of(peer) for peer in DONORS) == 8, "no piece was asked for twice"

    play(scenario)


def test_a_fragment_comes_from_those_who_have_it() -> None:
    async def scenario(nursery: Nursery) -> None:
        mixed = Snapshot(30, (fragment(0, 0), fragment(1, seed=5)))
        await nursery.donor(FIRST, snapshot())
        await nursery.donor(SECOND, mixed)
        await nursery.donor(THIRD, snapshot(seed=7))
        check_equal(await nursery.fetch(*DONORS[:3]), snapshot())
        assert nursery.pieces_of(SECOND) in range(1, 7), "it has the first fragment alone"
        assert not nursery.pieces_of(THIRD)

    play(scenario)


@pytest.mark.parametrize("dying", [(FIRST,), (SECOND,), (FIRST, THIRD)])
def test_donors_that_die_cost_only_what_they_had_in_flight(dying: tuple[Any, ...]) -> None:
    async def scenario(nursery: Nursery) -> None:
        def dies(peer: Any, method: str, request: bytes, reply: bytes) -> bytes:
            if method == PIECE and nursery.pieces_of(peer) == 2:
                nursery.crash(peer)
            return reply

        for peer in DONORS[:3]:
            change: Change | None = functools.partial(dies, peer) if peer in dying else None
            await nursery.donor(peer, snapshot(), change)
        download = check_equal(await nursery.fetch(*DONORS[:3]), snapshot())
        assert all(nursery.world.network.find(peer) is None for peer in dying), "the fault fired"
        assert download.donor not in dying
        assert download.received_bytes == TOTAL, "no byte came twice"
        received = [each.received_bytes for each in nursery.seen]
        assert received == sorted(set(received))

    play(scenario)


def test_what_came_in_a_download_that_failed_is_not_fetched_again() -> None:
    async def scenario(nursery: Nursery) -> None:
        def dies(method: str, request: bytes, reply: bytes) -> bytes:
            if method == PIECE and nursery.pieces_of(FIRST) == 4:
                nursery.crash(FIRST)
            return reply

        await nursery.donor(FIRST, snapshot(), dies)
        assert isinstance(await nursery.fetch(FIRST), NoDownload)
        came = nursery.seen[-1].received_bytes
        assert came >= 2000
        await nursery.donor(SECOND, snapshot())
        download = check_equal(await nursery.fetch(SECOND), snapshot())
        assert download.received_bytes == TOTAL - came

    play(scenario)


def test_a_donor_that_is_slow_gives_less_and_does_not_hold_the_end() -> None:
    async def scenario(nursery: Nursery) -> None:
        for peer in DONORS[:3]:
            await nursery.donor(peer, snapshot())
        download = check_equal(await nursery.fetch(*DONORS[:3]), snapshot())
        assert nursery.pieces_of(FIRST) == 1, "as many as it may have in flight"
        assert nursery.pieces_of(SECOND) + nursery.pieces_of(THIRD) == 8, "they were asked for its piece as well"
        assert nursery.world.network._loop.time() < 20, "the slow one would have taken longer"
        assert download.received_bytes == TOTAL

    play(scenario, **{FIRST: Line(up_bytes_per_s=50.0)})


def test_a_donor_that_is_paused_does_not_hold_the_end() -> None:
    async def scenario(nursery: Nursery) -> None:
        def pauses(method: str, request: bytes, reply: bytes) -> bytes:
            if method == PIECE:
                nursery.world.network.pause(FIRST)
            return reply

        await nursery.donor(FIRST, snapshot(), pauses)
        await nursery.donor(SECOND, snapshot())
        check_equal(await nursery.fetch(FIRST, SECOND), snapshot())
        assert nursery.world.network._loop.time() < 5

    play(scenario)


def test_a_donor_that_lies_in_one_bit_is_left_out_and_the_piece_fetched_elsewhere() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot(), spoilt)
        await nursery.donor(SECOND, snapshot())
        download = check_equal(await nursery.fetch(FIRST, SECOND), snapshot())
        assert download.donor == SECOND
        assert nursery.pieces_of(FIRST) == 1, "then it was found out"
        assert download.received_bytes == TOTAL + 1000
        assert nursery.seen[-1].received_bytes == TOTAL, "what was of no use is no progress"

    play(scenario)


def test_a_donor_whose_head_lies_of_pieces_spoils_nobody_elses() -> None:
    """Its fragments are named as others' are, so what those give would not be what it says."""

    async def scenario(nursery: Nursery) -> None:
        def lies(method: str, request: bytes, reply: bytes) -> bytes:
            if method == PIECE:
                return reply
            head = msgpack.unpackb(reply)
            head[2][0][4] = bytes(len(head[2][0][4]))
            return bytes(msgpack.packb(head))

        await nursery.donor(FIRST, snapshot(), lies)
        await nursery.donor(SECOND, snapshot())
        assert check_equal(await nursery.fetch(FIRST, SECOND), snapshot()).donor == SECOND

    play(scenario)


def test_if_the_state_is_gone_what_has_not_moved_on_is_kept() -> None:
    async def scenario(nursery: Nursery) -> None:
        moved = Snapshot(40, (fragment(0, 0), fragment(1, seed=1, round=4)))

        def dies(method: str, request: bytes, reply: bytes) -> bytes:
            if method == PIECE and nursery.pieces_of(FIRST) == 7:
                nursery.crash(FIRST)
            return reply

        await nursery.donor(FIRST, snapshot(), dies)
        serve = await nursery.donor(SECOND, snapshot(seed=8))
        nursery.world.network._loop.call_later(0.1, serve, moved)
        download = check_equal(await nursery.fetch(FIRST, SECOND), moved)
        assert nursery.world.network.find(FIRST) is None, "the fault fired"
        assert download.received_bytes < TOTAL + 2000, "all of the first fragment was kept"

    play(scenario)


def test_a_donor_that_comes_to_the_targets_round_later_helps() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot(seed=1, round=4))
        serve = await nursery.donor(SECOND, snapshot(seed=0, round=3))
        nursery.world.network._loop.call_later(0.5, serve, snapshot(seed=1, round=4))
        check_equal(await nursery.fetch(FIRST, SECOND), snapshot(seed=1, round=4))
        assert nursery.pieces_of(SECOND) > 0

    play(scenario, **{JOINER: Line(down_bytes_per_s=1000.0)})


def test_a_donor_that_is_busy_is_left_in_peace_for_a_while() -> None:
    async def scenario(nursery: Nursery) -> None:
        def busy(method: str, request: bytes, reply: bytes) -> bytes:
            if method == PIECE and nursery.pieces_of(FIRST) <= 3:
                raise ValueError("busy")
            return reply

        await nursery.donor(FIRST, snapshot(), busy)
        download = check_equal(await nursery.fetch(FIRST), snapshot())
        assert download.received_bytes == TOTAL
        assert nursery.pieces_of(FIRST) == 8 + 3

    play(scenario)


def test_more_donors_than_are_asked_at_once_take_the_places_of_those_that_fail() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        gone = [peer_id(number) for number in range(50, 70)]
        check_equal(await nursery.fetch(*gone, FIRST), snapshot())

    play(scenario)


def test_a_snapshot_is_kept_as_long_as_somebody_fetches_it() -> None:
    async def scenario(nursery: Nursery) -> None:
        change = await nursery.donor(FIRST, snapshot())
        check_equal(await nursery.fetch(FIRST), snapshot())
        change(snapshot(seed=1))

        async def kept() -> bool:
            nursery.donors[FIRST].forget_idle()
            question = to_wire(Ask(snapshot().digests[0], 0))
            transport = nursery.peers[JOINER].transport
            return bool(await transport.call(FIRST, PIECE, question, timeout_s=5.0, max_reply_bytes=1 << 20))

        assert await kept()
        await asyncio.sleep(50)
        assert await kept(), "asked for 50 s ago"
        await asyncio.sleep(70)
        assert not await kept()

    play(scenario)


# -- what is here already ---------------------------------------------------------------------------------------------


def test_of_a_state_that_differs_in_one_fragment_that_one_alone_is_fetched() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        have = Snapshot(10, (fragment(0, 0, round=2), fragment(1, seed=4)))
        download = check_equal(await nursery.fetch(FIRST, have=have), snapshot())
        assert download.received_bytes == 720
        assert nursery.peers[JOINER].transport.received_bytes < 720 + 1500, "a head, and what is around it"
        assert nursery.seen[-1].total_bytes == 720

    play(scenario)


def test_nothing_is_fetched_of_what_is_here() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        download = check_equal(await nursery.fetch(FIRST, have=snapshot(step=5, round=1)), snapshot())
        assert (download.received_bytes, download.donor) == (0, FIRST)

    play(scenario)


def test_of_a_fragment_that_differs_only_pieces_that_differ_are_fetched() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        old = fragment(0, 0)
        anchor_N = old.anchor_N.clone()
        anchor_N[300] += 1.0
        have = Snapshot(10, (FragmentState.of(2, anchor_N, old.outer), fragment(1, 0)))
        assert check_equal(await nursery.fetch(FIRST, have=have), snapshot()).received_bytes == 1000

    play(scenario)


def test_a_state_of_another_rule_is_of_no_use_and_no_harm() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        plain = tuple(
            FragmentState.of(each.round, each.anchor_N, replace(each.outer, buffers_N=()))
            for each in snapshot().fragments
        )
        assert check_equal(await nursery.fetch(FIRST, have=Snapshot(10, plain)), snapshot()).received_bytes == TOTAL

    play(scenario)


# -- the newest -------------------------------------------------------------------------------------------------------


def test_the_newest_is_the_highest_round_of_every_fragment() -> None:
    async def scenario(nursery: Nursery) -> None:
        first = Snapshot(30, (fragment(0, 1, round=3), fragment(1, 1, round=5)))
        second = Snapshot(40, (fragment(0, 2, round=4), fragment(1, 2, round=3)))
        await nursery.donor(FIRST, first)
        await nursery.donor(SECOND, second)
        newest = Snapshot(40, (second.fragments[0], first.fragments[1]))
        check_equal(await nursery.downloader.fetch_newest([FIRST, SECOND]), newest)

    play(scenario)


def test_of_one_round_it_is_what_most_have_and_then_the_digest() -> None:
    async def scenario(nursery: Nursery) -> None:
        for peer, seed in zip(DONORS, (1, 2, 2, 3, 3), strict=True):
            await nursery.donor(peer, snapshot(seed=seed))
        by_digest = [
            max((fragment(number, seed) for seed in (2, 3)), key=lambda each: each.digest) for number in (0, 1)
        ]
        check_equal(await nursery.downloader.fetch_newest(DONORS), Snapshot(30, tuple(by_digest)))
        # With one more that has it, which is this worker itself.
        check_equal(await nursery.downloader.fetch_newest(DONORS, snapshot(seed=2)), snapshot(seed=2))

    play(scenario)


def test_what_only_this_worker_has_is_the_newest_as_well() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        mine = Snapshot(50, (fragment(0, 7, round=9), fragment(1, 7, round=1)))
        download = await nursery.downloader.fetch_newest([FIRST], mine)
        check_equal(download, Snapshot(50, (mine.fragments[0], snapshot().fragments[1])))
        assert nursery.downloader is not None
        assert isinstance(await nursery.downloader.fetch_newest([SECOND], mine), NoDownload), "there is nobody"

    play(scenario)


def test_heads_are_of_those_who_answer() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        await nursery.donor(SECOND, snapshot(), layout="other")
        heads = await nursery.downloader.heads([FIRST, SECOND, THIRD, peer_id(77)])
        assert list(heads) == [FIRST]
        assert heads[FIRST].rounds == (3, 3)
        assert heads[FIRST].name == snapshot().name

    play(scenario)


# -- bad donors -------------------------------------------------------------------------------------------------------


def head_with(layout: Any = None, step: Any = None, fragments: Any = None, **fields: Any) -> Change:
    """A head in which all fragments have these fields, or which has other things altogether."""
    names = ["round", "num_steps", "digest", "counted", "pieces"]

    def change(method: str, request: bytes, reply: bytes) -> bytes:
        if method != HEAD:
            return reply
        head = msgpack.unpackb(reply)
        for each in head[2]:
            for name, value in fields.items():
                each[names.index(name)] = value
        others = (layout, step, fragments)
        return bytes(msgpack.packb([old if new is None else new for old, new in zip(head, others, strict=True)]))

    return change


def spoilt(method: str, request: bytes, reply: bytes) -> bytes:
    return bytes([reply[0] ^ 1, *reply[1:]]) if method == PIECE else reply


def pieces_as(change: Callable[[bytes], bytes]) -> Change:
    return lambda method, request, reply: change(reply) if method == PIECE else reply


BAD_DONORS: dict[str, tuple[Change, str]] = {
    "another model": (head_with(layout="other"), "trains another model"),
    "fragments": (head_with(fragments=[]), "wrong number of fragments or pieces"),
    "pieces": (head_with(pieces=bytes(16)), "wrong number of fragments or pieces"),
    "another digest": (head_with(digest="0" * 16), "does not have this state any more"),
    "outer steps": (head_with(num_steps=99), "does not have the promised digest"),
    "counted": (head_with(counted=["x"]), "does not have the promised digest"),
    "text for peers": (head_with(counted="ab"), "malformed head: Expected `array`, got `str`"),
    "nested without end": (
        head_with(layout=functools.reduce(lambda inner, _: [inner], range(900), 0)),
        "malformed head",
    ),
    "no peers": (head_with(counted=1), "malformed head"),
    "negative round": (head_with(round=-1), "malformed head"),
    "step": (head_with(step="30"), "malformed head"),
    "no list": (head_with(fragments=5), "malformed head"),
    "a fragment too short": (head_with(fragments=[[3, 4, "digest", []]]), "malformed head"),
    "no head": (lambda method, request, reply: b"\xc1", "malformed head"),
    "short piece": (pieces_as(lambda reply: reply[:-1]), "999 bytes, expected 1000"),
    "empty piece": (pieces_as(lambda reply: b""), "does not have this state any more"),
    "long piece": (pieces_as(lambda reply: reply + b"x"), "1001 bytes, allowed are 1000"),
    "spoilt piece": (spoilt, "does not have the promised digest"),
}


@pytest.mark.parametrize("fault", BAD_DONORS)
def test_a_bad_donor_is_found_out_and_the_next_one_asked(fault: str) -> None:
    change, match = BAD_DONORS[fault]

    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot(), change)
        refusal = await nursery.fetch(FIRST)
        assert isinstance(refusal, NoDownload)
        assert match in refusal.why
        assert refusal.other_model == (fault == "another model")
        await nursery.donor(SECOND, snapshot())
        check_equal(await nursery.fetch(FIRST, SECOND), snapshot())

    play(scenario)


@pytest.mark.parametrize("where", ["anchor", "momentum"])
def test_values_that_are_not_finite_are_not_taken_even_with_the_right_digest(where: str) -> None:
    async def scenario(nursery: Nursery) -> None:
        good = snapshot()
        first = good.fragments[0]
        bad_N = first.anchor_N.clone()
        bad_N[5] = float("nan")
        outer = replace(first.outer, buffers_N=(bad_N,)) if where == "momentum" else first.outer
        bad = FragmentState.of(first.round, bad_N if where == "anchor" else first.anchor_N, outer)
        await nursery.donor(FIRST, Snapshot(30, (bad, good.fragments[1])))
        refusal = await nursery.fetch(FIRST)
        assert isinstance(refusal, NoDownload)
        assert "not finite" in refusal.why

    play(scenario)


def test_nobody_can_give() -> None:
    async def scenario(nursery: Nursery) -> None:
        assert await nursery.fetch() == NoDownload("there is no donor")
        await nursery.donor(FIRST, None)
        refusal = await nursery.fetch(FIRST, SECOND, peer_id(77))
        assert isinstance(refusal, NoDownload)
        assert "no state to give yet" in refusal.why
        assert "nobody there" in refusal.why
        assert refusal.why.count(";") == 2

    play(scenario)
