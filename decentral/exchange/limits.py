"""How long to wait for something, and how often to do it. Pure: the time comes as an argument."""

import math
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

    def __init__(self, factor: float, floor_s: float = 0.0) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._seen_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._limit_s: float | None = None
        """Once anything has been observed; it is asked for much more often than that."""

    def observe(self, seconds: float) -> None:
        """It took so long, or would have."""
        self._seen_s.append(max(0.0, seconds))
        ranked = sorted(self._seen_s)
        usual_s = ranked[min(len(ranked) - 1, int(_QUANTILE * len(ranked)))]
        self._limit_s = max(self._floor_s, self._factor * usual_s)

    def seconds(self, *, at_first: float, at_most: float) -> float:
        """The limit as of now.

        Args:
            at_first: while nothing has been observed.
            at_most: never above this.
        """
        return min(at_most, at_first if self._limit_s is None else self._limit_s)


class Allowance:
    """How often something may be done: at a rate in the long run, and some times at once (a token bucket).

    Args:
        at_once: how often in a row without any pause.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = float(at_once)
        self._left = self._at_once
        self._as_of = 0.0

    def take(self, now: float, per_s: float) -> bool:
        """Whether it may be done once more at the time ``now``; then it counts as done.

        Args:
            now: monotonic seconds.
            per_s: the rate since the last time.
        """
        self._left = min(self._at_once, self._left + per_s * max(0.0, now - self._as_of))
        self._as_of = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Budget:
    """Time that may be spent on waiting: a share of the time worked, some of it in advance or saved up.

    Args:
        share: of the time worked, in the long run.
        most: of a stretch of work, at once; so much is there at first.
    """

    def __init__(self, share: float, most: float) -> None:
        self._share, self._most = share, most
        self._left_s = math.inf

    def earn(self, worked_s: float) -> float:
        """A stretch of work has ended, which took so long; returns the seconds that may be spent now."""
        self._left_s = min(self._most * worked_s, self._left_s + self._share * worked_s)
        return self._left_s

    def spend(self, seconds: float) -> None:
        """So much was spent."""
        if self._left_s < math.inf:
            self._left_s = max(0.0, self._left_s - seconds)
