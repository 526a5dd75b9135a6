"""What is there at once, to be awaited."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def later(value: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    async def get() -> T:
        return value()

    return get
