import math

from decentral.monitor.report import Health, RunFacts, StatusReport, Totals
from decentral.monitor.trend import Trend

RUN = RunFacts("run-1", "diloco", "int8-b128", 40, 1, "0.1.0", "c0ffee")


def told(sent_bytes: int) -> StatusReport:
    totals = Totals(3, 100, 2.5, math.nan, 10.0, sent_bytes, 0, math.nan, 2, math.nan, 0, 0)
    return StatusReport(Health.HEALTHY, RUN, totals, ())


def test_the_rate_is_of_what_was_sent_since_the_point_before_and_never_below_zero():
    trend = Trend()
    for at_s, sent_bytes in ((0.0, 100), (2.0, 400), (4.0, 400), (6.0, 50)):
        trend.take(at_s, told(sent_bytes))
    assert [point.sent_bytes_per_s for point in trend.points] == [0.0, 150.0, 0.0, 0.0]
    assert trend.points[0][1:5] == (2.5, trend.points[0].val_loss, 10.0, 100)


def test_a_long_time_is_kept_in_few_points_of_which_the_last_is_the_newest():
    trend = Trend(max_points=8)
    for second in range(1000):
        trend.take(float(second), told(10 * second))
        assert trend.points[-1].at_s == second
        assert len(trend.points) < 8
    times = [point.at_s for point in trend.points]
    assert times == sorted(times)
    assert times[0] < 260
    assert {point.sent_bytes_per_s for point in trend.points[1:]} == {10.0}
