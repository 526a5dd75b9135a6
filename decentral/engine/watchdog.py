"""Whether the inner steps that a worker asked for come back: a trainer that hangs looks alive to everybody else.

Knows neither the trainer nor the swarm; somebody looks again and again, as at every beat.
"""

from decentral.ports.clock import Clock
from decentral.swarm.timing import Timing

#: Steps that take so many times as long as usual, and so long at least, are not on their way any more.
_FACTOR, _LEAST_S = 10.0, 10.0


class Watchdog:
    """Watches one stretch of inner steps after another.

    Args:
        clock: for durations.
        timing: how long to wait as long as nobody knows what a step takes, and how seldom beats may be.
    """

    def __init__(self, clock: Clock, timing: Timing) -> None:
        self._clock = clock
        self._timing = timing
        self._limit_s: float | None = None
        """As long as steps are asked for."""
        self._looked_at = 0.0
        self.silent_s = 0.0
        """Seconds since steps were asked for, as of the last look."""

    @property
    def stalled(self) -> bool:
        """Whether the steps asked for are overdue."""
        return self._limit_s is not None and self.silent_s > self._limit_s

    def asked(self, usual_s: float) -> None:
        """Steps are asked for which usually take so many seconds; 0 if that is not known."""
        self._limit_s = max(_LEAST_S, _FACTOR * usual_s) if usual_s > 0 else self._timing.max_patience_s
        self._looked_at, self.silent_s = self._clock.monotonic(), 0.0

    def came(self) -> bool:
        """They are here; whether they were overdue."""
        stalled, self._limit_s = self.stalled, None
        return stalled

    def look(self) -> bool:
        """Whether the steps asked for are overdue, as of now.

        A process that was stopped as a whole (SIGSTOP, a laptop that slept) is not its trainer's fault: of what passed
        since the last look no more counts than what passes between two looks of a process that runs.
        """
        now = self._clock.monotonic()
        self.silent_s += min(now - self._looked_at, self._timing.ttl_s)
        self._looked_at = now
        return self.stalled
