import math
import random
from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.swarm.matching import (
    evaluator,
    group_of,
    leaders,
    middle_round,
    reducers,
    rendezvous,
    round_to_join,
    shards,
    stragglers,
)
from decentral.swarm.presence import Presence, State
from decentral.types import PeerId, SyncKey
from tests.support.groups import groups

keys = st.builds(SyncKey, round=st.integers(0, 1 << 40), fragment=st.integers(0, 64))
peer_lists = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6).map(PeerId), unique=True, max_size=12)
KEY = SyncKey(3, 0)


def member(peer: str, *, round_: int = 0, since: int = 0, round_s: float = 0.0) -> Presence:
    return Presence(PeerId(peer), "run", 1, State.TRAINING, round_, since, "", round_s)


@given(peers=peer_lists, key=keys, data=st.data())
def test_order_does_not_depend_on_the_order_of_the_input(
    peers: list[PeerId], key: SyncKey, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(peers))
    ranked = rendezvous("chair", key, tuple(peers))
    assert rendezvous("chair", key, tuple(shuffled)) == ranked
    assert sorted(ranked) == sorted(peers)


@given(peers=peer_lists.filter(bool), key=keys, data=st.data())
def test_a_loss_moves_nobody_else(peers: list[PeerId], key: SyncKey, data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(peers))
    left = tuple(peer for peer in peers if peer != lost)
    assert rendezvous("reduce", key, left) == tuple(p for p in rendezvous("reduce", key, tuple(peers)) if p != lost)


def test_purposes_rounds_and_fragments_rank_independently() -> None:
    peers = tuple(PeerId(f"peer-{i}") for i in range(10))
    orders = {
        rendezvous(purpose, SyncKey(round_, fragment), peers)
        for purpose in ("chair", "reduce", "evaluate")
        for round_ in range(3)
        for fragment in range(3)
    }
    assert len(orders) == 27


@pytest.mark.parametrize("purpose", ["chair", "reduce"])
def test_work_is_balanced_over_rounds(purpose: str) -> None:
    peers = tuple(PeerId(f"peer-{i}") for i in range(8))
    firsts = Counter(rendezvous(purpose, SyncKey(round_, 0), peers)[0] for round_ in range(1600))
    # Four standard deviations of a binomial draw around 200.
    assert set(firsts) == set(peers)
    assert all(abs(count - 200) < 53 for count in firsts.values())


def test_the_ranking_is_pinned() -> None:
    """Releases that rank differently would name different leaders: a change of it is a change of the protocol."""
    peers = tuple(PeerId(name) for name in ("ann", "bob", "cid", "dot"))
    assert rendezvous("chair", KEY, peers) == ("cid", "bob", "dot", "ann")


@given(peers=peer_lists, key=keys, data=st.data())
def test_the_senior_leader_first_and_equals_take_turns(peers: list[PeerId], key: SyncKey, data: st.DataObject) -> None:
    since = {peer: data.draw(st.integers(0, 3)) for peer in peers}
    members = [member(peer, since=since[peer]) for peer in data.draw(st.permutations(peers))]
    ranked = tuple(leaders(members, key))
    assert sorted(ranked) == sorted(peers)
    assert [since[peer] for peer in ranked] == sorted(since.values())
    turns = rendezvous("chair", key, tuple(peers))
    for first in range(4):
        assert [p for p in ranked if since[p] == first] == [p for p in turns if since[p] == first]


