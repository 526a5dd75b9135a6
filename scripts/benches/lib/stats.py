"""Numbers of several runs as one: spread, and pairs that differ in one thing."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def grouped(values: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """By key, in the order in which keys come."""
    found: defaultdict[K, list[T]] = defaultdict(list)
    for value in values:
        found[key(value)].append(value)
    return dict(found)


def gaps(ours: Mapping[K, float], theirs: Mapping[K, float]) -> list[float]:
    """By how much ours are above theirs, as a share of theirs, for every key (such as a seed) that both have."""
    return [value / theirs[key] - 1 for key, value in ours.items() if key in theirs]


def spread(
    values: Sequence[float], form: str, middle: Callable[[Sequence[float]], float] = statistics.mean, join: str = " to "
) -> str:
    """Mean, or another middle, and in brackets the least and the greatest; one value alone as it is."""
    text = format(middle(values), form)
    return f"{text} ({between(values, form, join)})" if len(values) > 1 else text


def between(values: Sequence[float], form: str, join: str = " to ") -> str:
    """The least and the greatest."""
    return f"{min(values):{form}}{join}{max(values):{form}}"


def listed(values: Iterable[float], form: str) -> str:
    """All of them, with commas."""
    return ", ".join(format(value, form) for value in values)


def bars(values: Sequence[float], middle: float) -> list[list[float]]:
    """Error bars of a plot from the least to the greatest value."""
    return [[middle - min(values)], [max(values) - middle]]
