"""Orders and routes. The pipelines here are queues in virtual time; nothing waits."""

import heapq
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.pipeline.packets import Load
from decentral.pipeline.routing import Permutation, Router, Wiring, stage_order
from decentral.types import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
peer_lists = st.lists(st.text("abcdef", min_size=1, max_size=4).map(PeerId), unique=True, min_size=1, max_size=7)


def peers(count: int) -> list[PeerId]:
    return [PeerId(f"peer-{i}") for i in range(count)]


def pick(router: Router, replicas: list[PeerId], index: int, *, stage: int = 1, batch: int = 0) -> PeerId:
    return router.choose(stage, replicas, slot=0, num_slots=1, batch=batch, index=index)


@pytest.mark.parametrize(
    ("num_stages", "swapped"),
    [(4, (2, 1, 4, 3)), (5, (2, 1, 3, 5, 4)), (6, (2, 1, 3, 4, 6, 5)), (7, (2, 1, 3, 4, 5, 7, 6))],
)
def test_every_second_micro_batch_is_swapped(num_stages: int, swapped: tuple[int, ...]) -> None:
    plain = tuple(range(1, num_stages + 1))
    assert [stage_order(num_stages, index, swap=True) for index in range(4)] == [plain, swapped, plain, swapped]
    assert [stage_order(num_stages, index, swap=False) for index in range(2)] == [plain, plain]


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_few_stages_have_nothing_to_swap(num_stages: int) -> None:
    assert stage_order(num_stages, 1, swap=False) == tuple(range(1, num_stages + 1))
    with pytest.raises(ValueError, match="at least 4 stages"):
        stage_order(num_stages, 0, swap=True)


@pytest.mark.parametrize("router", [Permutation(0), Wiring(0)])
def test_a_stage_without_replicas_is_refused(router: Router) -> None:
    with pytest.raises(ValueError, match="stage 3 has no replica"):
        pick(router, [], 0, stage=3)


