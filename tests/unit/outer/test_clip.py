import math
import random
from collections.abc import Iterable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from decentral.outer.clip import ENOUGH, REMEMBERED, Radius, clip

FACTOR = 3.0
HUGE = torch.finfo(torch.float32).max
#: Fewer than half of what is remembered.
MINORITY = (REMEMBERED - 1) // 2
honest_distances = st.floats(1.0, FACTOR)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(one_N: Tensor, other_N: Tensor) -> float:
    return float(torch.linalg.vector_norm(one_N.double() - other_N.double()))


def meet(radius: Radius, distances: Iterable[float], scale: float = 0.0) -> list[float]:
    """Vectors so far away, one after the other; returns the limit for each."""
    limits = []
    for length in distances:
        limits.append(radius.limit(scale))
        radius.observe(length)
    return limits


def settled(length: float) -> Radius:
    """All that it remembers was this far away."""
    radius = Radius(FACTOR)
    meet(radius, [length] * REMEMBERED, scale=length)
    return radius


def test_clip_by_hand() -> None:
    clipped_N, found = clip(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 5.0]), 2.5)
    assert (clipped_N.tolist(), found) == ([2.5, 3.0], 5.0)


@given(seed=st.integers(0, 2**31), numel=st.integers(1, 40), share=st.floats(0, 2))
@example(seed=0, numel=200_000, share=0.5)
def test_clip_stays_on_the_line_and_within_the_radius(seed: int, numel: int, share: float) -> None:
    own_N, other_N = randn(seed, 2, numel)
    before = own_N.clone(), other_N.clone()
    length = distance(own_N, other_N)
    clipped_N, found = clip(own_N, other_N, share * length)
    assert found == pytest.approx(length, rel=1e-12)
    torch.testing.assert_close(clipped_N, own_N + min(1, share) * (other_N - own_N), rtol=0, atol=1e-5)
    assert distance(own_N, clipped_N) <= share * length + 1e-6 * math.sqrt(numel)
    assert torch.equal(own_N, before[0])
    assert torch.equal(other_N, before[1])


def test_what_is_within_the_radius_is_passed_on_as_it_is() -> None:
    own_N, other_N = torch.tensor([0.0, 3e38]), torch.tensor([-0.0, 1e-45])
    assert clip(own_N, other_N, 3.1e38)[0] is other_N
    assert clip(own_N, other_N, math.inf)[0] is other_N
    assert clip(own_N, own_N, 0.0) == (own_N, 0.0)
    clipped_N, found = clip(own_N, other_N, math.nextafter(distance(own_N, other_N), 0))
    assert clipped_N is not other_N, "the border is exact"
    assert found > 0


@pytest.mark.parametrize("radius", [0.0, 1e-30, 1.0, 1e20])
@pytest.mark.parametrize("absurd", [1e19, 1e30, HUGE, -HUGE])
def test_an_absurd_other_is_clipped_and_not_overflowed(absurd: float, radius: float) -> None:
    own_N = torch.tensor([1.0, -2.0, -math.copysign(HUGE, absurd), 0.0])
    other_N = torch.tensor([absurd, absurd, absurd, 0.0])
    clipped_N, found = clip(own_N, other_N, radius)
    assert found == pytest.approx(distance(own_N, other_N), rel=1e-12)
    assert bool(torch.isfinite(clipped_N).all())
    assert distance(own_N[:2], clipped_N[:2]) <= radius * (1 + 1e-6)


def test_shapes_are_never_broadcast() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        clip(torch.zeros(3), torch.zeros(1), 1.0)


def test_what_is_usual_counts_from_when_enough_is_known_and_never_less_than_the_scale() -> None:
    radius = Radius(FACTOR)
    assert meet(radius, [3.0] * (ENOUGH + 1), scale=2.0) == [FACTOR * 2.0] * ENOUGH + [FACTOR * 3.0]
    assert radius.limit(50.0) == FACTOR * 50.0, "whatever was seen"


def test_replicas_that_were_equal_may_part() -> None:
    radius = Radius(FACTOR)
    meet(radius, [0.0] * REMEMBERED, scale=1.0)
    assert min(meet(radius, [2.5] * 10, scale=1.0)) > 2.5


def test_without_a_factor_there_is_no_limit() -> None:
    assert meet(Radius(0.0), [1.0, 1e300] * REMEMBERED, scale=1.0) == [math.inf] * 2 * REMEMBERED


@given(st.lists(honest_distances, max_size=60), st.floats(1.0, 2.0))
def test_distances_that_differ_by_no_more_than_the_factor_are_never_clipped(
    distances: list[float], scale: float
) -> None:
    limits = meet(Radius(FACTOR), distances, scale)
    assert all(length <= limit for length, limit in zip(distances, limits, strict=True))


@given(honest=st.lists(honest_distances, min_size=9, max_size=9), seed=st.integers(0, 2**31))
def test_a_minority_of_liars_moves_the_limit_no_further_than_honest_distances_do(
    honest: list[float], seed: int
) -> None:
    """Seven of any sixteen in a row lie, too near or too far: they are neither let through nor get others clipped."""
    chance = random.Random(seed)
    turn = [*honest, *(chance.choice([0.0, 10.0, HUGE, 1e300]) for _ in range(MINORITY))]
    chance.shuffle(turn)
    radius = settled(chance.choice(honest))
    limits = meet(radius, turn * 4)
    assert all(FACTOR * min(honest) <= limit <= FACTOR * max(honest) for limit in limits)
    assert all(limit >= max(honest) for limit in limits)


def test_a_majority_of_liars_moves_the_limit_only_step_by_step() -> None:
    """No protection, but time: a lie is worth the limit at most, so it takes nine for each factor."""
    assert meet(settled(1.0), [1e300] * 28) == [3.0] * 9 + [9.0] * 9 + [27.0] * 9 + [81.0]


@given(growth=st.floats(1.0, 1e4))
def test_the_limit_grows_by_itself_when_all_distances_grow(growth: float) -> None:
    radius = settled(1.0)
    limits = meet(radius, [growth] * 100)
    clipped = sum(limit < growth for limit in limits)
    assert clipped <= 9 * max(0, math.ceil(math.log(growth, FACTOR)) - 1)
    assert limits[-1] == FACTOR * growth


def test_the_limit_falls_again_with_the_distances() -> None:
    radius = settled(100.0)
    assert meet(radius, [1.0] * 9)[-1] == FACTOR
