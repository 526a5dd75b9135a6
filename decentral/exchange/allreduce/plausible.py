"""Whether what reducers answered can be means of what was brought. Pure.

A mean is refused for what all members see alike, the other shards of the round, or for a length beyond all measure: so
they refuse the same, and their anchors stay bit-equal. By what a member brought itself it knows more, but not alike:
one that has learnt little meets others that have learnt much, and would refuse what they take. So that is a matter for
a vote (``vote``).

Legend: S = values in a shard.
"""

import math
import statistics
from collections.abc import Sequence

from torch import Tensor

from decentral.exchange.merge import norm_of

#: Of fewer nobody can tell which is unlike the others.
_FEWEST = 3
#: A mean is none if its root mean square is so many times the median shard's.
_ABSURD = 1e4


def absurd(shards: Sequence[tuple[Tensor | None, Tensor]]) -> tuple[int, ...]:
    """Which means of a round are 10,000 times as long as is usual; by index.

    That is the lower median of the root mean squares of the means that are not 0. Of fewer than three it is that of our
    own part: a newcomer, with a step or two behind its part where others have thousands, is within it.

    Args:
        shards: of each our part as others decoded it, if we brought one, and its mean, float32 [S].
    """
    lengths = {i: rms for i, (_, mean_S) in enumerate(shards) if (rms := _rms(mean_S))}
    if len(lengths) >= _FEWEST:
        usual = statistics.median_low(lengths.values())
        return tuple([i for i, rms in lengths.items() if rms > _ABSURD * usual])
    own = {i: _rms(ours_S) for i, (ours_S, _) in enumerate(shards) if ours_S is not None}
    return tuple([i for i, rms in lengths.items() if own.get(i) and rms > _ABSURD * own[i]])


def _rms(x_S: Tensor) -> float:
    """Root mean square."""
    return norm_of(x_S) / math.sqrt(x_S.numel())