@given(
    replicas=peer_lists,
    num_slots=st.integers(1, 4),
    num_microbatches=st.integers(1, 12),
    batch=st.integers(0, 5),
    stage=st.integers(1, 6),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_heads_that_see_the_same_load_all_replicas_alike(
    replicas: list[PeerId],
    num_slots: int,
    num_microbatches: int,
    batch: int,
    stage: int,
    seed: int,
    data: st.DataObject,
) -> None:
    load = Counter(dict.fromkeys(replicas, 0))
    for slot in range(num_slots):
        head, seen = Permutation(seed), data.draw(st.permutations(replicas))
        for index in range(num_microbatches):
            load[head.choose(stage, seen, slot=slot, num_slots=num_slots, batch=batch, index=index)] += 1
    total = num_slots * num_microbatches
    assert set(load) == set(replicas)
    assert set(load.values()) <= {total // len(replicas), -(-total // len(replicas))}


@pytest.mark.parametrize(("num_slots", "num_microbatches", "num_replicas"), [(3, 2, 6), (4, 2, 2), (2, 9, 3)])
def test_heads_together_load_replicas_exactly_alike(num_slots: int, num_microbatches: int, num_replicas: int) -> None:
    replicas, router = peers(num_replicas), Permutation(0)
    each = num_slots * num_microbatches // num_replicas
    for batch in range(20):
        places = ((slot, index) for slot in range(num_slots) for index in range(num_microbatches))
        load = Counter(
            router.choose(2, replicas, slot=slot, num_slots=num_slots, batch=batch, index=index)
            for slot, index in places
        )
        assert load == dict.fromkeys(replicas, each)


def test_a_head_alone_gives_every_replica_one_of_each_run() -> None:
    replicas, router = peers(4), Permutation(7)
    chosen = [pick(router, replicas, index) for index in range(12)]
    assert [len({*chosen[i : i + 4]}) for i in (0, 4, 8)] == [4, 4, 4]


def test_permutations_differ_by_seed_batch_stage_and_run() -> None:
    replicas = peers(8)
    orders = {
        tuple(pick(Permutation(seed), replicas, 8 * run + i, stage=stage, batch=batch) for i in range(8))
        for seed in range(2)
        for batch in range(3)
        for stage in (1, 2, 3)
        for run in range(2)
    }
    assert len(orders) == 36


def test_permutations_are_equally_likely() -> None:
    replicas, router = peers(3), Permutation(0)
    orders = Counter(tuple(pick(router, replicas, i, batch=batch) for i in range(3)) for batch in range(1200))
    # Four standard deviations of a binomial draw around 200.
    assert len(orders) == 6
    assert all(abs(count - 200) < 52 for count in orders.values())


def test_loads_do_not_change_a_permutation() -> None:
    told = Permutation(0)
    told.told(Load(1, peers(4)[0], 100, 100.0))
    assert [pick(told, peers(4), i) for i in range(8)] == [pick(Permutation(0), peers(4), i) for i in range(8)]


def run_closed(router: Router, seconds: dict[PeerId, float], *, count: int, in_flight: int) -> Counter[PeerId]:
    """A head that keeps ``in_flight`` micro-batches under way at one stage; what each replica got done."""
    free_at = dict.fromkeys(seconds, 0.0)
    under_way: list[tuple[float, PeerId]] = []
    queued, done, now = Counter[PeerId](), Counter[PeerId](), 0.0
    for index in range(count):
        if len(under_way) == in_flight:
            now, peer = heapq.heappop(under_way)
            queued[peer] -= 1
            done[peer] += 1
            router.told(Load(1, peer, queued[peer], seconds[peer]))
        peer = pick(router, list(seconds), index)
        queued[peer] += 1
        free_at[peer] = max(now, free_at[peer]) + seconds[peer]
        heapq.heappush(under_way, (free_at[peer], peer))
    return done


@pytest.mark.parametrize("in_flight", [4, 16])
@pytest.mark.parametrize("fast_s", [0.01, 0.2, 5.0])
def test_three_times_as_fast_gets_three_times_the_work(fast_s: float, in_flight: int) -> None:
    done = run_closed(Wiring(0), {A: fast_s, B: 3 * fast_s}, count=2000, in_flight=in_flight)
    assert 2.7 < done[A] / done[B] < 3.3


def test_speeds_known_in_advance_are_met_to_the_micro_batch() -> None:
    router = Wiring(0)
    for peer, seconds in ((A, 1.0), (B, 3.0)):
        router.told(Load(1, peer, 0, seconds))
    done = Counter(pick(router, [A, B], index) for index in range(400))
    assert abs(done[A] - 300) <= 1


def test_a_replica_that_becomes_slow_is_noticed() -> None:
    router = Wiring(0)
    assert run_closed(router, {A: 1.0, B: 1.0}, count=400, in_flight=8)[A] == pytest.approx(200, abs=10)
    done = run_closed(router, {A: 1.0, B: 4.0}, count=1000, in_flight=8)
    assert 3.5 < done[A] / done[B] < 4.5


def test_a_long_queue_sheds_load() -> None:
    """Replicas of one pace, before one of which others' micro-batches wait."""
    router, done = Wiring(0), Counter[PeerId]()
    for index in range(1000):
        peer = pick(router, [A, B, C], index)
        done[peer] += 1
        router.told(Load(1, peer, 4 if peer == A else 0, 0.5))
    assert done[A] == pytest.approx(1000 / 11, abs=5)
    assert done[B] == pytest.approx(5000 / 11, abs=5)


def test_stages_are_told_apart() -> None:
    router = Wiring(0)
    for stage, slow in ((1, A), (2, B)):
        for peer in (A, B):
            router.told(Load(stage, peer, 0, 9.0 if peer == slow else 1.0))
    done = Counter((stage, pick(router, [A, B], index, stage=stage)) for index in range(100) for stage in (1, 2))
    assert done[1, B] == pytest.approx(90, abs=1)
    assert done[2, A] == pytest.approx(90, abs=1)


def test_strangers_take_turns() -> None:
    router, replicas = Wiring(3), peers(4)
    chosen = [pick(router, replicas, index) for index in range(12)]
    assert [len({*chosen[i : i + 4]}) for i in (0, 4, 8)] == [4, 4, 4]


def test_a_newcomer_is_tried_at_once_and_given_no_more_than_its_part() -> None:
    router = Wiring(0)
    for index in range(500):
        router.told(Load(1, pick(router, [A, B], index), 0, 0.5))
    chosen = [pick(router, [A, B, C], index) for index in range(500, 530)]
    assert C in chosen[:3]
    # Nothing was heard of it, so that it counts as one like the others.
    assert 9 <= chosen.count(C) <= 11


def test_one_that_comes_back_has_nothing_to_make_up_for() -> None:
    router = Wiring(0)
    for peer in (A, B):
        router.told(Load(1, peer, 0, 0.5))
    for index in range(1000):
        pick(router, [A, B] if index < 10 else [B], index)
    assert Counter(pick(router, [A, B], index) for index in range(100)) == {A: 50, B: 50}


def test_one_that_claims_to_need_no_time_does_not_get_everything() -> None:
    router = Wiring(0)
    router.told(Load(1, A, 0, 0.0))
    router.told(Load(1, B, 0, 0.01))
    done = Counter(pick(router, [A, B], index) for index in range(110))
    assert done[B] == pytest.approx(10, abs=1)


def test_wiring_is_the_same_under_a_seed() -> None:
    def chosen(seed: int) -> list[PeerId]:
        router, found = Wiring(seed), []
        for index in range(60):
            # In another order every time.
            replicas = peers(5)[index % 5 :] + peers(5)[: index % 5]
            found.append(pick(router, replicas, index))
            router.told(Load(1, found[-1], index % 3, 0.5))
        return found

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
