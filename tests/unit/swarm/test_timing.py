import pytest

from decentral.swarm.timing import Timing

TIMING = Timing(min_patience_s=5.0, patience_factor=0.5, max_patience_s=60.0, hold_s=2.0, grace_s=3.0)


@pytest.mark.parametrize(
    ("pace_s", "patience_s"), [(0.0, 60.0), (-1.0, 60.0), (1.0, 5.0), (20.0, 10.0), (120.0, 60.0), (1e6, 60.0)]
)
def test_patience_follows_the_pace_within_its_bounds(pace_s: float, patience_s: float) -> None:
    assert TIMING.patience_s(pace_s) == patience_s


def test_a_call_may_take_what_the_slowest_link_takes() -> None:
    assert Timing(min_rate_bytes_per_s=1000.0, hold_s=2.0, grace_s=3.0).call_timeout_s(10_000) == 15.0
