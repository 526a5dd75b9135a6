"""Which donors are far from most, where no two hold the same; and what a download makes of it."""

import asyncio
import functools
from collections.abc import Mapping, Sequence

import msgpack
import pytest
import torch
from torch import Tensor

from decentral.errors import CallRefused
from decentral.outer.rule import OuterState
from decentral.state.download.comparison import drawn_positions, far_off
from decentral.state.download.downloader import Download, NoDownload
from decentral.state.download.pieces import HEAD, PIECE, VALUES, AskValues, Positions
from decentral.state.snapshot import FragmentState, Snapshot, from_bytes, to_bytes
from decentral.swarm.message import to_wire
from decentral.types import PeerId
from tests.unit.state.nursery import (
    DONORS,
    FIRST,
    JOINER,
    NUMELS,
    SECOND,
    THIRD,
    Nursery,
    check_equal,
    play,
    snapshot,
    transport_of,
)

SECRET = b"nobody else knows"


def said(*scales: float, numel: int = 200, spread: float = 0.05) -> list[list[Tensor]]:
    """Of so many donors an anchor times a scale, and a momentum; each a little different."""
    dice = torch.Generator().manual_seed(0)
    anchor_K, momentum_K = torch.randn(numel, generator=dice), torch.randn(numel, generator=dice)
    around = lambda values_K: values_K + spread * torch.randn(numel, generator=dice)  # noqa: E731
    return [[scale * around(anchor_K), around(momentum_K)] for scale in scales]


def test_honest_states_are_not_far_from_each_other() -> None:
    for number in range(1, 9):
        assert far_off(said(*number * [1.0])) == []
        assert far_off(said(*number * [1.0], spread=0.0)) == []


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0, 1e30])
def test_a_minority_is_far_whatever_it_says(scale: float) -> None:
    assert far_off(said(1.0, scale, 1.0)) == [1]
    assert far_off(said(scale, 1.0, 1.0, 1.0)) == [0]
    assert far_off(said(1.0, scale, scale, 1.0, 1.0)) == [1, 2]
    assert far_off(said(scale, scale, 1.0, 1.0, scale, 1.0, 1.0, 1.0)) == [0, 1, 4]


def test_liars_that_agree_to_the_bit_do_not_make_the_honest_far() -> None:
    states = said(1.0, -1.0, 1.0, 1.0, -1.0)
    states[4] = states[1]
    assert far_off(states) == [1, 4]
    states[1] = states[4] = states[0]  # or hold what an honest one does
    assert far_off(states) == [2, 3], "three of five hold the same: all else is far, and what is taken is honest"


def test_with_nobody_to_decide_nobody_is_far() -> None:
    assert far_off(said(1.0, -1.0)) == []
    assert far_off(said(1.0, 1.0, -1.0, -1.0)) == [], "two against two"


def test_any_tensor_can_tell() -> None:
    states = said(1.0, 1.0, 1.0, 1.0)
    states[2][1] = 50 * states[2][1]
    assert far_off(states) == [2]


def test_one_is_left_though_all_are_far_in_something() -> None:
    states = said(1.0, 1.0, 1.0)
    states = [[*each, *said(1.0, 1.0, 1.0)[number]] for number, each in enumerate(states)]
    for number, times in enumerate((9.0, 5.0, 7.0)):
        states[number][number] = times * states[number][number]
    assert far_off(states) == [0, 2]


def test_positions_are_within_and_change_with_the_secret() -> None:
    positions = drawn_positions((10**9, 50, 0), SECRET)
    assert [len(each) for each in positions] == [1365, 50, 0]
    assert positions[1] == list(range(50))
    assert positions[0] == sorted({position for position in positions[0] if 0 <= position < 10**9})
    assert drawn_positions((10**9, 50, 0), SECRET) == positions != drawn_positions((10**9, 50, 0), b"another")


# -- downloads --------------------------------------------------------------------------------------------------------


