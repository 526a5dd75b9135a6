"""Whether what reducers answered can be means of what was brought, one's own part among it. Pure.

A member sees nothing of what others brought. But it knows its own part, and what the means of other shards are like
beside it: how long, and how far they point along with it. A mean that is many times longer, or points against one's own
part as far as means point along with it, is none. Both have wide margins, as all honest members must refuse the same:
one that does not holds another anchor than they and repairs. A reducer that lies by little is not found so: nobody but
it has all parts of its shard.

Legend: S = values in a shard.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

from torch import Tensor

from decentral.exchange.bounds import Kind, beyond, chance, cosines
from decentral.exchange.merge import norm_of

#: Cosines remembered, of so many shards.
_REMEMBERED = 64
#: With fewer nothing is usual.
_ENOUGH = 3
#: In a round of fewer shards what is so many times longer than one's own part is no mean: a newcomer has a step or two
#: behind its part, and others hundreds.
_ABSURD = 1e4


class Plausible:
    """What the means of one fragment have been like.

    Args:
        factor: see ``bounds.bounded``.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._cosines = deque[float](maxlen=_REMEMBERED)

    def refused(self, shards: Sequence[tuple[Tensor, Tensor]]) -> tuple[int, ...]:
        """Which answers of a round are no means.

        Args:
            shards: of each our part as others decoded it, and what was answered, float32 [S].

        Returns:
            Their indices. Beside a part of zeros nothing can be judged.
        """
        judged: list[tuple[int, float, float]] = []
        for i, (ours_S, mean_S) in enumerate(shards):
            ours, length = norm_of(ours_S), norm_of(mean_S)
            if ours and length:
                judged.append((i, length / ours, cosines((ours_S, mean_S), (ours, length))[0][1]))
        self._cosines.extend(cosine for _, _, cosine in judged)
        agreement = statistics.median_low(self._cosines) if len(self._cosines) >= _ENOUGH else 0.0
        usual = statistics.median_low([ratio for _, ratio, _ in judged]) if len(judged) >= _ENOUGH else math.nan

        def is_none(numel: int, ratio: float, cosine: float) -> bool:
            is_long = ratio > _ABSURD if math.isnan(usual) else beyond(ratio / usual, self._factor) is Kind.WILD
            return is_long or (agreement > chance(numel) and cosine < -max(chance(numel), agreement / 2))

        return tuple([i for i, ratio, cosine in judged if is_none(shards[i][0].numel(), ratio, cosine)])
