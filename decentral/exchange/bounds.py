r"""No contribution counts for much more than is usual among those it comes with: what is done before a mean. Pure.

Everything is measured against medians of the contributions themselves, of one shard in one round. So there is nothing
to set by the task, nothing to remember, and nobody's word to believe. Knows no peers and no messages.

Legend: S = values in a shard.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from decentral.exchange.merge import norm_of, weighted_mean

#: What is so many times longer than it may be is no contribution: it is left out.
_WILD = 10.0
#: A mean is absurd from so many times the usual on.
_ABSURD = 100.0
#: Fewer cannot tell which of them points the wrong way.
_FEWEST_TO_AGREE = 4
#: Members agree if the cosine of the median one with the sum of the others is above so many times what it would be by
#: chance, one over the square root of the values. Whoever then points away from the others by more than chance, and by
#: this share of what the median one points along with them, is left out.
_CHANCE, _AWAY = 4.0, 1 / 8


class Kind(IntEnum):
    """What was done to a contribution; the number travels."""

    WEIGHT = 0
    """Its weight was cut to the largest allowed."""
    LENGTH = 1
    """Its values were scaled to the largest norm allowed."""
    WILD = 2
    """Left out: its norm was more than ten times the largest allowed."""
    AGAINST = 3
    """Left out: it points away from the mean of the others, who agree among each other."""
    NOTHING = 4
    """Left out: all its values are 0, and those of most others are not."""
    MEAN = 5
    """Of a reducer: what it answered was no mean, and nobody uses it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One contribution that was bounded."""

    index: int
    """Which of those given."""
    kind: Kind
    ratio: float
    """Weight or norm over the median of all; of ``AGAINST`` the cosine with the mean of the others."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """What goes into the mean."""

    weights: tuple[float, ...]
    values: tuple[Tensor | None, ...]
    """``None`` for what is left out; else the very tensor that was given, or a scaled copy."""
    findings: tuple[Finding, ...]


def bounded(weights: Sequence[float], values: Sequence[Tensor], factor: float) -> Bounded:
    r"""Contributions to one shard within the bounds that they set each other.

    With the lower medians $\tilde w$ of the weights and $\tilde r$ of the norms $r_i = |x_i|$ of those that are not 0:

    * $w_i \leftarrow \min(w_i, c \tilde w)$
    * $x_i \leftarrow x_i \min(1, c \tilde r / r_i)$, and beyond $10 c \tilde r$ it is left out
    * of four or more that are left: with the cosine $k_i$ of $x_i$ and the sum of all other $x_j$, each at its bounded
      length, and their lower median $\tilde k$: if $\tilde k > 4 / \sqrt S$, whoever has
      $k_i < -\max(4 / \sqrt S, \tilde k / 8)$ is left out

    If fewer than half are liars, $\tilde w$ and $\tilde r$ lie between the least and the greatest of honest ones; if a
    quarter are, between the lower and the upper third of them.

    Args:
        weights: above 0.
        values: float32 [S] each, finite, as many.
        factor: c, at least 1.

    Source: clipping by the median of norms is folklore of robust aggregation (for instance Karimireddy, He and Jaggi,
        arXiv 2012.10333, clip to a fixed radius); factor, rule for directions and the limits are ours.
    """
    if len(values) < 3:  # one of two is no majority, and one alone is the mean
        return Bounded(tuple(weights), tuple(values), ())
    findings: list[Finding] = []
    median_weight = statistics.median_low(weights)
    for i, weight in enumerate(weights):
        if weight > factor * median_weight:
            findings.append(Finding(i, Kind.WEIGHT, weight / median_weight))
    inside, lengths = list[Tensor | None](values), [norm_of(values_S) for values_S in values]
    median_length = statistics.median_low(lengths)
    for i, length in enumerate(lengths) if median_length > 0 else ():
        ratio = length / median_length
        if length == 0:
            inside[i] = None
            findings.append(Finding(i, Kind.NOTHING, 0.0))
        elif ratio > _WILD * factor:
            inside[i] = None
            findings.append(Finding(i, Kind.WILD, ratio))
        elif ratio > factor:
            inside[i], lengths[i] = values[i] * (factor / ratio), factor * median_length
            findings.append(Finding(i, Kind.LENGTH, ratio))
    for i, cosine in _against(inside, lengths):
        inside[i] = None
        findings.append(Finding(i, Kind.AGAINST, cosine))
    capped = tuple([min(weight, factor * median_weight) for weight in weights])
    return Bounded(capped, tuple(inside), tuple(sorted(findings, key=lambda each: (each.index, each.kind))))


def is_absurd(mean_S: Tensor, ours_S: Tensor | None, usual: float) -> bool:
    """Whether a mean is so long that no honest reducer answers it: members see it alike, as they differ by far less.

    Args:
        mean_S: float32 [S], finite.
        ours_S: what this member brought to it, if anything.
        usual: RMS of the fragment's last mean, 0 if there was none.

    Returns:
        True above a hundred times the larger of the two in RMS; if there was no mean yet, above ten thousand times
        ours, as a newcomer's may be the work of a single step.
    """
    root = math.sqrt(mean_S.numel())
    ours = 0.0 if ours_S is None else norm_of(ours_S) / root
    limit = _ABSURD * max(ours, usual) if usual else _ABSURD * _ABSURD * ours
    return 0 < limit < norm_of(mean_S) / root


def _against(values: Sequence[Tensor | None], lengths: Sequence[float]) -> list[tuple[int, float]]:
    """Who points away from the others if these agree, with the cosine. All count alike, whatever they weigh."""
    inside = [(i, values_S) for i, values_S in enumerate(values) if values_S is not None and lengths[i] > 0]
    if len(inside) < _FEWEST_TO_AGREE:
        return []
    sum_S = weighted_mean([1.0] * len(inside), [values_S for _, values_S in inside])
    square = norm_of(sum_S) ** 2
    cosines: dict[int, float] = {}
    for i, values_S in inside:
        along, own = float(torch.dot(sum_S, values_S)), lengths[i] ** 2
        others = math.sqrt(max(0.0, square - 2 * along + own))
        cosines[i] = (along - own) / (others * lengths[i]) if others > 0 else 0.0
    usual = statistics.median_low(cosines.values())
    chance = _CHANCE / math.sqrt(sum_S.numel())
    if not usual > chance:
        return []
    return [(i, cosine) for i, cosine in cosines.items() if cosine < -max(chance, _AWAY * usual)]
