"""Settings of all tests."""

import gc
import os
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

# Before torch is imported. Two files run at a time on two cores: with a second thread for each, test models of this
# size took twice the processor time and three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each process of a test imports the same modules, and each pytest the same tests: compiled once, whatever the
# environment says. Without it every run has all assertions rewritten anew, twice.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Until all is collected: what is imported is no garbage, and to find that out again and again took a quarter as long.
gc.disable()

# Wall-clock time says nothing on a shared machine, and every run must try the same examples.
settings.register_profile(
    "decentral", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("decentral")

# Hypothesis draws constants that it finds in whatever modules are imported by then, which depends on the tests that the
# same process ran before. It also parses every module for them: a second of each process of a first run. Should an
# upgrade of hypothesis not have these names any more, that shows here.
assert callable(providers._get_local_constants)
assert providers._local_constants is not None
providers._get_local_constants = lambda: providers._local_constants


def pytest_configure(config: pytest.Config) -> None:
    """Files in their order. Else pytest-xdist begins with those of most tests, and the longest are left for the end:

    those of processes, each of one long test, and then only one of them runs while everything else is over.
    """
    config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    """Whatever is imported and collected stays to the end: no collection of garbage has to look at it again.

    Transformers has garbage collected once a training; that was three quarters of what its tests took.
    """
    gc.freeze()
    gc.enable()
