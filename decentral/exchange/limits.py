"""How long to wait for something, learnt from how long it took before. Pure: durations come as arguments."""

from collections import deque

#: Durations remembered: the swarm may change within so many rounds.
_REMEMBERED = 32
_QUANTILE = 0.9


class Limit:
    """A limit that follows what it limits: ``factor`` times the duration that nine of ten did not exceed.

    What was cut off counts with the limit at which it was, so a limit that has become too short grows by itself.

    Args:
        factor: how far beyond the usual the limit lies, >= 1.
        floor_s: never below this; what is shorter than it is noise.
    """

    def __init__(self, factor: float, floor_s: float) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._seen_s: deque[float] = deque(maxlen=_REMEMBERED)

    def observe(self, seconds: float) -> None:
        """It took so long, or would have."""
        self._seen_s.append(max(0.0, seconds))

    def seconds(self, *, at_first: float, at_most: float) -> float:
        """The limit as of now.

        Args:
            at_first: while nothing has been observed.
            at_most: never above this.
        """
        if not self._seen_s:
            return min(at_first, at_most)
        ranked = sorted(self._seen_s)
        usual_s = ranked[min(len(ranked) - 1, int(_QUANTILE * len(ranked)))]
        return min(at_most, max(self._floor_s, self._factor * usual_s))
