"""How long to give a transfer, and in how many launches to cut a round, as the link and the steps are measured.

Pure: durations in, counts out. What others would like is their business.
"""

import math
import statistics
from collections import deque

#: Syncs that are remembered: old ones tell of a link that may have changed.
_MEMORY = 16
#: Streaming DiLoCo (arXiv 2501.18512) advises an overlap of at most five inner steps.
_ADVISED_DELAY_STEPS = 5
#: Other numbers of launches within this factor of the present one are not worth a change.
_TOLERANCE = 1.3


class Pacing:
    """What this worker has measured.

    A sync lasts from the launch of a fragment until its result is there. It takes a time that does not depend on
    the size (round trips, and waiting for others), about twice the shortest wait for the others, and a time that does.

    Args:
        inner_steps: H.
        num_fragments: P, the most launches in a round.
    """

    def __init__(self, inner_steps: int, num_fragments: int) -> None:
        self._inner_steps = inner_steps
        self._most_groups = min(num_fragments, inner_steps)
        self._step_s = 0.0
        self._durations_s: deque[float] = deque(maxlen=_MEMORY)
        self._waits_s: deque[float] = deque(maxlen=_MEMORY)
        self._moves_s: deque[tuple[float, float]] = deque(maxlen=_MEMORY)
        """Of each sync the seconds of its transfer and the share of the model that went with it."""

    def stepped(self, step_s: float) -> None:
        """Inner steps take so many seconds now."""
        self._step_s = step_s

    def landed(self, duration_s: float, *, waiting_s: float, transfer_s: float, share: float) -> None:
        """A sync has ended with a result.

        Args:
            duration_s: since its launch.
            waiting_s: of that for others.
            transfer_s: of that for moving values.
            share: of the model's values that were launched together, in (0, 1].
        """
        self._durations_s.append(duration_s)
        self._waits_s.append(waiting_s)
        self._moves_s.append((transfer_s, share))

    @property
    def delay_steps(self) -> int:
        """Inner steps between launch and use: as many as three of four syncs last; at least 1, below H if it can be.

        Sooner would mean that most results are late, which costs nothing but evenness; later that steps are taken
        without what has come already.
        """
        if not self._durations_s or self._step_s <= 0:
            return 1
        longest_s = _upper_quartile(self._durations_s)
        return max(1, min(math.ceil(longest_s / self._step_s), self._inner_steps - 1))

    def num_groups(self, present: int) -> int:
        """Launches in a round with which a transfer lasts no longer than the advised overlap.

        The fewest that do: each launch costs its round trips. Where these alone last longer, as many as make the
        moving as short as the rest.

        Args:
            present: launches in a round at present, kept unless another number is clearly better.
        """
        if not self._moves_s or self._step_s <= 0:
            return present
        fixed_s = 2 * min(self._waits_s)
        whole_s = statistics.median([max(0.0, seconds - fixed_s) / share for seconds, share in self._moves_s])
        room_s = max(_ADVISED_DELAY_STEPS * self._step_s - fixed_s, fixed_s, self._step_s)
        wanted = max(1, min(math.ceil(whole_s / room_s), self._most_groups))
        near = max(wanted, present) <= _TOLERANCE * min(wanted, present)
        return present if near else wanted


def _upper_quartile(values: deque[float]) -> float:
    return sorted(values)[math.ceil(0.75 * len(values)) - 1]
