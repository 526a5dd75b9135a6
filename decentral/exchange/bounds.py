r"""No contribution counts for much more than is usual among those it comes with: what is done before a mean. Pure.

Everything is measured against medians of the contributions themselves, of one shard in one round. So there is nothing
to set by the task, and nobody's word to believe: who says that it has trained for longer than the others may bring more
as far as it can have (see ``exchange.backlog``). Knows no peers and no messages.

Legend: S = values in a shard.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

import torch
from torch import Tensor

from decentral.exchange.merge import norm_of

#: What is so many times longer than it may be is no contribution: it is left out.
_WILD = 10.0
#: Fewer cannot tell which of them points the wrong way.
_FEWEST_TO_AGREE = 4
#: Members agree if the median one's median cosine with the others is above so many times what a cosine is by chance,
#: one over the square root of the values. Whoever then points away from most others by more than chance, and by this
#: share of what the median one points along with them, is left out.
_CHANCE, _AWAY = 4.0, 1 / 8
#: Cosines are taken of so many values of a shard.
_SAMPLE = 1 << 14
#: Shorter rows have no direction.
_LEAST = 1e-30


class Kind(IntEnum):
    """What was done to a contribution; the number travels."""

    WEIGHT = 0
    """Its weight was cut to the largest allowed."""
    LENGTH = 1
    """Its values were scaled to the largest norm allowed."""
    WILD = 2
    """Left out: its norm was more than ten times the largest allowed."""
    AGAINST = 3
    """Left out: it points away from most others, who agree among each other."""
    NOTHING = 4
    """Left out: all its values are 0, and those of most others are not."""
    MEAN = 5
    """Of a reducer: what it answered was no mean, and nobody uses it."""
    TURNED = 6
    """Of a reducer: what it answered points against what the members brought, and none that found so uses it."""
    SILENT = 7
    """Of a reducer: it gave no account of what it had answered, twice in a row. It is doubted."""
    PROVEN = 8
    """Of a reducer: what it signed proves that it answered no mean of what was brought. It is barred."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One contribution that was bounded."""

    index: int
    """Which of those given."""
    kind: Kind
    ratio: float
    """Weight or norm over the median of all; of ``AGAINST`` the median of its cosines with the others."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """What goes into the mean."""

    weights: tuple[float, ...]
    values: tuple[Tensor | None, ...]
    """``None`` for what is left out; else the very tensor that was given, or a scaled copy."""
    findings: tuple[Finding, ...]


def bounded(
    weights: Sequence[float],
    values: Sequence[Tensor],
    factor: float,
    round_weight: float = 0.0,
    rounds: Sequence[float] = (),
    *,
    seed: int = 0,
    slack: float = 0.0,
) -> Bounded:
    r"""Contributions to one shard within the bounds that they set each other.

    With the lower medians $\tilde w$ of the weights and $\tilde r$ of the norms $r_i = |x_i|$ of those that are not 0:

    * $w_i \leftarrow \min(w_i, c \tilde w)$
    * $c_i = c \max(1, \min(w_i, \rho_i \max(\tilde w, W)) / \tilde w)$ follows the weight that it says it has as far
      as it can have that
    * $x_i \leftarrow x_i \min(1, c_i \tilde r / r_i)$, and beyond $10 c_i \tilde r$ it is left out
    * of four or more that are left: with the agreement $k_i$, the lower median of the cosines of $x_i$ with all other
      $x_j$, and its lower median $\tilde k$: if $\tilde k > 4 / \sqrt S$, whoever has
      $k_i < -\max(4 / \sqrt S, \tilde k / 8)$ is left out. Cosines are of up to 16,384 of the S values, drawn

    If fewer than half are liars, $\tilde w$ and $\tilde r$ lie between the least and the greatest of honest ones; if a
    quarter are, between the lower and the upper third of them.

    Args:
        weights: above 0.
        values: float32 [S] each, finite, as many.
        factor: c, at least 1.
        round_weight: W, of the work of a whole round, as the reducer knows it of itself; 0 if it does not.
        rounds: $\rho_i$, of so many rounds each may have work, at least 1; empty for 1.
        seed: of which values cosines are taken.
        slack: all limits are wider by this share of them, or narrower: where that makes a difference, another machine
            may decide otherwise.

    Source: clipping by the median of norms is folklore of robust aggregation (for instance Karimireddy, He and Jaggi,
        arXiv 2012.10333, clip to a fixed radius); factor, rule for directions and the limits are ours.
    """
    if len(values) < 3:  # one of two is no majority, and one alone is the mean
        return Bounded(tuple(weights), tuple(values), ())
    findings: list[Finding] = []
    factor *= 1 + slack
    median_weight = statistics.median_low(weights)
    for i, weight in enumerate(weights):
        if weight > factor * median_weight:
            findings.append(Finding(i, Kind.WEIGHT, weight / median_weight))
    inside, lengths = list[Tensor | None](values), [norm_of(values_S) for values_S in values]
    median_length = statistics.median_low(lengths)
    most_a_round = max(median_weight, round_weight)
    for i, length in enumerate(lengths) if median_length > 0 else ():
        can_have = most_a_round * (rounds[i] if rounds else 1.0)
        allowed = factor * max(1.0, min(weights[i], can_have) / median_weight)
        ratio = length / median_length
        kind = beyond(ratio, allowed)
        if kind is Kind.LENGTH:
            inside[i], lengths[i] = values[i] * (allowed / ratio), allowed * median_length
        elif kind is not None:
            inside[i] = None
        if kind is not None:
            findings.append(Finding(i, kind, ratio))
    for i, cosine in against(inside, lengths, seed=seed, slack=slack):
        inside[i] = None
        findings.append(Finding(i, Kind.AGAINST, cosine))
    capped = tuple([min(weight, factor * median_weight) for weight in weights])
    return Bounded(capped, tuple(inside), tuple(sorted(findings, key=lambda each: (each.index, each.kind))))


def beyond(ratio: float, factor: float) -> Kind | None:
    """What is wrong with a length that is so many times what is usual, of which ``factor`` times are allowed."""
    if ratio == 0:
        return Kind.NOTHING
    if ratio > _WILD * factor:
        return Kind.WILD
    return Kind.LENGTH if ratio > factor else None


def cosines(values: Sequence[Tensor], dice: torch.Generator) -> Tensor:
    """How far contributions point the same way, whatever their length: the cosine of each with each, float64 [n, n].

    Taken of so many values that it costs next to nothing. Of one that is 0 there, all are 0, that with itself as well.

    Args:
        values: float32 [S] each, finite.
        dice: draw which values.
    """
    numel = values[0].numel()
    places = drawn(numel, dice)
    # In double precision, as squares of finite values may be beyond float32.
    units = torch.nn.functional.normalize(torch.stack([values_S[places].double() for values_S in values]), eps=_LEAST)
    return units @ units.T


def drawn(numel: int, dice: torch.Generator) -> Tensor | slice:
    """Which of so many values are looked at."""
    return torch.randint(numel, (_SAMPLE,), generator=dice) if numel > _SAMPLE else slice(None)


def chance(numel: int) -> float:
    """What a cosine of contributions of so many values may be that have nothing in common."""
    return _CHANCE / math.sqrt(min(numel, _SAMPLE))


@dataclass(frozen=True, slots=True)
class Beside:
    """Another's values, or a mean, beside our own."""

    product: float
    """The scalar product of the two, by estimate from some of their values."""
    cosine: float
    against: bool
    """Whether it points the other way, by more than chance."""


