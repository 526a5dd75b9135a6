"""The rule by which journals are judged finds what is lost or counted twice, and forgives only what died."""

from typing import Any

from scripts.benches.counted import Event, Strike, account, fronts

STAGES = 1


def count(stage: int, batch: int, *indices: int, slot: int = 0) -> dict[str, Any]:
    return {
        "event": "batch_counted",
        "time": 100.0 + batch,
        "stage": stage,
        "slot": slot,
        "batch": batch,
        "indices": list(indices),
        "tokens": 10 * len(indices),
    }


def whole(name: str, stage: int, batches: range) -> dict[str, list[Event]]:
    return {name: [{"event": "started"}, *(count(stage, batch, 0, 1) for batch in batches)]}


def test_once_each_is_right_and_what_was_under_way_at_the_end_is_left_out() -> None:
    journals = whole("head", 0, range(5)) | {"a": [count(1, 0, 0), count(1, 1, 0, 1)], "b": [count(1, 0, 1)]}
    made = account(journals, [], STAGES)
    assert (made.batches, made.tokens, made.died, made.wrong) == (2, {0: 100, 1: 40}, [], [])
    assert fronts(journals.values()) == {0: 4}


def test_slots_are_judged_apart() -> None:
    journals = {
        "head": [count(0, 0, 0), count(0, 1, 0)],
        "other": [count(0, 0, 0, slot=1)],
        "a": [count(1, 0, 0), count(1, 1, 0), count(1, 0, 0, slot=1)],
    }
    made = account(journals, [], STAGES)
    assert (made.batches, made.wrong) == (3, [])


def test_a_micro_batch_that_nobody_counted_or_two_did_is_wrong() -> None:
    journals = whole("head", 0, range(3)) | {"a": [count(1, 0, 0), count(1, 1, 0, 1), count(1, 2, 0, 1)]}
    journals["b"] = [count(1, 1, 1)]
    assert account(journals, [], STAGES).wrong == [
        "stage 1, slot 0, batch 0, micro-batch 1: counted by nobody",
        "stage 1, slot 0, batch 1, micro-batch 1: counted by ['a', 'b']",
    ]


def test_who_comes_in_place_of_the_dead_may_count_its_last_batch_again() -> None:
    journals = whole("head", 0, range(4)) | whole("dead", 1, range(3)) | whole("heir", 1, range(2, 4))
    struck = Strike("dead", 102.5, frozenset({1}))
    made = account(journals, [struck], STAGES)
    assert (len(made.died), made.wrong) == (2, [])
    # But not one that was long part of what its neighbours had; not a third one; not a worker that lives.
    assert len(account(journals | whole("heir", 1, range(1, 4)), [struck], STAGES).wrong) == 2
    assert len(account(journals | whole("third", 1, range(2, 3)), [struck], STAGES).wrong) == 2
    assert len(account(journals, [Strike("another", 102.5, frozenset({1}))], STAGES).wrong) == 2
    assert len(account(journals, [Strike("dead", 102.5, frozenset({0}))], STAGES).wrong) == 2
    assert len(account(journals, [Strike("dead", 103.5, frozenset({1}))], STAGES).wrong) == 2


def test_a_worker_that_counts_twice_is_wrong_even_if_it_was_struck() -> None:
    journals = whole("head", 0, range(2)) | {"dead": [count(1, 0, 0, 1), count(1, 0, 1), count(1, 1, 0, 1)]}
    assert len(account(journals, [Strike("dead", 100.5, frozenset({1}))], STAGES).wrong) == 1


def test_the_share_of_a_replica_may_die_with_it_that_of_a_lone_holder_may_not() -> None:
    journals = whole("head", 0, range(4)) | {"a": [count(1, batch, 0) for batch in range(4)]}
    journals["b"] = [count(1, batch, 1) for batch in (0, 1, 3)]
    assert len(account(journals, [Strike("b", 102.5, frozenset({1}))], STAGES).wrong) == 1
    made = account(journals, [Strike("b", 102.5, frozenset({1}), frozenset({1}))], STAGES)
    assert (len(made.died), made.wrong) == (1, [])
    assert len(account(journals, [Strike("b", 103.5, frozenset({1}), frozenset({1}))], STAGES).wrong) == 1
