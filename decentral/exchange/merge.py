r"""How the members' pseudo-gradients become one, and what each of them weighs. Pure; knows no peers and no messages.

Legend: S = values in a shard, T = values in one tensor of it.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

#: What a contribution weighs (``weight_of``).
WeightBy = Literal["tokens", "token-rate", "equal"]
#: Values [start, stop).
Range = tuple[int, int]

#: Below this norm the mean of directions is no direction. Of 4,096 orthogonal members, the most that a list of
#: participants holds, it is 1/64; what is so much shorter is left over where members cancel, and the codecs' rounding
#: is as large.
_DEGENERATE = 1e-3
#: What is shorter has no direction: its reciprocal is beyond float32.
_ZERO = 1e-36
#: Tokens, which are exact in a float up to here; two absurd weights must not add up to infinity.
MAX_WEIGHT = 2.0**53
#: Values looked at together in double precision.
_PIECE = 1 << 16
#: Token rates are weighed in this unit, a power of two: a round of 10^12 tokens stays within what messages may hold.
_RATE_UNIT = 2.0**20


def weight_of(tokens: int, steps: int, by: WeightBy) -> float:
    r"""The weight of a contribution; 0 if there are no tokens behind it.

    Args:
        tokens: c, trained on since the last contribution that counted.
        steps: s, inner steps in which that was.
        by: ``tokens``: c. ``token-rate``: $c \cdot c / s$, in units of 2^20: of two workers with equally many tokens
            the one with the larger batches counts for more, as its pseudo-gradient is less noisy. ``equal``: 1.

    Source: Decoupled DiLoCo (arXiv 2604.21428) for ``token-rate``; units do not matter to a weighted mean.
    """
    if tokens <= 0 or steps <= 0:
        return 0.0
    if by == "token-rate":
        return tokens * (tokens / steps) / _RATE_UNIT
    return float(tokens) if by == "tokens" else 1.0


def weighted_mean(shares: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    r"""$\sum_i s_i x_i$, accumulated in float32 in the order given.

    Args:
        shares: $s_i$, which add up to 1.
        values: $x_i$, float32 [S] each; at least one.

    Returns:
        float32 [S], fresh memory.
    """
    mean_S = torch.zeros_like(values[0])
    for share, values_S in zip(shares, values, strict=True):
        mean_S.add_(values_S, alpha=share)
    return mean_S


def spread_over_senders(mean_S: Tensor, shares: Sequence[float], values: Sequence[Tensor]) -> None:
    """Divide each value of a weighted mean, in place, by the shares of those only in whose values it is not 0."""
    shares_S = torch.zeros_like(mean_S)
    for share, values_S in zip(shares, values, strict=True):
        shares_S.add_(values_S != 0, alpha=share)
    mean_S.div_(shares_S.masked_fill_(shares_S == 0, 1.0))


def radial_directional(mean_T: Tensor, shares: Sequence[float], values: Sequence[Tensor]) -> None:
    r"""Replace the weighted mean of one tensor, in place, by the mean norm along the mean direction.

    $\left(\sum_i s_i |x_i|\right) \varphi\left(\sum_i s_i \varphi(x_i)\right)$ with $\varphi(x) = x / |x|$ and
    $\varphi(0) = 0$.

    The norm does not depend on how many members there are. That of the weighted mean shrinks with their square root if
    their pseudo-gradients are nearly orthogonal.

    Args:
        mean_T: the weighted mean, float32 [T]. It stays if the members' directions cancel, to a norm below 1e-3: there
            is no mean direction then.
        shares: $s_i$, which add up to 1.
        values: $x_i$, float32 [T] each.

    Source: Decoupled DiLoCo (arXiv 2604.21428), which prints the first factor without norms and says nothing of
        directions that cancel.
    """
    radius, direction_T = 0.0, torch.zeros_like(mean_T)
    for share, values_T in zip(shares, values, strict=True):
        norm = norm_of(values_T)
        radius += share * norm
        if norm > _ZERO:
            direction_T.add_(values_T, alpha=share / norm)
    length = norm_of(direction_T)
    if length >= _DEGENERATE:
        torch.mul(direction_T, radius / length, out=mean_T)


def norm_of(values_T: Tensor) -> float:
    """Euclidean norm, also of values whose squares are beyond float32."""
    norm = float(torch.linalg.vector_norm(values_T))
    if 0 < norm < math.inf:
        return norm
    # The squares of float32 values may be beyond float32. In float64 it takes several times as long, by the piece in a
    # core's cache, lest all values be there twice more.
    pieces = torch.split(values_T, _PIECE)
    return math.hypot(*(float(torch.linalg.vector_norm(each, dtype=torch.float64)) for each in pieces))
