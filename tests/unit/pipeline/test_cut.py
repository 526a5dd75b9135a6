import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ConfigError
from decentral.pipeline.cut import check_equal, cut

BLOCK = [(8, 8), (8,)]


@given(num_stages=st.integers(1, 12), more=st.integers(0, 40))
def test_stages_hold_all_blocks_in_order_and_differ_by_one_at_most(num_stages: int, more: int) -> None:
    spans = cut(num_stages + more, num_stages, "checkpoint").spans
    assert [block for first, stop in spans for block in range(first, stop)] == list(range(num_stages + more))
    sizes = [stop - first for first, stop in spans]
    assert len(sizes) == num_stages
    assert min(sizes) >= max(sizes) - 1


@pytest.mark.parametrize(
    ("num_blocks", "num_stages", "best"),
    [
        (8, 4, "checkfree+"),
        (24, 6, "checkfree+"),
        (5, 5, "checkfree+"),
        (12, 3, "checkfree"),
        (3, 3, "checkfree"),
        (13, 4, "checkpoint"),
        (4, 3, "checkpoint"),
        (12, 2, "checkpoint"),
        (12, 1, "checkpoint"),
    ],
)
def test_auto_is_the_best_that_is_possible(num_blocks: int, num_stages: int, best: str) -> None:
    found = cut(num_blocks, num_stages, "auto")
    assert found.healing == best
    if best != "checkpoint":
        assert len({stop - first for first, stop in found.spans}) == 1


@pytest.mark.parametrize("healing", ["checkfree+", "checkfree", "checkpoint"])
def test_a_wish_that_can_be_met_is_met(healing: str) -> None:
    found = cut(8, 4, healing)  # type: ignore[arg-type]
    assert found.healing == healing
    assert found.spans == ((0, 2), (2, 4), (4, 6), (6, 8))


@pytest.mark.parametrize(
    ("num_blocks", "num_stages", "healing", "why", "way_out"),
    [
        (9, 3, "checkfree+", "at least 4 stages; there are 3", "'checkfree', 'checkpoint'"),
        (4, 2, "checkfree", "at least 3 stages; there are 2", "'checkpoint'"),
        (13, 4, "checkfree+", "13 blocks cannot be divided by 4", "'checkpoint'"),
        (13, 4, "checkfree", "13 blocks cannot be divided by 4", "'checkpoint'"),
        (3, 4, "auto", "3 blocks cannot be cut into 4 stages", "1 up to 3"),
        (3, 0, "checkpoint", "3 blocks cannot be cut into 0 stages", "1 up to 3"),
    ],
)
def test_what_cannot_be_says_why_and_what_can(
    num_blocks: int, num_stages: int, healing: str, why: str, way_out: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)) as caught:
        cut(num_blocks, num_stages, healing)  # type: ignore[arg-type]
    assert way_out in caught.value.hint


def test_equal_stages_pass() -> None:
    check_equal([BLOCK * 2, BLOCK * 2, list(BLOCK) * 2])
    check_equal([BLOCK])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([BLOCK, BLOCK, [(8, 8), (9,)], [(1,)]], r"stage 3 has a parameter of shape \(9,\) where stage 1 has \(8,\)"),
        ([BLOCK, BLOCK * 2], "stage 2 has 4 parameters, stage 1 has 2"),
        ([BLOCK, [(8,), (8, 8)]], r"stage 2 has a parameter of shape \(8,\) where stage 1 has \(8, 8\)"),
    ],
)
def test_the_first_stage_that_differs_is_named(shapes: list[list[tuple[int, ...]]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_equal(shapes)
    assert "'checkpoint'" in caught.value.hint
