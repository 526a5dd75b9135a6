"""How many blocks each machine should have, and what the next cut is: by speed, by memory, by who is there. Pure.

With t_p seconds that machine p takes for a micro-batch in one of its blocks, there and back, and n_p blocks there, a
batch takes at least (M - 1) max_p n_p t_p + sum_p n_p t_p. The first term is the slowest stage's, and it is what is
made small; of two cuts with equally slow ones the one with the smaller sum is better.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from decentral.pipeline.placement import MAX_STAGES, Placement
from decentral.types import PeerId

#: Blocks move only if the slowest stage then takes no more than this part of its time: noise moves nothing.
WORTH = 0.85


@dataclass(frozen=True, slots=True)
class Machine:
    """A member that may hold blocks."""

    peer: PeerId
    room: int
    """Most blocks that it can hold; less than it has if it wants to leave."""
    block_s: float = math.nan
    """Seconds that a micro-batch takes in a block there, forward and backward; NaN: not measured, taken as the mean of
    the others."""


def shares(num_blocks: int, machines: Sequence[Machine]) -> dict[PeerId, int] | None:
    """Blocks of each machine, so that the slowest is as fast as can be; ``None`` if there is not room for all.

    One block after the other goes to the machine that is least busy with one more. This is optimal: a machine's time
    only grows with its blocks. Who gets none is left out; at most ``MAX_STAGES`` get some, the fastest.
    """
    paces = _paces(machines)
    fastest = sorted((m for m in machines if m.room > 0), key=lambda m: (paces[m.peer], m.peer))[:MAX_STAGES]
    found = dict.fromkeys((m.peer for m in fastest), 0)
    for _ in range(num_blocks):
        free = [m for m in fastest if found[m.peer] < m.room]
        if not free:
            return None
        chosen = min(free, key=lambda m: ((found[m.peer] + 1) * paces[m.peer], paces[m.peer], m.peer))
        found[chosen.peer] += 1
    return {peer: count for peer, count in found.items() if count}


def slowest(held: Mapping[PeerId, int], machines: Sequence[Machine]) -> float:
    """Seconds of the slowest stage for a micro-batch."""
    paces = _paces(machines)
    return max((count * paces.get(peer, 0.0) for peer, count in held.items()), default=0.0)


def next_cut(
    now: Placement, machines: Sequence[Machine], num_blocks: int, most: float, *, must: bool = False
) -> Placement | None:
    """The cut to change to; ``None`` to stay.

    The blocks go towards where they should be (``shares``), in order, so that few of them move: a machine that comes
    gets its place where it costs least. Who holds more than it has room for gives blocks away whatever that costs, and
    all at once, as it may be about to leave.

    Args:
        now: the cut in force, with those who hold its stages now.
        machines: all that may hold blocks.
        num_blocks: of the model.
        most: blocks that a machine may be given at once; 0: no speed is worth it.
        must: whether there has to be another cut in any case.
    """
    target = shares(num_blocks, machines)
    if target is None:
        return None
    if not now.bounds:
        return _placed(now.number + 1, [(peer, target[peer]) for peer in sorted(target)])
    held = {peer: stop - first for peer, (first, stop) in zip(now.peers, now.spans, strict=True)}
    room = {m.peer: m.room for m in machines}
    forced = must or any(count > room.get(peer, count) for peer, count in held.items())
    before = slowest(held, machines)
    if not forced and (most < 1 or slowest(target, machines) > WORTH * before):
        return None
    order = list(now.peers)
    for peer in sorted(set(target) - set(held)):
        order = min(
            ([*order[:at], peer, *order[at:]] for at in range(len(order) + 1)),
            key=lambda one: _num_moved(one, held, target),
        )
    begin, end = _bounds(order, held), _bounds(order, target)
    for bounds in [end] if forced else _steps(begin, end, most):
        counts = {peer: stop - first for peer, (first, stop) in zip(order, pairwise(bounds), strict=True)}
        if forced or slowest(counts, machines) <= before:
            return _placed(now.number + 1, [(peer, counts[peer]) for peer in order if counts[peer]])
    return None


def _steps(begin: Sequence[int], end: Sequence[int], most: float) -> Iterator[list[int]]:
    """Bounds on the way, the furthest first, with which nobody is given more blocks at once than ``most``."""
    for reach in range(max(abs(b - a) for a, b in zip(begin, end, strict=True)), 0, -1):
        bounds = [a + max(-reach, min(reach, b - a)) for a, b in zip(begin, end, strict=True)]
        if max(_received(begin, bounds)) <= most:
            yield bounds
    for at, (a, b) in enumerate(zip(begin, end, strict=True)):
        if a != b:  # a machine that is given something from both sides, by one of them
            bounds = [*begin[:at], a + (1 if b > a else -1), *begin[at + 1 :]]
            if all(first <= stop for first, stop in pairwise(bounds)):
                yield bounds


def _paces(machines: Sequence[Machine]) -> dict[PeerId, float]:
    known = [m.block_s for m in machines if m.block_s > 0]
    mean = statistics.fmean(known) if known else 1.0
    return {m.peer: m.block_s if m.block_s > 0 else mean for m in machines}


def _bounds(order: Sequence[PeerId], counts: Mapping[PeerId, int]) -> list[int]:
    return [0, *accumulate(counts.get(peer, 0) for peer in order)]


def _received(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Blocks that each gets which it has not had."""
    kept = [max(0, min(b, d) - max(a, c)) for (a, b), (c, d) in zip(pairwise(before), pairwise(after), strict=True)]
    return [stop - first - same for (first, stop), same in zip(pairwise(after), kept, strict=True)]


def _num_moved(order: Sequence[PeerId], held: Mapping[PeerId, int], target: Mapping[PeerId, int]) -> int:
    return sum(_received(_bounds(order, held), _bounds(order, target)))


def _placed(number: int, stages: Sequence[tuple[PeerId, int]]) -> Placement:
    return Placement(number, (0, *accumulate(count for _, count in stages)), tuple(peer for peer, _ in stages))