def near(number: int, *, times: float = 1.0) -> Snapshot:
    """What an honest worker holds: nearly the same as all others; its anchors times something if it lies."""
    fragments = []
    for fragment in snapshot().fragments:
        dice = torch.Generator().manual_seed(number)
        moved = [values_N + 0.01 * torch.randn(values_N.numel(), generator=dice) for values_N in fragment.tensors]
        outer = OuterState(tuple(moved[1:]), fragment.outer.num_steps, fragment.outer.counted)
        fragments.append(FragmentState.of(fragment.round, times * moved[0], outer))
    return Snapshot(30, tuple(fragments))


async def honest(nursery: Nursery, *peers: PeerId) -> Mapping[PeerId, Snapshot]:
    states = {peer: near(number) for number, peer in enumerate(peers)}
    for peer, state in states.items():
        await nursery.donor(peer, state)
    return states


def taken(download: Download | NoDownload, states: Mapping[PeerId, Snapshot], *passed_by: PeerId) -> Download:
    """A download of what its donor has."""
    assert isinstance(download, Download)
    assert download.passed_by == passed_by
    return check_equal(download, states[download.donor])


def test_the_first_donor_is_taken_if_all_are_honest() -> None:
    async def scenario(nursery: Nursery) -> None:
        states = await honest(nursery, *DONORS)
        download = taken(await nursery.fetch(*DONORS), states)
        assert (download.donor, download.num_compared) == (FIRST, 4)
        assert all(nursery.asked.count((peer, VALUES)) == 1 for peer in DONORS)

    play(scenario, SECRET)


def test_a_state_that_is_far_from_most_is_passed_by_before_a_byte_of_it_is_fetched() -> None:
    async def scenario(nursery: Nursery) -> None:
        states = await honest(nursery, SECOND, *DONORS[3:])
        for liar in (FIRST, THIRD):
            await nursery.donor(liar, near(7, times=-1.0))
        download = taken(await nursery.fetch(*DONORS), states, FIRST, THIRD)
        assert (download.donor, download.num_compared) == (SECOND, 4)
        assert nursery.pieces_of(FIRST) == nursery.pieces_of(THIRD) == 0

    play(scenario, SECRET)


def test_where_all_hold_the_same_nobody_is_asked_for_values() -> None:
    async def scenario(nursery: Nursery) -> None:
        await honest(nursery, SECOND, *DONORS[3:])
        await nursery.donor(FIRST, near(7, times=-1.0))
        download = taken(await nursery.fetch(*DONORS), {FIRST: near(7, times=-1.0)})
        assert (download.donor, download.num_compared) == (FIRST, None)
        assert VALUES not in {method for _, method in nursery.asked}

    play(scenario)


def test_with_fewer_than_three_the_first_is_taken_and_that_is_said() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, near(7, times=-1.0))
        states = {FIRST: near(7, times=-1.0), **await honest(nursery, SECOND)}
        for donors in ((FIRST,), (FIRST, SECOND)):
            download = taken(await nursery.fetch(*donors), states)
            assert (download.donor, download.num_compared) == (FIRST, 0)

    play(scenario, SECRET)


def test_a_donor_that_shows_other_values_than_it_gives_is_found_out() -> None:
    async def scenario(nursery: Nursery) -> None:
        states = await honest(nursery, *DONORS[1:])

        def shows(method: str, request: bytes, reply: bytes) -> bytes:
            """What an honest worker would, in position of what it has named."""
            if method != VALUES:
                return reply
            tensors = [values_N for fragment in near(8).fragments for values_N in fragment.tensors]
            return b"".join(bytes(to_bytes(values_N)) for values_N in tensors)

        await nursery.donor(FIRST, near(8, times=-1.0), shows)
        download = taken(await nursery.fetch(*DONORS), states, FIRST)
        assert download.donor == SECOND
        assert nursery.pieces_of(FIRST) == 8, "all of it had come"

    play(scenario, SECRET)


