"""What can be no mean is refused by what all see alike, or doubted by what a member brought itself."""

import pytest
import torch
from torch import Tensor

from decentral.exchange.allreduce.plausible import absurd
from decentral.exchange.bounds import beside

S, SHARDS, MEMBERS = 2_000, 8, 6


def brought(round_: int, member: int, agreement: float = 0.5) -> list[Tensor]:
    """What a member brings to all shards of a round: something in common, and something of its own."""
    common, own = (torch.Generator().manual_seed(seed) for seed in (round_, 1000 * (round_ + 1) + member))
    return [
        agreement * torch.randn(S, generator=common) + (1 - agreement) * torch.randn(S, generator=own)
        for _ in range(SHARDS)
    ]


def answered(round_: int, agreement: float = 0.5) -> list[Tensor]:
    parts = [brought(round_, member, agreement) for member in range(MEMBERS)]
    return [torch.stack(shard).mean(0) for shard in zip(*parts, strict=True)]


@pytest.mark.parametrize(("factor", "refused"), [(1e6, (2, 5)), (-1e30, (2, 5)), (1e3, ()), (0.0, ())])
def test_what_is_absurdly_long_beside_the_others_is_refused(factor: float, refused: tuple[int, ...]) -> None:
    means = [mean_S * factor if i in (2, 5) else mean_S for i, mean_S in enumerate(answered(0))]
    assert absurd([(None, mean_S) for mean_S in means]) == refused


@pytest.mark.parametrize(("ours", "refused"), [(None, ()), (0.0, ()), (1.0, (1,)), (1e-3, (0, 1)), (1e4, ())])
def test_of_two_shards_the_own_part_is_the_measure(ours: float | None, refused: tuple[int, ...]) -> None:
    means = 100 * torch.ones(S), 1e6 * torch.ones(S)
    assert absurd([(None if ours is None else ours * torch.ones(S), mean_S) for mean_S in means]) == refused


def against(ours: list[Tensor], means: list[Tensor]) -> set[int]:
    found = [beside(ours_S, mean_S, torch.Generator()) for ours_S, mean_S in zip(ours, means, strict=True)]
    return {i for i, each in enumerate(found) if each.against}


@pytest.mark.parametrize("agreement", [0.0, 0.5])
@pytest.mark.parametrize("factor", [-1.0, -0.2])
def test_a_mean_that_was_turned_around_is_doubted_by_all(factor: float, agreement: float) -> None:
    means = [mean_S * factor if i in (2, 5) else mean_S for i, mean_S in enumerate(answered(0, agreement))]
    for member in range(MEMBERS):
        assert against(brought(0, member, agreement), means) == {2, 5}


@pytest.mark.parametrize("agreement", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("share", [1.0, 1 / 300])
def test_an_honest_mean_is_not_doubted(agreement: float, share: float) -> None:
    """Nor by a newcomer with a step behind its part, where the others have hundreds."""
    for round_ in range(8):
        ours = [share * part_S for part_S in brought(round_, 0, agreement)]
        assert against(ours, answered(round_, agreement)) == set()


def test_beside_nothing_nothing_is_doubted() -> None:
    assert against([torch.zeros(S), torch.ones(S)], [torch.ones(S), torch.zeros(S)]) == set()


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_products_with_all_parts_add_up_to_the_square_of_the_mean(size: int) -> None:
    """Also where most parts point against it, as of members with unlike data near their common goal."""
    parts = list(0.1 * torch.randn(4, size, generator=torch.Generator().manual_seed(0)))
    parts[1:] = [part_S - parts[0] for part_S in parts[1:]]
    parts[0] = 9 * parts[0]
    mean_S = torch.stack(parts).mean(0)
    dice = torch.Generator().manual_seed(1)
    found = [beside(part_S, mean_S, dice) for part_S in parts]
    assert sum(each.against for each in found) == 3
    whole = float(mean_S @ mean_S)
    assert sum(each.product for each in found) / 4 == pytest.approx(whole, rel=0.1)
