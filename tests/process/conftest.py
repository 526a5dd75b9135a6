"""What tests of processes have in common."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.process.command import P


@pytest.fixture
def start() -> Iterator[Callable[[P], P]]:
    """Ends processes after the test."""
    with ExitStack() as stack:

        def start(process: P) -> P:
            stack.callback(process.end)
            return process

        yield start
