"""Which machine should have how many blocks, against all that there could be."""

import itertools
import random

import pytest

from decentral.errors import FrameError
from decentral.pipeline.balance import WORTH, Machine, next_cut, shares, slowest
from decentral.pipeline.moves import Follow
from decentral.pipeline.placement import Placement, num_stages_of, number_of
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId

A, B, C, D = (PeerId(name) for name in "abcd")


def placed(number: int, **counts: int) -> Placement:
    return Placement(number, (0, *itertools.accumulate(counts.values())), tuple(map(PeerId, counts)))


def counts(cut: Placement | None) -> dict[str, int]:
    assert cut is not None
    cut.check()
    return {str(peer): stop - first for peer, (first, stop) in zip(cut.peers, cut.spans, strict=True)}


def test_nothing_is_faster_than_the_shares() -> None:
    """By trying all: five machines, drawn speeds and rooms."""
    draw = random.Random(7)
    for _ in range(50):
        machines = [Machine(PeerId(str(n)), draw.randint(0, 5), draw.choice([1.0, 1.5, 2.0, 4.0])) for n in range(5)]
        found = shares(8, machines)
        options = itertools.product(*(range(machine.room + 1) for machine in machines))
        times = [
            max(count * machine.block_s for count, machine in zip(option, machines, strict=True))
            for option in options
            if sum(option) == 8
        ]
        if not times:
            assert found is None
            continue
        assert found is not None
        assert sum(found.values()) == 8
        assert slowest(found, machines) == min(times)


def test_a_machine_three_times_slower_gives_blocks_away() -> None:
    machines = [Machine(A, 12, 1.0), Machine(B, 12, 3.0), Machine(C, 12, 1.0)]
    assert counts(next_cut(placed(4, a=4, b=4, c=4), machines, 12, most=9)) == {"a": 6, "b": 1, "c": 5}


@pytest.mark.parametrize(("slower", "moves"), [(1.1, False), (1.6, True)])
def test_what_is_hardly_slower_moves_nothing(slower: float, moves: bool) -> None:
    machines = [Machine(A, 12, 1.0), Machine(B, 12, slower), Machine(C, 12, 1.0)]
    assert (next_cut(placed(1, a=4, b=4, c=4), machines, 12, most=9) is not None) == moves
    assert WORTH < 1


def test_no_more_blocks_move_at_once_than_fit_into_a_batch() -> None:
    machines = [Machine(A, 12, 1.0), Machine(B, 12, 9.0)]
    now, seen = placed(1, a=2, b=10), []
    while (new := next_cut(now, machines, 12, most=3)) is not None:
        seen.append(counts(new)["a"])
        now = new
    assert seen == [5, 8, 11]
    assert next_cut(placed(1, a=2, b=10), machines, 12, most=0) is None


def test_one_block_at_a_time_comes_from_one_side() -> None:
    machines = [Machine(A, 9, 4.0), Machine(B, 9, 1.0), Machine(C, 9, 4.0)]
    now = placed(1, a=4, b=1, c=4)
    for _ in range(4):
        new = next_cut(now, machines, 9, most=1)
        if new is None:
            break
        assert counts(new)["b"] == counts(now)["b"] + 1
        now = new
    assert counts(now)["b"] >= 4


def test_who_comes_takes_its_place_where_little_moves_and_is_taken_for_the_mean() -> None:
    machines = [Machine(A, 12, 1.0), Machine(B, 12, 1.0), Machine(C, 12, 1.0), Machine(D, 12)]
    new = next_cut(placed(1, a=4, b=4, c=4), machines, 12, most=9)
    assert sorted(counts(new).values()) == [3, 3, 3, 3]
    assert [peer for peer in counts(new) if peer != "d"] == ["a", "b", "c"]


def test_who_wants_to_leave_gives_all_away_at_once_if_others_have_room() -> None:
    now = placed(1, a=4, b=4)
    leaving = [Machine(A, 0, 1.0), Machine(B, 8, 1.0)]
    assert counts(next_cut(now, leaving, 8, most=0)) == {"b": 8}
    assert next_cut(now, [Machine(A, 0, 1.0), Machine(B, 7, 1.0)], 8, most=9) is None


def test_a_first_cut_goes_by_room() -> None:
    new = next_cut(Placement(), [Machine(A, 1), Machine(B, 9), Machine(C, 0)], 6, most=0)
    assert counts(new) == {"a": 1, "b": 5}
    assert new is not None
    assert (number_of(new.text), num_stages_of(new.text)) == (1, 2)


@pytest.mark.parametrize("text", ["", "x:1", "-1:0", "9" * 40, ":0,1"])
def test_a_cut_that_is_none_has_no_number(text: str) -> None:
    assert number_of(text) == 0


@pytest.mark.parametrize(
    "cut",
    [
        Placement(1, (0, 2, 2), (A, B)),
        Placement(1, (1, 2), (A,)),
        Placement(1, (0, 2), (A, B)),
        Placement(1, (0, 2, 3), (A, A)),
    ],
)
def test_a_cut_that_leaves_something_out_is_refused(cut: Placement) -> None:
    with pytest.raises(FrameError):
        from_wire(Follow, to_wire(Follow(cut)))
