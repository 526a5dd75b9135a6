"""Whether what reducers answered can be means of what was brought, one's own part among it. Pure.

A member sees nothing of what others brought. But it knows its own part, and what the means of other shards and of
earlier rounds were like beside it: how long, and how far they pointed along with it. A mean that is many times longer,
or points against one's own part where means point along with it, is none. All honest members brought about the same, so
they refuse it alike; one that does not holds another anchor than they and repairs. A reducer that lies by little is not
found so: nobody but it has all parts of its shard.

Legend: S = values in a shard.
"""

import statistics
from collections import deque
from collections.abc import Sequence

from torch import Tensor

from decentral.exchange.bounds import Along, Kind, along, beyond, cosines
from decentral.exchange.merge import norm_of

#: Shards remembered.
_REMEMBERED = 64
#: With fewer nothing is usual yet; then only what is so many times longer than one's own part is no mean: a newcomer
#: has a step or two behind its part, and others hundreds.
_ENOUGH, _AT_FIRST = 3, 1e4


class Plausible:
    """What the means of one fragment have been like.

    Args:
        factor: see ``bounds.bounded``.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._ratios, self._cosines = deque[float](maxlen=_REMEMBERED), deque[float](maxlen=_REMEMBERED)

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
        if not judged:
            return ()
        self._ratios.extend(ratio for _, ratio, _ in judged)
        self._cosines.extend(cosine for _, _, cosine in judged)
        usual, agreement = statistics.median_low(self._ratios), statistics.median_low(self._cosines)
        knows = len(self._ratios) >= _ENOUGH
        return tuple(
            i
            for i, ratio, cosine in judged
            if (beyond(ratio / usual, self._factor) is Kind.WILD if knows else ratio > _AT_FIRST)
            or (knows and along(cosine, agreement, shards[i][0].numel()) is Along.AWAY)
        )
