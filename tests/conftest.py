"""Settings of all tests."""

import os

from hypothesis import HealthCheck, settings

# Before torch is imported. Two files run at a time on two cores: with a second thread for each, test models of this
# size took twice the processor time and three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Wall-clock time says nothing on a shared machine, and every run must try the same examples.
settings.register_profile(
    "decentral", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("decentral")
