"""What nobody's contribution can do to a mean, and that honest ones are left as they are."""

import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decentral.exchange.bounds import Kind, bounded
from decentral.exchange.merge import norm_of, weighted_mean

FACTOR = 2.5
S = 4096


def crowd(seed: int, num: int, *, agreement: float = 0.5) -> list[Tensor]:
    """Honest contributions of about the same length, with a direction in common."""
    dice = torch.Generator().manual_seed(seed)
    common_S = torch.randn(S, generator=dice)
    return [agreement * common_S + torch.randn(S, generator=dice) for _ in range(num)]


def kinds(weights: list[float], values: list[Tensor]) -> dict[int, Kind]:
    return {finding.index: finding.kind for finding in bounded(weights, values, FACTOR).findings}


@given(seed=st.integers(0, 1 << 31), num=st.integers(1, 12), agreement=st.sampled_from([0.0, 0.05, 0.5, 3.0]))
def test_honest_contributions_are_the_very_same(seed: int, num: int, agreement: float) -> None:
    values = crowd(seed, num, agreement=agreement)
    chance = random.Random(seed)
    lengths = [chance.uniform(1.0, FACTOR) for _ in values]
    weights = [chance.uniform(1.0, FACTOR) for _ in values]
    scaled = [values_S.mul_(length / norm_of(values_S)) for values_S, length in zip(values, lengths, strict=True)]
    found = bounded(weights, scaled, FACTOR)
    assert found.findings == ()
    assert found.weights == tuple(weights)
    assert all(one is other for one, other in zip(found.values, scaled, strict=True))


def test_workers_whose_goals_differ_point_against_each_other_in_the_end_and_none_is_left_out() -> None:
    """At the common optimum the pseudo-gradients add up to nothing: no two of them have a direction in common."""
    values = crowd(0, 8, agreement=0.0)
    middle_S = torch.stack(values).mean(0)
    assert not kinds([1.0] * 8, [values_S - middle_S for values_S in values])


@pytest.mark.parametrize("times", [0.5, 1.0, 2.4])
@pytest.mark.parametrize("num_liars", [1, 2, 3])
def test_who_points_away_while_the_others_agree_is_left_out(num_liars: int, times: float) -> None:
    """However long it is: lengths have no say in which way most point."""
    values = crowd(1, 8)
    lying = [-times * values_S if i < num_liars else values_S for i, values_S in enumerate(values)]
    assert kinds([1.0] * 8, lying) == dict.fromkeys(range(num_liars), Kind.AGAINST)
    assert not kinds([1.0] * 3, lying[:3]), "three cannot tell"


@pytest.mark.parametrize("scale", [1e6, 3e37])
def test_what_is_absurd_is_left_out_and_overflows_nothing(scale: float) -> None:
    values = crowd(2, 4)
    values[1] *= scale
    found = bounded([1.0] * 4, values, FACTOR)
    assert [finding.kind for finding in found.findings] == [Kind.WILD]
    assert found.values[1] is None


def test_by_hand() -> None:
    one_S, long_S, nothing_S = torch.tensor([3.0, 4.0]), torch.tensor([24.0, 32.0]), torch.zeros(2)
    found = bounded([10.0, 10.0, 90.0, 10.0, 10.0], [one_S, one_S, one_S, long_S, nothing_S], FACTOR)
    assert found.weights == (10.0, 10.0, 25.0, 10.0, 10.0)
    assert found.values[3] is not None
    assert found.values[3].tolist() == [7.5, 10.0]
    assert found.values[4] is None
    assert [(f.index, f.kind, f.ratio) for f in found.findings] == [
        (2, Kind.WEIGHT, 9.0),
        (3, Kind.LENGTH, 8.0),
        (4, Kind.NOTHING, 0.0),
    ]


@given(seed=st.integers(0, 1 << 31), num=st.integers(3, 16), data=st.data())
def test_fewer_than_half_move_the_mean_no_further_than_is_proven(seed: int, num: int, data: st.DataObject) -> None:
    """No liar's part has more weight or length than ``FACTOR`` times an honest one's, whatever all liars bring."""
    num_liars = data.draw(st.integers(1, (num - 1) // 2))
    honest = crowd(seed, num - num_liars)
    chance = random.Random(seed)
    absurd = st.sampled_from([0.0, 1e-30, 0.5, 1.0, 2.4, 20.0, 1e6, 1e37])
    lies = [honest[0] * data.draw(absurd) * chance.choice([-1, 1]) for _ in range(num_liars)]
    weights = [chance.uniform(1.0, 2.0) for _ in honest] + [chance.choice([1e-9, 1.0, 1e15]) for _ in lies]
    found = bounded(weights, [*honest, *lies], FACTOR)
    most_weight, most_length = FACTOR * max(weights[: len(honest)]), FACTOR * max(map(norm_of, honest))
    assert all(weight <= most_weight for weight in found.weights)
    assert all(norm_of(values_S) <= most_length * (1 + 1e-6) for values_S in found.values if values_S is not None)


@pytest.mark.parametrize("num_liars", [1, 2])
def test_of_eight_a_quarter_moves_the_limit_within_the_middle_third(num_liars: int) -> None:
    """The median of all lies between the third and the fourth of six honest lengths, whatever two liars say."""
    lengths = sorted([1.0, 1.1, 1.2, 1.3, 1.4, 1.5][: 8 - num_liars])
    for lies in ([1e-6] * num_liars, [1e6] * num_liars):
        median = statistics.median_low([*lengths, *lies])
        assert lengths[len(lengths) // 2 - num_liars] <= median <= lengths[len(lengths) // 2]


def test_the_mean_of_what_is_left_is_that_of_the_honest() -> None:
    honest = crowd(3, 6)
    found = bounded([1.0] * 8, [*honest, -honest[0] * 1e9, -honest[1]], FACTOR)
    left = [values_S for values_S in found.values if values_S is not None]
    torch.testing.assert_close(weighted_mean([1 / 6] * 6, left), torch.stack(honest).mean(0))


@pytest.mark.parametrize(
    ("weight", "round_weight", "rounds", "allowed"),
    [
        (10.0, 10.0, 1.0, 1.0),  # all bring a round's work
        (40.0, 10.0, 4.0, 4.0),  # it was away for three
        (40.0, 10.0, 1.0, 1.0),  # it says so, and was not
        (40.0, 0.0, 4.0, 4.0),
        (20.0, 10.0, 8.0, 2.0),  # it was, and has done little
        (10.0, 100.0, 1.0, 1.0),
        (100.0, 100.0, 1.0, 10.0),  # the others came a moment ago, and it has all of the round
    ],
)
def test_who_has_the_work_of_more_rounds_may_bring_more(
    weight: float, round_weight: float, rounds: float, allowed: float
) -> None:
    """However long it says that it trained, no more than it can have."""
    values = [values_S / norm_of(values_S) for values_S in crowd(2, 4, agreement=3.0)]
    values[0] = values[0] * (allowed * FACTOR * 1.1)
    found = bounded([weight, 10.0, 10.0, 10.0], values, FACTOR, round_weight, [rounds, 1.0, 1.0, 1.0])
    first_S = found.values[0]
    assert first_S is not None
    assert norm_of(first_S) == pytest.approx(allowed * FACTOR)
    assert {finding.kind for finding in found.findings} - {Kind.WEIGHT} == {Kind.LENGTH}
