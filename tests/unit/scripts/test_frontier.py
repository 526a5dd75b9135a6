"""The order in which the frontier's cells are run: a budget that is the same for all, whenever the bench is stopped."""

from typing import Any

from scripts.benches.frontier_arms import ARMS, RATES, chosen, next_run, tried
from scripts.benches.lib.search import Point, best, next_try

COMMON = (100, 4, ["a=1"])


def test_a_search_goes_to_the_better_neighbour_and_ends_where_there_is_none() -> None:
    found: dict[Point, float] = {}
    while (point := next_try(found, (0, 0), 4, 3)) is not None:
        found[point] = float((point[0] - 2) ** 2 + (point[1] - 1) ** 2)
    assert best(found) == (2, 1)
    assert len(found) < 12
    assert {(1, 1), (3, 1), (2, 0), (2, 2)} <= found.keys()


def test_no_number_is_worse_than_any() -> None:
    found = {(0, 0): float("nan"), (0, 1): 9.0}
    assert best(found) == (0, 1)


def test_all_arms_have_the_same_number_of_tries_at_any_moment() -> None:
    records: list[dict[str, Any]] = []
    searched = [arm for arm in ARMS if not arm.like]
    while (run := next_run(ARMS, records, 3, 2, COMMON)) is not None:
        assert run.key not in [record["key"] for record in records]
        # The best is off the first try of any arm.
        records.append({"key": run.key, "val_loss": abs(RATES.index(run.rate) - 6) + len(run.arm) / 1000})
        if run.seed == 0:
            counts = [len(tried(arm, records)) for arm in searched]
            assert max(counts) - min(counts) <= 1
    for arm in ARMS:
        at = chosen(arm, records)
        assert at in tried(arm, records)
        assert list(tried(arm, records, 1)) == [at]
        if arm.like:
            [parent] = [other for other in ARMS if other.name == arm.like]
            assert at == chosen(parent, records)
            assert len(tried(arm, records)) <= 2
        else:
            assert len(tried(arm, records)) == 3
