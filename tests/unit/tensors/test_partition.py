"""Who is in which fragment: whole layers, balanced, what has no layer apart."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decentral.errors import ConfigError
from decentral.tensors.partition import Pattern, assign, most_fragments, paper_fragments

PATTERNS: list[Pattern] = ["strided", "sequential"]
APART = ("embed.weight", "norm.scale")

sizes_of_layers = st.lists(st.integers(0, 60), min_size=2, max_size=9)


def model(sizes: list[int], *, apart: bool) -> dict[str, int]:
    """Values by name: two parameters a layer, what has no layer around them."""
    numels = {APART[0]: 1000} if apart else {}
    for layer, size in enumerate(sizes):
        numels |= {f"blocks.{layer}.a": size // 3, f"blocks.{layer}.b": size - size // 3}
    return numels | ({APART[1]: 2} if apart else {})


def runs(numels: dict[str, int], num_fragments: int, pattern: Pattern) -> list[list[int]]:
    """The layers in each fragment that holds some."""
    held: dict[int, list[int]] = {}
    for name, fragment in assign(numels, num_fragments, pattern).items():
        if name.endswith(".a"):
            held.setdefault(fragment, []).append(int(name.split(".")[1]))
    return [held[fragment] for fragment in sorted(held)]


@given(sizes=sizes_of_layers, apart=st.booleans(), pattern=st.sampled_from(PATTERNS), data=st.data())
def test_every_fragment_has_whole_layers_and_the_last_all_that_has_none(
    sizes: list[int], apart: bool, pattern: Pattern, data: st.DataObject
) -> None:
    numels = model(sizes, apart=apart)
    assert most_fragments(numels) == len(sizes) + apart
    num_fragments = data.draw(st.integers(2, len(sizes) + apart))
    assignment = assign(numels, num_fragments, pattern)
    assert list(assignment) == list(numels)
    assert set(assignment.values()) == set(range(num_fragments))
    for layer in range(len(sizes)):
        assert assignment[f"blocks.{layer}.a"] == assignment[f"blocks.{layer}.b"]
    if apart:
        assert [name for name, fragment in assignment.items() if fragment == num_fragments - 1] == list(APART)


@given(sizes=sizes_of_layers, pattern=st.sampled_from(PATTERNS), data=st.data())
def test_the_cut_is_that_of_sizes_and_layers_whatever_the_order_of_names(
    sizes: list[int], pattern: Pattern, data: st.DataObject
) -> None:
    numels = model(sizes, apart=True)
    num_fragments = data.draw(st.integers(1, len(sizes) + 1))
    shuffled = dict(data.draw(st.permutations(list(numels.items()))))
    assert assign(shuffled, num_fragments, pattern) == assign(numels, num_fragments, pattern)


@given(sizes=sizes_of_layers, data=st.data())
def test_strided_no_fragment_is_heavier_than_the_lightest_and_one_layer(sizes: list[int], data: st.DataObject) -> None:
    dealt = runs(model(sizes, apart=False), data.draw(st.integers(2, len(sizes))), "strided")
    loads = [sum(sizes[layer] for layer in layers) for layers in dealt]
    assert all(load <= min(loads) + sizes[layers[-1]] for load, layers in zip(loads, dealt, strict=True))


@given(sizes=sizes_of_layers, data=st.data())
def test_sequential_is_the_best_of_all_ways_to_cut(sizes: list[int], data: st.DataObject) -> None:
    num_runs = data.draw(st.integers(2, len(sizes)))
    dealt = runs(model(sizes, apart=False), num_runs, "sequential")
    assert [layer for layers in dealt for layer in layers] == list(range(len(sizes)))

    def cost(loads: list[int]) -> tuple[int, int]:
        return max(loads), sum(load**2 for load in loads)

    every_way = (
        [sum(sizes[begin:stop]) for begin, stop in zip((0, *cuts), (*cuts, len(sizes)), strict=True)]
        for cuts in combinations(range(1, len(sizes)), num_runs - 1)
    )
    assert cost([sum(sizes[layer] for layer in layers) for layers in dealt]) == min(map(cost, every_way))


@given(num_layers=st.integers(2, 40), size=st.integers(1, 10**9), pattern=st.sampled_from(PATTERNS), data=st.data())
def test_equal_layers_are_strided_or_in_runs_of_equal_length(
    num_layers: int, size: int, pattern: Pattern, data: st.DataObject
) -> None:
    num_fragments = data.draw(st.integers(2, num_layers))
    dealt = runs(model([size] * num_layers, apart=False), num_fragments, pattern)
    if pattern == "strided":
        assert dealt == [list(range(num_layers))[first::num_fragments] for first in range(num_fragments)]
    lengths = Counter(map(len, dealt))
    assert max(lengths) - min(lengths) <= 1


def test_a_large_layer_is_not_joined_by_another() -> None:
    assert runs(model([9, 1, 2, 3, 1], apart=True), 3, "strided") == [[0], [1, 2, 3, 4]]
    assert runs(model([1, 2, 3, 9, 1], apart=True), 3, "sequential") == [[0, 1, 2], [3, 4]]


def test_many_layers_are_cut_at_once() -> None:
    sizes = [10**7 + 7 * layer % 5 for layer in range(400)]
    assert len(runs(model(sizes, apart=True), 201, "sequential")) == 200


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_fragment_holds_everything(pattern: Pattern) -> None:
    assert set(assign(model([3, 4], apart=True), 1, pattern).values()) == {0}
    assert assign({"w": 3, "b": 1}, 1, pattern) == {"w": 0, "b": 0}


@pytest.mark.parametrize(
    ("num_layers", "apart", "most", "paper"),
    [(0, True, 1, 1), (1, False, 1, 1), (2, True, 3, 2), (3, False, 3, 1), (4, True, 5, 3), (24, True, 25, 9)],
)
def test_how_many_there_can_be_and_how_many_the_paper_has(num_layers: int, apart: bool, most: int, paper: int) -> None:
    numels = model([5] * num_layers, apart=apart)
    assert (most_fragments(numels), paper_fragments(numels)) == (most, paper)


@pytest.mark.parametrize("num_fragments", [-1, 0, 5])
def test_an_impossible_number_is_refused_with_the_possible_ones(num_fragments: int) -> None:
    asked = f"^{num_fragments} fragments asked for, but the model has 3 layers and parameters without one"
    with pytest.raises(ConfigError, match=asked) as caught:
        assign(model([1, 2, 3], apart=True), num_fragments, "strided")
    assert "method.fragments between 1 and 4" in caught.value.hint


def test_what_has_no_layer_is_counted_only_where_there_is_some() -> None:
    with pytest.raises(ConfigError, match=r"but the model has 3 layers$") as caught:
        assign(model([1, 2, 3], apart=False), 4, "strided")
    assert "method.fragments between 1 and 3" in caught.value.hint


def test_a_model_without_layers_is_one_fragment() -> None:
    with pytest.raises(ConfigError, match="2 fragments asked for, but the model has no layers") as caught:
        assign({"fc1.weight": 6, "fc1.bias": 2}, 2, "strided")
    assert "Set method.fragments=1" in caught.value.hint
