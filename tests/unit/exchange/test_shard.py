import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decentral.exchange.shard import Entry, ShardContributions
from decentral.types import PeerId

A, B, C = MEMBERS = tuple(PeerId(name) for name in "abc")


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    contributions = ShardContributions(MEMBERS)
    assert tuple(contributions.awaited()) == MEMBERS
    contributions.enter(C, Entry(3.0, torch.tensor([4.0, 0.0])))
    contributions.enter(B, Entry(0.0, None))
    assert tuple(contributions.awaited()) == (A,)
    assert contributions.contributors() == (2,)
    contributions.enter(A, Entry(1.0, torch.tensor([0.0, 8.0])))
    assert not contributions.awaited()
    assert contributions.contributors() == (0, 2)
    mean_S = contributions.mean()
    assert mean_S is not None
    assert mean_S.tolist() == [3.0, 2.0]


@given(
    seed=st.integers(0, 1 << 31),
    numel=st.integers(1, 50),
    weights=st.lists(st.one_of(st.just(0.0), st.floats(0.1, 1e9)), min_size=1, max_size=12),
    data=st.data(),
)
def test_weighted_mean_in_any_order(seed: int, numel: int, weights: list[float], data: st.DataObject) -> None:
    members = [PeerId(f"peer-{number:02d}") for number in range(len(weights))]
    values = randn(seed, len(weights), numel)
    entries = [Entry(w, values[i] if w else None) for i, w in enumerate(weights)]
    bits = set()
    for order in (range(len(members)), data.draw(st.permutations(range(len(members))))):
        contributions = ShardContributions(members)
        for number in order:
            contributions.enter(members[number], entries[number])
        mean_S = contributions.mean()
        if not any(weights):
            assert mean_S is None
            return
        assert mean_S is not None
        bits.add(mean_S.numpy().tobytes())
        assert contributions.contributors() == tuple(i for i, w in enumerate(weights) if w > 0)
    assert len(bits) == 1, "the order of arrival shows in the last bits"
    exact = np.average(values.double().numpy(), axis=0, weights=np.array(weights))
    np.testing.assert_allclose(mean_S.numpy(), exact, rtol=1e-5, atol=1e-5)


def test_over_senders_each_value_is_the_mean_of_those_who_sent_it() -> None:
    contributions = ShardContributions(MEMBERS)
    contributions.enter(A, Entry(1.0, torch.tensor([4.0, 4.0, 0.0, 0.0])))
    contributions.enter(B, Entry(3.0, torch.tensor([8.0, 0.0, 2.0, 0.0])))
    contributions.enter(C, Entry(0.0, None))
    over_all, over_senders = contributions.mean(), contributions.mean(over_senders=True)
    assert over_all is not None
    assert over_senders is not None
    assert over_all.tolist() == [7.0, 1.0, 1.5, 0.0]
    assert over_senders.tolist() == [7.0, 4.0, 2.0, 0.0]


def test_directed_ranges_keep_the_norm_and_the_rest_is_the_mean() -> None:
    contributions = ShardContributions(MEMBERS)
    contributions.enter(A, Entry(5.0, torch.tensor([4.0, 2.0, 0.0, 3.0])))
    contributions.enter(C, Entry(5.0, torch.tensor([0.0, 0.0, 2.0, -3.0])))
    mean_S = contributions.mean(directed=((1, 3), (3, 4)))
    assert mean_S is not None
    assert mean_S.tolist() == pytest.approx([2.0, math.sqrt(2), math.sqrt(2), 0.0])


def test_nobody_contributed() -> None:
    contributions = ShardContributions(MEMBERS)
    assert contributions.mean() is None
    for member in MEMBERS:
        contributions.enter(member, Entry(0.0, None))
    assert not contributions.awaited()
    assert contributions.contributors() == ()
    assert contributions.mean() is None


def test_a_repeated_entry_changes_nothing() -> None:
    contributions = ShardContributions(MEMBERS)
    contributions.enter(A, Entry(1.0, torch.tensor([1.0])))
    contributions.enter(A, Entry(9.0, torch.tensor([5.0])))
    contributions.enter(A, Entry(0.0, None))
    assert contributions.contributors() == (0,)
    mean_S = contributions.mean()
    assert mean_S is not None
    assert mean_S.tolist() == [1.0]


def test_the_mean_of_one_is_no_view_of_it() -> None:
    values_S = torch.tensor([1.0, 2.0])
    contributions = ShardContributions([A])
    contributions.enter(A, Entry(2.0, values_S))
    mean_S = contributions.mean()
    assert mean_S is not None
    mean_S.zero_()
    assert values_S.tolist() == [1.0, 2.0]


def test_strangers_are_refused() -> None:
    with pytest.raises(KeyError, match="z"):
        ShardContributions(MEMBERS).enter(PeerId("z"), Entry(1.0, torch.ones(1)))


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_weight_out_of_range(weight: float) -> None:
    for values_S in (torch.ones(1), None):
        with pytest.raises(ValueError, match=f"weight {weight}"):
            ShardContributions(MEMBERS).enter(A, Entry(weight, values_S))


def test_weight_and_values_go_together() -> None:
    contributions = ShardContributions(MEMBERS)
    with pytest.raises(ValueError, match=r"weight 1.0 without values"):
        contributions.enter(A, Entry(1.0, None))
    with pytest.raises(ValueError, match=r"weight 0.0 with values"):
        contributions.enter(A, Entry(0.0, torch.ones(1)))
    assert tuple(contributions.awaited()) == MEMBERS


def test_bounds_can_be_taken_again_over_the_same_contributions() -> None:
    """A call that closes a shard may be cancelled in the middle of it; then another one closes it."""
    contributions = ShardContributions(MEMBERS)
    for number, member in enumerate(MEMBERS):
        contributions.enter(member, Entry(1.0, torch.full((4,), 1e6 if number == 0 else 1.0)))
    (once, found), (again, found_again) = contributions.bounded(2.5), contributions.bounded(2.5)
    assert found == found_again != ()
    means = [each.mean() for each in (once, again)]
    assert [mean_S is not None and mean_S.tolist() for mean_S in means] == [[1.0] * 4] * 2
    assert once.contributors() == contributions.contributors()
