"""Clipped gossip: nobody moves another by more than a radius, which sets itself by the distances that are usual.

Knows two vectors and what was measured before, not what they are or who sent them.

Legend: N = values in the fragment, C = values of a chunk of it. All tensors are float32 on the CPU.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

#: The usual distance is the median of so many.
REMEMBERED = 16
#: With fewer there is no usual one yet.
ENOUGH = 4
#: Values looked at together: their copies in double precision stay in a core's cache.
_CHUNK = 1 << 16


def clip(own_N: Tensor, other_N: Tensor, radius: float) -> tuple[Tensor, float]:
    """Bring another's vector to within a radius of one's own, on the straight line between them.

    ``own + (other - own) * min(1, radius / |other - own|)``, with the Euclidean norm

    Args:
        own_N: one's own vector [N].
        other_N: the other's [N], finite. However absurd it is, the result is finite and within the radius.
        radius: >= 0.

    Returns:
        The clipped vector [N], which is ``other_N`` itself if that is within the radius, and the distance of the two
        before, ``|other - own|``.

    Raises:
        ValueError: the shapes differ.

    Source: ClippedGossip (He, Karimireddy and Jaggi, arXiv 2202.01545), the clipping of one neighbour. Differences:
    there a worker adds up what it clipped of all its neighbours, weighted by the mixing matrix, and its radius comes
    from the variance among honest neighbours, which nobody can know; see ``Radius`` for ours.
    """
    if own_N.shape != other_N.shape:
        raise ValueError(f"own vector {list(own_N.shape)} and the other's {list(other_N.shape)} differ in shape")
    # In float32 the difference of finite values may overflow, and squares do from 2e19 on.
    pairs = list(zip(torch.split(own_N, _CHUNK), torch.split(other_N, _CHUNK), strict=True))
    square = 0.0
    for own_C, other_C in pairs:
        gap_C = other_C.double().sub_(own_C)
        square += float(gap_C.dot(gap_C))
    distance = math.sqrt(square)
    if distance <= radius:
        return other_N, distance
    share = radius / distance
    clipped_N = torch.empty_like(own_N)
    for (own_C, other_C), clipped_C in zip(pairs, torch.split(clipped_N, _CHUNK), strict=True):
        clipped_C.copy_(other_C.double().sub_(own_C).mul_(share).add_(own_C))
    return clipped_N, distance


class Radius:
    """How far from one's own vector another's may be: so many times the usual distance, which sets itself.

    The usual distance is the median of the last ``REMEMBERED``, and never less than a scale that is certainly harmless.
    For each vector: ask for the limit, clip, report the distance. It counts with the limit at most. Hence:

    * Distances of which none is more than ``factor`` times another, or the scale, are never clipped. So replicas that
      began as equals may part.
    * As long as fewer than half of the remembered distances are liars', the limit is at most ``factor`` times the
      greatest honest one or the scale: liars cannot have themselves let through. And it is at least ``factor`` times
      the least honest one: they cannot have honest ones clipped.
    * If all distances grow, the limit follows: by ``factor`` for every nine of them.

    Args:
        factor: so many times, at least 1; 0 for no limit.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._distances: deque[float] = deque(maxlen=REMEMBERED)
        self._limit = math.inf

    def limit(self, scale: float) -> float:
        """The radius for the next vector.

        Args:
            scale: a distance that is certainly harmless, above 0, such as the norm of one's own pseudo-gradient.
        """
        # The lower one: of an even number of distances half may be liars' and too long.
        usual = statistics.median_low(self._distances) if len(self._distances) >= ENOUGH else 0.0
        if self._factor:
            self._limit = self._factor * max(scale, usual)
        return self._limit

    @property
    def distances(self) -> tuple[float, ...]:
        """Those remembered, the oldest first."""
        return tuple(self._distances)

    def restore(self, distances: Iterable[float]) -> None:
        """Remember these."""
        self._distances.extend(distances)

    def observe(self, distance: float) -> None:
        """The vector that the last limit was for was so far away before it was clipped."""
        self._distances.append(min(distance, self._limit))