@pytest.mark.parametrize("reply", [b"", b"1", b"\xff\xff\xff\xff" * 1580, None])
def test_a_donor_that_shows_nothing_of_use_is_no_donor(reply: bytes | None) -> None:
    async def scenario(nursery: Nursery) -> None:
        states = await honest(nursery, *DONORS[1:])

        def shows(method: str, request: bytes, said: bytes) -> bytes:
            if method == VALUES and reply is None:
                raise ValueError("I do not tell")
            return reply or b"" if method == VALUES else said

        await nursery.donor(FIRST, near(0), shows)
        download = taken(await nursery.fetch(*DONORS), states)
        assert (download.donor, download.num_compared) == (SECOND, 3)

    play(scenario, SECRET)


def test_a_donor_that_hangs_holds_nobody_up_for_long() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, near(9), head_s=1e6)
        states = await honest(nursery, *DONORS[1:])
        download = taken(await nursery.fetch(*DONORS), states)
        assert (download.donor, download.num_compared) == (SECOND, 3)
        assert asyncio.get_running_loop().time() < 5

    play(scenario, SECRET)


def test_liars_that_are_quick_do_not_shut_out_those_that_have_digests_to_make() -> None:
    async def scenario(nursery: Nursery) -> None:
        for liar in (FIRST, SECOND):
            await nursery.donor(liar, near(7, times=-1.0))
        states = {peer: near(number) for number, peer in enumerate(DONORS[2:])}
        for head_s, (peer, state) in enumerate(states.items(), 8):
            await nursery.donor(peer, state, head_s=head_s)
        download = taken(await nursery.fetch(*DONORS), states, FIRST, SECOND)
        assert (download.donor, download.num_compared) == (THIRD, 4)

    play(scenario, SECRET)


def test_donors_are_compared_anew_if_the_one_that_was_taken_dies() -> None:
    async def scenario(nursery: Nursery) -> None:
        def dies(peer: PeerId, method: str, request: bytes, reply: bytes) -> bytes:
            if method == PIECE and nursery.pieces_of(peer) == 3:
                nursery.crash(peer)
            return reply

        await nursery.donor(FIRST, near(9), functools.partial(dies, FIRST))
        await nursery.donor(SECOND, near(7, times=-1.0))
        states = await honest(nursery, *DONORS[2:])
        download = taken(await nursery.fetch(*DONORS), states, SECOND)
        assert download.donor in DONORS[2:]
        assert nursery.asked.count((THIRD, VALUES)) == 2

    play(scenario, SECRET)


# -- what a donor answers ---------------------------------------------------------------------------------------------


def test_a_donor_gives_the_values_at_positions_of_all_tensors() -> None:
    async def scenario(nursery: Nursery) -> None:
        await nursery.donor(FIRST, snapshot())
        call = transport_of(nursery.peers[JOINER]).call
        limits = {"timeout_s": 5.0, "max_reply_bytes": 1000}
        await call(FIRST, HEAD, b"", timeout_s=5.0, max_reply_bytes=100_000)
        positions = ((5, 699), (0,))

        async def ask(digests: Sequence[str]) -> bytes:
            named = tuple(Positions(digest, at) for digest, at in zip(digests, positions, strict=True))
            reply: bytes = await call(FIRST, VALUES, to_wire(AskValues(named)), **limits)
            return reply

        parts = zip(snapshot().fragments, positions, strict=True)
        expected = torch.cat([values_N[list(at)] for state, at in parts for values_N in state.tensors])
        assert torch.equal(from_bytes(bytearray(await ask(snapshot().digests))), expected)
        assert await ask((snapshot().digests[0], "0" * 16)) == b""
        assert await call(FIRST, VALUES, to_wire(AskValues(())), **limits) == b""
        digest = snapshot().digests[1]
        for wrong in ([[[digest, [NUMELS[1]]]]], [[[digest, [-1]]]], [[[digest, ["0"]]]], [[[5, [0]]]], [[digest]], []):
            with pytest.raises(CallRefused):
                await call(FIRST, VALUES, msgpack.packb(wrong), **limits)

    play(scenario)
