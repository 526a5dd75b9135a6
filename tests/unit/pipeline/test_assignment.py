import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.pipeline.assignment import Member, appointed, neediest
from decentral.types import PeerId

NUM_STAGES = 4


def member(
    peer: str, holds: Iterable[int] = (), takes: Iterable[int] = (), stored: Iterable[int] = (), queue: int = 0
) -> Member:
    return Member(PeerId(peer), frozenset(holds), frozenset(takes), frozenset(stored), queue)


some = st.frozensets(st.integers(0, NUM_STAGES), max_size=3)
members_lists = st.lists(
    st.builds(
        Member,
        peer=st.text("abcdef", min_size=1, max_size=4).map(PeerId),
        holds=some,
        takes=st.just(frozenset()) | some,
        stored=some,
        queue=st.integers(0, 3),
    ),
    max_size=12,
    unique_by=lambda m: m.peer,
)


def lost_of(members: Iterable[Member]) -> list[int]:
    held = frozenset[int]().union(*(m.holds for m in members))
    return [stage for stage in range(NUM_STAGES + 1) if stage not in held]


def test_joiners_fill_the_stages_one_after_the_other() -> None:
    members: list[Member] = []
    for i in range(2 * (NUM_STAGES + 1)):
        stage = neediest(members, NUM_STAGES, 2)
        assert stage is not None
        members.append(member(f"p{i}", [stage]))
    assert [min(m.holds) for m in members] == [*range(NUM_STAGES + 1)] * 2
    assert neediest(members, NUM_STAGES, 2) is None
    assert neediest(members, NUM_STAGES, 0) == 0
    assert neediest(members, NUM_STAGES, 3) == 0


def test_what_somebody_takes_is_not_taken_twice() -> None:
    members = [member("a", [0]), member("b", takes=[1]), member("c", takes=[1, 2])]
    assert neediest(members, 3, 0) == 3
    assert neediest([*members, member("d", [3])], 3, 1) is None


def test_a_spare_fills_no_stage() -> None:
    assert neediest([member("a", [0]), member("b"), member("c", stored=[1])], 2, 1) == 1


def test_among_equals_the_longest_queue_then_the_head() -> None:
    members = [member(f"p{stage}", [stage], queue=queue) for stage, queue in enumerate([2, 3, 3, 1, 0])]
    assert neediest(members, NUM_STAGES, 0) == 1
    assert neediest([member(f"p{stage}", [stage], queue=4) for stage in range(5)], NUM_STAGES, 0) == 0
    # Two replicas with three each need help more than one with five beside an idle one.
    pairs = [member("a", [1], queue=5), member("b", [1]), member("c", [2], queue=3), member("d", [2], queue=3)]
    assert neediest([*pairs, *(member(f"h{i}", [0]) for i in range(3))], 2, 0) == 2


def test_too_few_replicas_come_before_a_long_queue() -> None:
    members = [member("a", [0]), member("b", [1], queue=100), member("c", [1], queue=100), member("d", [2])]
    assert neediest(members, 2, 0) == 0


def test_who_takes_a_stage_keeps_it_also_if_these_are_two() -> None:
    members = [member("a", takes=[1, 2]), member("b"), member("c", [0])]
    assert appointed(members, [1, 2, 3]) == {1: "a", 2: "a", 3: "b"}


def test_a_spare_with_a_checkpoint_comes_first() -> None:
    spares = [member(f"s{i}") for i in range(6)]
    for i in range(6):
        crowd = [*spares[:i], member(f"s{i}", stored=[2]), *spares[i + 1 :]]
        assert appointed(crowd, [2]) == {2: f"s{i}"}
    # Even where a lower stage could have had it.
    assert appointed([member("a"), member("b", stored=[3])], [1, 3]) == {1: "a", 3: "b"}


