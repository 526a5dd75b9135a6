"""How the figures of a swarm went, as reports told them one after the other, in a bounded number of points. Pure."""

from typing import NamedTuple

from decentral.monitor.report import StatusReport


class Point(NamedTuple):
    """A swarm at one time; a figure that is not known is NaN."""

    at_s: float
    """By the clock of whoever asked."""
    loss: float
    """As in ``Totals``, as are the next two."""
    val_loss: float
    tokens_per_s: float
    sent_bytes: int
    sent_bytes_per_s: float
    """Since the point before; 0 if the sum has shrunk, as it does when a worker is forgotten."""
    contributing: int


class Trend:
    """Points in the order in which they came.

    Args:
        max_points: an even number; when there are so many, every second one is forgotten, and of those to come fewer
            are kept: all of the time stays in view, ever more coarsely.
    """

    def __init__(self, max_points: int = 512) -> None:
        self.points: list[Point] = []
        """The newest last."""
        self._max_points = max_points
        self._stride = 1
        self._since_kept = 0
        """Reports since a point that stays; as long as it is not 0, the newest point goes when the next one comes."""

    def take(self, at_s: float, report: StatusReport) -> None:
        """The next report."""
        if self._since_kept:
            self.points.pop()
        totals = report.totals
        sent, took_s = 0, 0.0
        if self.points:
            sent, took_s = totals.sent_bytes - self.points[-1].sent_bytes, at_s - self.points[-1].at_s
        point = Point(
            at_s=at_s,
            loss=totals.loss,
            val_loss=totals.val_loss,
            tokens_per_s=totals.tokens_per_s,
            sent_bytes=totals.sent_bytes,
            sent_bytes_per_s=max(0, sent) / took_s if took_s > 0 else 0.0,
            contributing=totals.contributing,
        )
        self.points.append(point)
        self._since_kept = (self._since_kept + 1) % self._stride
        if len(self.points) >= self._max_points:
            self.points = self.points[1::2]
            self._stride *= 2
            self._since_kept = 0
