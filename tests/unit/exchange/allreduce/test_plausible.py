"""What can be no mean of what was brought is found by each who brought something, alike."""

import pytest
import torch
from torch import Tensor

from decentral.exchange.allreduce.plausible import Plausible

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


@pytest.mark.parametrize("factor", [-1.0, -0.2, 1e3, -1e6, 1e30])
@pytest.mark.parametrize("lies", [(2,), (2, 5)])
@pytest.mark.parametrize("first", [0, 3])
def test_all_refuse_the_same_shards_from_the_first_round_on(factor: float, lies: tuple[int, ...], first: int) -> None:
    members = [Plausible(2.5) for _ in range(MEMBERS)]
    for round_ in range(first + 1):
        means = answered(round_)
        if round_ == first:
            means = [mean_S * factor if i in lies else mean_S for i, mean_S in enumerate(means)]
        for number, member in enumerate(members):
            refused = member.refused(list(zip(brought(round_, number), means, strict=True)))
            assert refused == (lies if round_ == first else ())


@pytest.mark.parametrize("agreement", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("share", [1.0, 1 / 300])
def test_an_honest_mean_is_never_refused(agreement: float, share: float) -> None:
    """Nor by a newcomer with a step behind its part, where the others have hundreds."""
    member = Plausible(2.5)
    for round_ in range(8):
        ours = [share * part_S for part_S in brought(round_, 0, agreement)]
        assert member.refused(list(zip(ours, answered(round_, agreement), strict=True))) == ()


def test_one_shard_alone_is_judged_by_earlier_rounds() -> None:
    member = Plausible(2.5)
    for round_ in range(4):
        ours_S, mean_S = brought(round_, 0)[0], answered(round_)[0]
        assert member.refused([(ours_S, mean_S)]) == ()
    assert member.refused([(ours_S, -mean_S)]) == (0,)
    assert Plausible(2.5).refused([(ours_S, 1e6 * mean_S)]) == (0,)


def test_beside_nothing_nothing_is_judged() -> None:
    nothing_S = torch.zeros(S)
    assert Plausible(2.5).refused([(nothing_S, torch.ones(S)), (torch.ones(S), nothing_S)]) == ()