def test_nobody_is_appointed_to_what_it_cannot_hold() -> None:
    unfit = replace(member("a", stored=[0]), unfit=frozenset({0}))
    assert appointed([unfit, member("b")], [0]) == {0: "b"}
    assert appointed([unfit], [0, 1]) == {1: "a"}
    assert appointed([replace(member("a", takes=[0]), unfit=frozenset({0}))], [0]) == {}
    holders = [replace(member(peer, [1]), unfit=frozenset({0})) for peer in "abc"]
    assert appointed([*holders, member("d", [2]), member("e", [2])], [0])[0] in {"d", "e"}


def test_spares_are_spread_by_the_stage() -> None:
    spares = [member(f"s{i}") for i in range(8)]
    firsts = Counter(appointed(spares, [stage])[stage] for stage in range(200))
    assert len(firsts) == 8


def test_a_replica_moves_from_where_most_are() -> None:
    members = [member("a", [1]), member("b", [1]), member("c", [2]), member("d", [2]), member("e", [2])]
    assert appointed(members, [3])[3] in {"c", "d", "e"}
    # One can leave stage 1 and two can leave stage 2; after that nobody can.
    taken = appointed(members, [0, 3, 4, 5])
    assert sorted(taken) == [0, 3, 4]
    left = [m for m in members if m.peer not in taken.values()]
    assert sorted(min(m.holds) for m in left) == [1, 2]


def test_the_last_holder_of_a_stage_stays() -> None:
    assert appointed([member("a", [1]), member("b", [2])], [3]) == {}
    # It could leave stage 1, not stage 2.
    assert appointed([member("a", [1]), member("b", [1, 2])], [3]) == {3: "a"}
    assert appointed([member("b", [1, 2]), member("c", [1], takes=[2])], [3]) == {}


def test_nobody_at_all() -> None:
    assert appointed([], [0, 1]) == {}
    assert appointed([member("a")], []) == {}


@given(members=members_lists, data=st.data())
def test_all_who_see_the_same_appoint_the_same(members: list[Member], data: st.DataObject) -> None:
    lost = lost_of(members)
    shuffled = data.draw(st.permutations(members))
    assert appointed(shuffled, data.draw(st.permutations(lost))) == appointed(members, lost)
    assert neediest(shuffled, NUM_STAGES, 2) == neediest(members, NUM_STAGES, 2)


@given(members=members_lists)
def test_appointments_keep_every_stage_and_come_in_order(members: list[Member]) -> None:
    lost = lost_of(members)
    chosen = appointed(members, lost)
    by_peer = {m.peer: m for m in members}
    new = {stage: by_peer[peer] for stage, peer in chosen.items() if stage not in by_peer[peer].takes}
    assert set(chosen) <= set(lost)
    assert len({m.peer for m in new.values()}) == len(new)
    assert not any(m.takes for m in new.values())
    # Every stage that had a holder has one still.
    left = [m for m in members if m not in new.values()]
    assert lost_of(left) == [stage for stage in lost_of(left) if stage in lost]
    for stage in lost:
        takers = {m.peer for m in members if stage in m.takes}
        spares = [m for m in members if not m.holds and not m.takes and m not in new.values()]
        if takers:
            assert chosen[stage] in takers
        elif stage not in chosen or new[stage].holds:
            # Nobody, or one who had to move: no spare was left.
            assert spares == []
        elif stage not in new[stage].stored:
            assert not any(stage in m.stored for m in spares)
    # Who is left out has no one: another who could move would leave a stage empty.
    if len(chosen) < len(lost):
        assert all(
            lost_of(m for m in left if m is not leaver) != lost_of(left)
            for leaver in left
            if leaver.holds and not leaver.takes
        )


@pytest.mark.parametrize("num_lost", [1, 2, 3])
def test_few_change_place_when_a_spare_is_seen_by_some_only(num_lost: int) -> None:
    spares = [member(f"s{i}") for i in range(12)]
    lost = range(num_lost)
    seen = appointed(spares, lost)
    for unseen in itertools.islice(spares, 12):
        others = appointed([m for m in spares if m is not unseen], lost)
        if unseen.peer not in seen.values():
            assert others == seen