def test_a_newcomer_moves_nobody_ahead_of_it() -> None:
    members = [member(f"peer-{number}", since=number // 3) for number in range(9)]
    assert [*leaders([*members, member("newcomer", since=5)], KEY)] == [*leaders(members, KEY), "newcomer"]


@given(peers=peer_lists.filter(bool), key=keys, num_shards=st.integers(1, 12))
def test_each_shard_has_a_reducer_of_its_own(peers: list[PeerId], key: SyncKey, num_shards: int) -> None:
    chosen = reducers(tuple(peers), key, num_shards)
    assert len(chosen) == len(set(chosen)) == min(num_shards, len(peers))
    assert set(chosen) <= set(peers)


@given(peers=peer_lists.filter(bool), key=keys, data=st.data())
def test_one_member_evaluates(peers: list[PeerId], key: SyncKey, data: st.DataObject) -> None:
    chosen = evaluator(tuple(peers), key)
    assert chosen in peers
    assert evaluator(tuple(data.draw(st.permutations(peers))), key) == chosen


@given(
    numel=st.integers(0, 5_000_000),
    num_members=st.integers(1, 200),
    min_values=st.integers(1, 100_000),
    align=st.sampled_from([1, 7, 128, 4096]),
)
def test_shards_cover_everything_once(numel: int, num_members: int, min_values: int, align: int) -> None:
    ranges = shards(numel, num_members, min_values=min_values, align=align)
    assert 1 <= len(ranges) <= num_members
    assert ranges[0][0] == 0
    assert ranges[-1][1] == numel
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert all(start % align == 0 for start, _ in ranges)
    assert all(stop > start for start, stop in ranges) or numel == 0
    assert all(stop - start >= min_values for start, stop in ranges[:-1])


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), max_size=12),
    num_members=st.integers(1, 20),
    min_values=st.integers(1, 30),
)
def test_shards_leave_ranges_in_one_piece(lengths: list[tuple[int, int]], num_members: int, min_values: int) -> None:
    uncut, numel = [], 0
    for length, gap in lengths:
        uncut.append((numel, numel + length))
        numel += length + gap
    ranges = shards(numel, num_members, min_values=min_values, align=1, uncut=tuple(uncut))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == numel
    assert len(ranges) <= num_members
    assert all(start < stop for start, stop in ranges) or not numel
    cuts = {start for start, _ in ranges}
    assert not any(start < cut < stop for start, stop in uncut for cut in cuts)
    # Each end of a shard is moved by half of a range at most.
    longest = max((stop - start for start, stop in uncut), default=0)
    even = -(-numel // max(1, min(num_members, numel // min_values)))
    assert max(stop - start for start, stop in ranges) <= even + longest


def test_shards_around_ranges_by_hand() -> None:
    uncut = ((0, 30), (30, 60), (60, 90))
    assert shards(100, 4, min_values=1, align=1, uncut=uncut) == ((0, 30), (30, 60), (60, 100))
    assert shards(100, 2, min_values=1, align=1, uncut=((10, 90),)) == ((0, 10), (10, 100))
    assert shards(100, 8, min_values=1, align=1, uncut=((0, 100),)) == ((0, 100),)


def test_shards_by_hand() -> None:
    assert shards(100, 4, min_values=1, align=1) == ((0, 25), (25, 50), (50, 75), (75, 100))
    assert shards(100, 4, min_values=40, align=1) == ((0, 50), (50, 100))
    assert shards(100, 3, min_values=1, align=16) == ((0, 48), (48, 96), (96, 100))
    assert shards(10, 4, min_values=40, align=16) == ((0, 10),)


def test_stragglers() -> None:
    paces = [("a", 10.0), ("b", 11.0), ("c", 20.0), ("d", 22.1), ("e", 0.0)]
    members = [member(peer, round_s=round_s) for peer, round_s in paces]
    assert stragglers(members, 1.0) == {"d"}
    assert stragglers(members, 0.5) == {"c", "d"}
    assert stragglers(members, 2.0) == frozenset()


def test_nobody_lags_behind_oneself() -> None:
    assert stragglers([], 1.0) == stragglers([member("a", round_s=99.0), member("b")], 1.0) == frozenset()


def test_of_two_the_slower_is_measured_by_the_faster() -> None:
    assert stragglers([member("a", round_s=1.0), member("b", round_s=2.1)], 1.0) == {"b"}
    assert stragglers([member("a", round_s=1.0), member("b", round_s=1.9)], 1.0) == frozenset()


@given(paces=st.lists(st.floats(0.01, 1e6), min_size=2, max_size=9), factor=st.floats(0.1, 10))
def test_at_least_half_are_waited_for(paces: list[float], factor: float) -> None:
    members = [member(f"p{number}", round_s=pace) for number, pace in enumerate(paces)]
    assert 2 * len(stragglers(members, factor)) <= len(members)


@given(peers=peer_lists, key=keys, size=st.integers(2, 5), data=st.data())
def test_groups_are_full_but_for_one_and_whoever_hosts_has_the_lowest_score_of_those_planned(
    peers: list[PeerId], key: SyncKey, size: int, data: st.DataObject
) -> None:
    formed = groups(tuple(peers), key, size)
    assert groups(tuple(data.draw(st.permutations(peers))), key, size) == formed
    assert sorted(peer for group in formed for peer in group) == sorted(peers)
    full, rest = divmod(len(peers), size)
    joined = rest == 1 and full > 0
    assert [len(group) for group in formed] == [size] * (full - joined) + [size + rest if joined else rest] * (rest > 0)
    ranks = {peer: rank for rank, peer in enumerate(rendezvous("group", key, tuple(peers)))}
    in_order = [group[:size] for group in formed]
    assert all(list(group) == sorted(group, key=ranks.__getitem__) for group in in_order)


@given(num_peers=st.integers(1, 130), key=keys, size=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_everybody_finds_its_own_group(num_peers: int, key: SyncKey, size: int, seed: int) -> None:
    chance = random.Random(seed)
    peers = tuple(PeerId(f"{chance.getrandbits(64):x}") for _ in range(num_peers))
    assert [[group_of(peer, peers, key, size) for peer in group] for group in groups(peers, key, size)] == [
        [group] * len(group) for group in groups(peers, key, size)
    ]


@given(peers=peer_lists, key=keys, size=st.integers(2, 5))
def test_nobody_is_left_over_and_who_does_not_know_the_one_that_joins_plans_the_same(
    peers: list[PeerId], key: SyncKey, size: int
) -> None:
    formed = groups(tuple(peers), key, size)
    assert len(peers) < 2 or all(len(group) > 1 for group in formed)
    if formed and len(formed[-1]) > size:
        *members, joined = formed[-1]
        unaware = tuple(peer for peer in peers if peer != joined)
        assert groups(unaware, key, size) == (*formed[:-1], tuple(members))


def test_the_groups_are_pinned() -> None:
    """Releases that group differently would not find each other: a change of it is a change of the protocol."""
    peers = tuple(PeerId(name) for name in ("ann", "bob", "cid", "dot", "eve"))
    # Scores begin with 32, ab, ad, c0, d5: two pairs in the upper half, one peer in the lower.
    assert rendezvous("group", KEY, peers) == ("cid", "bob", "eve", "dot", "ann")
    assert groups(peers, KEY, 2) == (("bob", "eve"), ("dot", "ann", "cid"))


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("num_peers", [2, 9, 64, 500])
def test_a_peer_that_only_some_see_changes_few_groups(num_peers: int, size: int) -> None:
    chance = random.Random(num_peers)
    peers = tuple(PeerId(f"{chance.getrandbits(64):x}") for _ in range(num_peers))
    changed = []
    for round_ in range(40):
        seen, unseen = set(groups(peers, SyncKey(round_, 0), size)), chance.choice(peers)
        without = set(groups(tuple(peer for peer in peers if peer != unseen), SyncKey(round_, 0), size))
        changed.append(max(len(seen - without), len(without - seen)))
        assert any(unseen in group for group in seen - without)
    assert max(changed) <= math.log2(num_peers) + 1
    assert sum(changed) / len(changed) <= math.log2(num_peers) / 2 + 1


@given(
    num_peers=st.integers(30, 300), num_unseen=st.integers(1, 10), size=st.integers(2, 4), seed=st.integers(0, 2**31)
)
def test_views_that_differ_in_some_peers_agree_on_most_groups(
    num_peers: int, num_unseen: int, size: int, seed: int
) -> None:
    chance = random.Random(seed)
    peers = [PeerId(f"{chance.getrandbits(64):x}") for _ in range(num_peers)]
    views = [tuple(chance.sample(peers, num_peers - num_unseen)) for _ in range(2)]
    num_different = len(set(views[0]) ^ set(views[1]))
    one, other = (set(groups(view, KEY, size)) for view in views)
    assert len(one - other) <= num_different * (math.log2(num_peers) + 1)


@pytest.mark.parametrize(("num_peers", "size"), [(6, 2), (5, 2), (6, 3), (7, 3)])
def test_over_rounds_all_meet_and_host_equally_often(num_peers: int, size: int) -> None:
    peers = tuple(PeerId(f"peer-{number}") for number in range(num_peers))
    num_rounds = 1500
    met: Counter[tuple[PeerId, ...]] = Counter()
    hosts: Counter[PeerId] = Counter()
    for round_ in range(num_rounds):
        formed = groups(peers, SyncKey(round_, 0), size)
        met.update(pair for group in formed for pair in combinations(sorted(group), 2))
        hosts.update(group[0] for group in formed)
    for counts, possible in ((met, math.comb(num_peers, 2)), (hosts, num_peers)):
        share = counts.total() / num_rounds / possible
        # Four standard deviations of a binomial draw.
        margin = 4 * math.sqrt(num_rounds * share * (1 - share))
        assert len(counts) == possible
        assert all(abs(count - num_rounds * share) < margin for count in counts.values())


@pytest.mark.parametrize(
    ("rounds", "others", "found"),
    [
        ((2,), (6, 7, 8), 7),
        ((2,), (2, 4, 9), 4),
        ((2,), (3, 3, 3), None),  # records travel
        ((2,), (1, 1, 9), None),
        ((2, 3), (9, 9, 9), None),  # in the middle of a round
        ((2,), (), None),  # all look dead
    ],
)
def test_the_round_a_slow_worker_joins(rounds: tuple[int, ...], others: tuple[int, ...], found: int | None) -> None:
    runners = [member(f"p{number}", round_=r) for number, r in enumerate(others)]
    assert round_to_join(rounds, runners) == found


def test_middle_round_by_hand() -> None:
    for rounds, middle in (([4], 4), ([3, 7], 7), ([9, 1, 4], 4), ([2, 8, 5, 3], 5)):
        assert middle_round([member(f"p{number}", round_=r) for number, r in enumerate(rounds)]) == middle


@given(
    honest=st.lists(st.integers(0, 1 << 61), min_size=1, max_size=9), lies=st.lists(st.integers(0, 1 << 61), max_size=8)
)
def test_fewer_liars_than_honest_ones_do_not_move_the_middle_beyond_honest_rounds(
    honest: list[int], lies: list[int]
) -> None:
    rounds = honest + lies[: len(honest) - 1]
    middle = middle_round([member(f"p{number}", round_=round_) for number, round_ in enumerate(rounds)])
    assert min(honest) <= middle <= max(honest)
