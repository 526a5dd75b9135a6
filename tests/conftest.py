"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# Wall-clock time says nothing on a shared machine, and every run must try the same examples.
settings.register_profile(
    "decentral", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("decentral")
