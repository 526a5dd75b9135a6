import importlib

import pytest

from tests.support.harness import Harness


@pytest.fixture(params=["memory", "hivemind"])
def harness(request: pytest.FixtureRequest) -> Harness:
    """A harness of either kind. Imported when asked for, so that one kind can be tested without the other."""
    kind = request.param
    module = importlib.import_module(f"tests.support.{kind}_harness")
    harness: Harness = getattr(module, f"{kind.capitalize()}Harness")()
    return harness
