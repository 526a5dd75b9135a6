"""A search with a budget: the same for every arm of a comparison, and the next try from those that were made."""

from collections.abc import Mapping

#: Place of the learning rate, and place of the other setting, each in an ascending list.
Point = tuple[int, int]


def next_try(found: Mapping[Point, float], start: Point, num_rates: int, num_others: int) -> Point | None:
    """A neighbour of the best point so far that was not tried; ``None`` if that is better than all of its neighbours.

    Neighbours differ by one place in one of the two lists; the bolder ones come first, and the other setting before
    the rate.

    Args:
        found: losses.
        start: the first point.
        num_rates: of them there are so many.
        num_others: of them there are so many.
    """
    if not found:
        return start
    rate, other = best(found)
    neighbours = [(rate, other + 1), (rate + 1, other), (rate, other - 1), (rate - 1, other)]
    inside = (point for point in neighbours if point[0] in range(num_rates) and point[1] in range(num_others))
    return next((point for point in inside if point not in found), None)


def best(found: Mapping[Point, float]) -> Point:
    """The point of the least loss; one that is not a number is no loss."""
    return min(found, key=lambda point: (found[point] != found[point], found[point]))
