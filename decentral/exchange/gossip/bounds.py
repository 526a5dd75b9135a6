"""How much of what others bring counts, by what this worker brought itself. For one thread; knows no network.

With pairs there is nobody to outvote anybody. Nobody's values count for more than a radius around one's own
(``outer.clip``), neither a guest's at its host nor a host's at its guests. In place of values that no honest worker
would bring one's own count: of what is many radii away, and of a pseudo-gradient that points against one's own where
those of others point along with it (``exchange.bounds.along``). The anchor that comes with such a pseudo-gradient does
not count either; and if it points along less than half as far as is usual, the anchor counts within the usual
distance and no further.

Legend: N = values in the fragment.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from decentral.exchange.api import Restrained
from decentral.exchange.bounds import Along, Kind, along, beside
from decentral.exchange.merge import norm_of
from decentral.outer.clip import REMEMBERED, Radius, clip
from decentral.types import PeerId

#: So many radii away nobody honest is.
_WILD = 10.0
#: What is shorter than this part of our own, for as much weight, is nothing: a codec leaves so much of zeros.
_NOTHING = 0.02
#: With so many partners that agree a founder begins: the first that does not is not what is usual.
_TRUST = (1.0, 1.0, 1.0)
#: What no honest worker brings, with words for people.
OFFENCES: Mapping[Kind, str] = {
    Kind.WILD: "its values were far outside of the radius around ours",
    Kind.AGAINST: "its values pointed against ours, and those of others do not",
    Kind.NOTHING: "its values were all 0",
}


class OwnBounds:
    """Bounds around one's own values, with the distances and directions that they come from.

    Args:
        num_fragments: each has its own.
        bound: see ``outer.clip.Radius``; with 0 nothing is bounded.
    """

    def __init__(self, num_fragments: int, bound: float) -> None:
        self._bound = bound
        self._delta_radii = [Radius(bound) for _ in range(num_fragments)]
        self._anchor_radii = [Radius(bound) for _ in range(num_fragments)]
        self._lengths = [deque[float](maxlen=REMEMBERED) for _ in range(num_fragments)]
        """Of the own last pseudo-gradients, as of whole rounds."""
        self._cosines = [deque[float](_TRUST, REMEMBERED) for _ in range(num_fragments)]
        """Of partners' pseudo-gradients with the own ones."""
        self._found: dict[PeerId, tuple[Kind, float]] = {}
        """Whose values did not count as they were brought, since that was asked last."""
        self._aside: set[PeerId] = set()
        """Whose pseudo-gradient points along with ours in this swap less than half as far as is usual."""

    def memory(self) -> dict[str, Any]:
        """Radii, scales and directions, as plain values."""
        radii = {"delta_radii": self._delta_radii, "anchor_radii": self._anchor_radii}
        distances = {name: [list(radius.distances) for radius in each] for name, each in radii.items()}
        lengths, seen = [list(each) for each in self._lengths], [list(each) for each in self._cosines]
        return {"lengths": lengths, "cosines": seen, **distances}

    def remember(self, facts: Mapping[str, Any]) -> None:
        """Go on from those of an earlier life."""
        for own, lengths in zip(self._lengths, facts["lengths"], strict=True):
            own.extend(lengths)
        # Of states that were saved before there were any it begins anew.
        for seen, earlier in zip(self._cosines, facts.get("cosines", ()), strict=False):
            seen.clear()
            seen.extend(earlier)
        for name, radii in (("delta_radii", self._delta_radii), ("anchor_radii", self._anchor_radii)):
            for radius, distances in zip(radii, facts[name], strict=True):
                radius.restore(distances)

    def measure(self, fragment: int, delta_N: Tensor | None, part: float, round: int) -> None:
        """Note how long this worker's own pseudo-gradient would be after a whole round: a distance that is harmless.

        Else a newcomer, with a step or two behind it, would cut all others down to that. If its first ``round`` is a
        later one, workers may have come so far that they do not agree any more: it trusts only in what it sees.
        """
        if delta_N is not None:
            if round and not self._lengths[fragment]:
                self._cosines[fragment].clear()
            self._lengths[fragment].append(norm_of(delta_N) / part)

    def has_measure(self, fragment: int) -> bool:
        """Whether it has one yet. Before that everything would be too far away, and honest peers offenders."""
        return max(self._lengths[fragment], default=0.0) > 0

    def delta(
        self,
        peer: PeerId,
        fragment: int,
        own_N: Tensor,
        other_N: Tensor,
        theirs_N: Tensor,
        weighs: float,
        share: float = 1.0,
    ) -> Tensor:
        """Another's pseudo-gradient, or a mean with it, as it may count: one's own if ``theirs_N`` is none.

        It may be shorter than ours by as much as it ``weighs`` less: there are fewer steps behind it.
        """
        length, own_length, seen = norm_of(theirs_N), norm_of(own_N), self._cosines[fragment]
        if self._bound and own_length:
            if length <= _NOTHING * own_length * min(1.0, weighs):
                self._found[peer] = Kind.NOTHING, 0.0
                return own_N
            # Both lengths decide which values are looked at: whoever chose one does not know the other.
            dice = torch.Generator().manual_seed(hash((own_length, length)) & 0x7FFFFFFF)
            cosine = beside(own_N, theirs_N, dice).cosine
            direction = along(cosine, statistics.median_low(seen or (0.0,)), own_N.numel())
            seen.append(cosine)
            if direction is Along.AWAY:
                self._found[peer] = Kind.AGAINST, cosine
                return own_N
            if direction is Along.ASIDE:
                self._aside.add(peer)
        return self._near(peer, self._delta_radii, fragment, own_N, other_N, share)

    def anchor(self, peer: PeerId, fragment: int, own_N: Tensor, other_N: Tensor, share: float, size: float) -> Tensor:
        """Another's anchor, or a pull towards it, as it may count; see ``_near``."""
        return self._near(peer, self._anchor_radii, fragment, own_N, other_N, share, size)

    def lies(self, peer: PeerId) -> bool:
        """Whether no honest worker would have brought what this one did in this swap."""
        return peer in self._found and self._found[peer][0] in OFFENCES

    def restrained(self) -> tuple[Restrained, ...]:
        """Whose values did not count as they were brought since this was asked last: each once, in order of peer id."""
        found, self._found = sorted(self._found.items()), {}
        self._aside.clear()
        return tuple([Restrained(peer, kind, ratio, 1.0) for peer, (kind, ratio) in found])

    def _near(
        self,
        peer: PeerId,
        radii: Sequence[Radius],
        fragment: int,
        own_N: Tensor,
        other_N: Tensor,
        share: float,
        size: float = 0.0,
    ) -> Tensor:
        """Another's values within ``share`` of the radius around one's own; one's own if they were absurdly far off.

        Anchors less far apart than their own ``size`` are not absurd: workers may have trained apart for long.
        """
        # The longest of the last rounds: replicas that did not meet for some of them went apart by as much in each.
        scale = max(self._lengths[fragment], default=0.0)
        is_aside = radii is self._anchor_radii and peer in self._aside
        usual = share * radii[fragment].limit(0.0) / self._bound if is_aside else math.inf
        limit = share * radii[fragment].limit(scale)  # the last one asked for is that with which a distance counts
        near_N, distance = clip(own_N, other_N, min(usual, limit))
        radii[fragment].observe(distance / share)
        is_wild = distance > max(_WILD * limit, share * size)
        if distance > limit > 0:
            found = Kind.WILD if is_wild else Kind.LENGTH, distance / limit
            self._found[peer] = max(self._found.get(peer, found), found)
        return own_N if is_wild else near_N