def beside(ours_S: Tensor, theirs_S: Tensor, dice: torch.Generator) -> Beside:
    """Compare our values with others', float32 [S]; ``dice`` draw those that are looked at."""
    numel = theirs_S.numel()
    places = drawn(numel, dice)
    # In double precision, as squares of finite values may be beyond float32.
    ours_K, theirs_K = ours_S[places].double(), theirs_S[places].double()
    product, longest = float(ours_K @ theirs_K), float(ours_K.norm() * theirs_K.norm())
    cosine = product / longest if longest else 0.0
    return Beside(product * numel / len(theirs_K), cosine, cosine < -chance(numel))


class Along(Enum):
    """How a contribution points beside others."""

    ALONG = auto()
    ASIDE = auto()
    """Along with them less than half as far as others do."""
    AWAY = auto()
    """Far against them, where others point along."""


def along(cosine: float, usual: float, numel: int) -> Along:
    """What a cosine says where another one is usual.

    Args:
        cosine: of the one that is judged.
        usual: a median of such cosines.
        numel: S.
    """
    by_chance = chance(numel)
    if not usual > by_chance or cosine > max(by_chance, usual / 2):
        return Along.ALONG
    return Along.AWAY if cosine < -max(by_chance, _AWAY * usual) else Along.ASIDE


def against(
    values: Sequence[Tensor | None],
    lengths: Sequence[float],
    share: float = _AWAY,
    clearly: float = 1.0,
    *,
    seed: int = 0,
    slack: float = 0.0,
) -> list[tuple[int, float]]:
    """Who points away from most others if these agree, with the median of its cosines with them.

    Args:
        values: float32 [S] each, finite; ``None`` for those that are left out already.
        lengths: their norms.
        share: as far as that of what the median one points along with the others.
        clearly: they agree if it does so by so many times what there is by chance.
        seed: of which values cosines are taken.
        slack: see ``bounded``.
    """
    inside = [(i, values_S) for i, values_S in enumerate(values) if values_S is not None and lengths[i] > 0]
    if len(inside) < _FEWEST_TO_AGREE:
        return []
    each = cosines([values_S for _, values_S in inside], torch.Generator().manual_seed(seed))
    # Of each row the lower median without the row's own: that is made the last one.
    medians = each.fill_diagonal_(math.inf).kthvalue(len(inside) // 2, dim=1).values.tolist()
    usual, by_chance = statistics.median_low(medians), chance(inside[0][1].numel()) * (1 + slack)
    if usual <= clearly * by_chance:
        return []
    limit = -max(by_chance, share * usual * (1 + slack))
    return [(i, median) for (i, _), median in zip(inside, medians, strict=True) if median < limit]
