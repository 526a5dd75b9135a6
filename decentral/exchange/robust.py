r"""Merges that some of the members cannot spoil, whatever they bring. Pure; knows no peers and no messages.

In all of them members count alike, whatever they weigh: whoever chose its weight would choose its say.

Legend: M = members, S = values in a shard, C = values of a chunk of it.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from decentral.exchange.merge import norm_of, weighted_mean

#: What is made of contributions to a shard, float32 [S] each, at least one; float32 [S], fresh memory.
RobustMerge = Callable[[Sequence[Tensor]], Tensor]
#: Values sorted at a time: they stay in a core's cache.
_CHUNK = 1 << 15
#: Steps of centred clipping; from a robust start it hardly moves after them.
_STEPS = 3


def trimmed_mean(values: Sequence[Tensor], num_liars: int) -> Tensor:
    r"""Coordinate by coordinate the mean without the ``num_liars`` largest and as many of the smallest values.

    Each coordinate of the result lies between two honest ones, if there are at most ``num_liars`` liars. Of too few
    members (less than $2 f + 1$) as many are left out as leave one or two: that is their median.

    Source: Yin, Chen, Ramchandran and Bartlett, arXiv 1803.01498.
    """
    trimmed = min(num_liars, (len(values) - 1) // 2)
    merged_S = torch.empty_like(values[0])
    chunks = (torch.split(values_S, _CHUNK) for values_S in values)
    for merged_C, *each in zip(torch.split(merged_S, _CHUNK), *chunks, strict=True):
        ranked_MC = torch.stack(each).sort(dim=0).values
        # In double precision: the sum of two floats near the largest would not be one.
        merged_C.copy_(ranked_MC[trimmed : len(each) - trimmed].double().mean(dim=0))
    return merged_S


def median(values: Sequence[Tensor]) -> Tensor:
    """The median of each coordinate; of an even number of members the mean of the middle two.

    Source: as of ``trimmed_mean``.
    """
    return trimmed_mean(values, len(values))


def nearest(values: Sequence[Tensor], num_liars: int) -> Tensor:
    r"""The trimmed mean of what each member's contribution is among its neighbours.

    First $x_i \leftarrow$ the mean of the $n - f$ contributions nearest to $x_i$, itself among them, by the distance in
    this shard; then ``trimmed_mean``. Of too few members f is cut as there.

    Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, arXiv 2302.01772 (nearest-neighbour mixing). Not
        MoNNA (Farhadkhani et al., arXiv 2209.10931), in which each worker averages with its own nearest: here all have
        to have one mean.
    """
    num_liars = min(num_liars, (len(values) - 1) // 2)
    near = len(values) - num_liars
    apart_MM = torch.zeros(len(values), len(values), dtype=torch.float64)
    for each in zip(*(torch.split(values_S, _CHUNK) for values_S in values), strict=True):
        chunk_MC = torch.stack(each).double()
        apart_MM += torch.stack([(chunk_MC - row_C).square_().sum(dim=1) for row_C in chunk_MC])
    mixed = [
        weighted_mean([1 / near] * near, [values[i] for i in sorted(row.argsort(stable=True)[:near].tolist())])
        for row in apart_MM
    ]
    return trimmed_mean(mixed, num_liars)


def centred_clipping(values: Sequence[Tensor]) -> Tensor:
    r"""A centre $v$ to which everybody is pulled as far as $\tau$ at most.

    Three times $v \leftarrow v + \frac1n \sum_i (x_i - v) \min(1, \tau / |x_i - v|)$, from the coordinate-wise median
    on; $\tau$ is the lower median of the distances $|x_i - v|$ to that.

    Source: Karimireddy, He and Jaggi, arXiv 2012.10333. Differences: they begin at the last round's result, and choose
        the radius; a reducer has another shard in every round, and a joiner no last result. Their workers send momenta:
        a pseudo-gradient is the sum of many steps already.
    """
    centre_S = median(values)
    radius = statistics.median_low(norm_of(values_S - centre_S) for values_S in values)
    for _ in range(_STEPS if radius > 0 else 0):
        moved_S = torch.zeros_like(centre_S)
        for values_S in values:
            away_S = values_S - centre_S
            moved_S.add_(away_S, alpha=min(1.0, radius / max(norm_of(away_S), radius)) / len(values))
        centre_S += moved_S
    return centre_S
