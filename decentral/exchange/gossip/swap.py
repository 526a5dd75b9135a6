r"""The arithmetic of one group: what its host answers, and what a guest makes of the answer. Knows no network.

With the host h, its guests g, and all n of them k, the host takes the means and tells each guest how far the mean
anchor is from that guest's own, a small difference that a coarse codec Q carries well::

    delta  = sum(w_k delta_k) / sum(w_k)            one frame, decoded by everybody, the host included
    D_g    = mean(phi_k) - phi_g                    sent as Q(D_g): the pull of guest g
    D_h    = -sum(Q(D_g))                           the host's own

So the pulls of a group add up to zero and its mean anchor stays where it is, however coarse Q is. What Q leaves of a
difference is still there at the next swap. Nobody's values count for more than a radius around one's own
(``outer.clip``), neither a guest's at its host nor a host's at its guests. In place of values that no honest worker
would bring one's own count: of what is many radii away, and of a pseudo-gradient that points against one's own where
those of others point along with it (``bounds.along``). The anchor that comes with such a pseudo-gradient does not count
either; and if it points along less than half as far as is usual, the anchor has to be within the usual distances.

Legend: N = values in the fragment.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decentral.codecs.frame import pack, unpack
from decentral.exchange.api import Contribution, Memory, Restrained
from decentral.exchange.bounds import Along, Kind, along, cosines, dice_of
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.rest import MeanRest
from decentral.exchange.shard import Entry, ShardContributions
from decentral.exchange.wire import Wire, seed_of
from decentral.outer.clip import REMEMBERED, Radius, clip
from decentral.outer.rule import Mixed
from decentral.types import PeerId, SyncKey

#: So many radii away nobody honest is.
_WILD = 10.0
#: What is shorter than this part of our own, for as much weight, is nothing: a codec leaves so much of zeros.
_NOTHING = 0.02
#: A guest's tokens count at most so many times as those of the host's own whole round.
_MAX_WEIGHT_RATIO = 4.0
#: With so many partners that agree a worker begins: the first that does not is not what is usual.
_TRUST = (1.0, 1.0, 1.0)
#: What no honest worker brings, with words for people.
OFFENCES: Mapping[Kind, str] = {
    Kind.WILD: "its values were far outside of the radius around ours",
    Kind.AGAINST: "its values pointed against ours, and those of others do not",
    Kind.NOTHING: "its values were all 0",
}


@dataclass(frozen=True, slots=True)
class Share:
    """What one member of a group brings."""

    peer: PeerId
    weight: float
    delta_N: Tensor | None
    """As the host decoded it; ``None`` from one that only listens."""
    anchor_N: Tensor
    part: float = 1.0
    """In (0, 1]: how much of a whole round's inner steps is behind it; read of this worker's own only."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a swap comes to for one member."""

    mixed: Mixed
    spread: float
    """RMS of the difference of two replicas' anchors over the RMS of the anchor, as estimated from this swap."""
    restrained: tuple[Restrained, ...] = ()
    """Members whose values did not count as they were brought; the ratio is the distance over the radius, or of
    ``AGAINST`` the cosine."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the host sends back."""

    members: tuple[PeerId, ...]
    contributors: tuple[int, ...]
    mean: bytes
    pulls: dict[PeerId, bytes]
    shares: dict[PeerId, float]
    """How much of the mean is each guest's own, in [0, 1]."""


class Swap:
    """The arithmetic with its memory: radii, and what the codec of means left out. For one thread.

    Args:
        wire: sizes and codecs of pseudo-gradients and means.
        options: codecs of anchors and pulls.
    """

    def __init__(self, wire: Wire, options: GossipOptions) -> None:
        self._wire = wire
        self._options = options
        self._delta_radii = [Radius(options.bound) for _ in wire.numels]
        self._anchor_radii = [Radius(options.bound) for _ in wire.numels]
        self._rest = MeanRest(wire.numels)
        self._lengths = [deque[float](maxlen=REMEMBERED) for _ in wire.numels]
        """Of the own last pseudo-gradients, as of whole rounds."""
        self._cosines = [deque[float](_TRUST, REMEMBERED) for _ in wire.numels]
        """Of partners' pseudo-gradients with the own ones."""
        self._found: dict[PeerId, tuple[Kind, float]] = {}
        """Whose values did not count as they were brought, since that was asked last."""
        self._aside: set[PeerId] = set()
        """Whose pseudo-gradient points along with ours in this swap less than half as far as is usual."""

    def memory(self) -> Memory:
        """Radii, scales, and what is owed to means."""
        radii = {"delta_radii": self._delta_radii, "anchor_radii": self._anchor_radii}
        distances = {name: [list(radius.distances) for radius in each] for name, each in radii.items()}
        lengths, seen = [list(each) for each in self._lengths], [list(each) for each in self._cosines]
        return Memory({"rest": self._rest.owed()}, {"lengths": lengths, "cosines": seen, **distances})

    def remember(self, memory: Memory) -> None:
        """Go on from the memory of an earlier life."""
        self._rest.restore(memory.tensors.get("rest", {}))
        for own, lengths in zip(self._lengths, memory.facts["lengths"], strict=True):
            own.extend(lengths)
        # Of states that were saved before there were any it begins anew.
        for seen, earlier in zip(self._cosines, memory.facts.get("cosines", ()), strict=False):
            seen.clear()
            seen.extend(earlier)
        for name, radii in (("delta_radii", self._delta_radii), ("anchor_radii", self._anchor_radii)):
            for radius, distances in zip(radii, memory.facts[name], strict=True):
                radius.restore(distances)

    def settle(self, key: SyncKey, host: Share, guests: Sequence[Share]) -> tuple[Taken, Answers]:
        """The host's side: means over all, pulls for the guests."""
        members = (host.peer, *(guest.peer for guest in guests))
        self.measure(key.fragment, host.delta_N, host.part)
        mean_N, frame, contributors, shares = self._mean(key, host, guests)
        anchors = {guest.peer: self._anchor(guest, host.anchor_N) for guest in guests}
        own_N, pulls = self.pulls(key.fragment, host.anchor_N, anchors, f"pull/{key.round}/{key.fragment}")
        mixed = Mixed(mean_N, tuple([members[i] for i in contributors]), anchor_N=host.anchor_N + own_N)
        taken = Taken(mixed, spread_of(own_N, host.anchor_N, len(members)), self.restrained())
        return taken, Answers(members, contributors, frame, pulls, shares)

    def measure(self, fragment: int, delta_N: Tensor | None, part: float) -> None:
        """Note how long this worker's own pseudo-gradient would be after a whole round: a distance that is harmless.

        Else a newcomer, with a step or two behind it, would cut all others down to that.
        """
        if delta_N is not None:
            self._lengths[fragment].append(_norm(delta_N) / part)

    def has_measure(self, fragment: int) -> bool:
        """Whether it has one yet. Before that everything would be too far away, and honest peers offenders."""
        return max(self._lengths[fragment], default=0.0) > 0

    def pulls(
        self, fragment: int, anchor_N: Tensor, guests: Mapping[PeerId, Tensor], purpose: str
    ) -> tuple[Tensor, dict[PeerId, bytes]]:
        """What moves the host's anchor to the mean, and a frame that does so for each guest."""
        codec, away, size = self._options.pull_codec, {}, _norm(anchor_N)
        for peer, guest_N in guests.items():
            away[peer] = self._near(peer, self._anchor_radii, fragment, anchor_N, guest_N, size=size) - anchor_N
        mean_N = torch.zeros_like(anchor_N)
        for away_N in away.values():
            mean_N.add_(away_N)
        mean_N.div_(1 + len(guests))
        frames, own_N = {}, torch.zeros_like(anchor_N)
        for peer, away_N in away.items():
            pull_N = away_N.neg_().add_(mean_N)
            frames[peer] = pack(codec, pull_N, seed_of(f"{purpose}/{peer}"))
            own_N.sub_(pull_N if codec.lossless else unpack(frames[peer], codec, pull_N.numel()))
        return own_N, frames

    def take(
        self,
        key: SyncKey,
        mine: Share,
        members: Sequence[PeerId],
        contributors: Sequence[int],
        mean: bytes,
        pull: bytes,
        own_share: float,
    ) -> Taken:
        """A guest's side: the host's answer, checked and clipped.

        Args:
            key: which sync.
            mine: what this worker brought, as the host decoded it.
            members: the group, the host first.
            contributors: indices of those in the mean.
            mean: its frame.
            pull: the frame of this worker's.
            own_share: as the host says, how much of the mean is this worker's own.

        Raises:
            FrameError: a frame breaks a rule.
        """
        host, num, fragment = members[0], len(members), key.fragment
        self.measure(fragment, mine.delta_N, mine.part)
        # Distances are from member to member; the mean is nearer by this.
        share = (num - 1) / num
        pull_N = unpack(pull, self._options.pull_codec, self._wire.numels[fragment])
        delta_N = torch.zeros_like(mine.anchor_N)
        if contributors:
            delta_N = unpack(mean, self._wire.mean_codec, delta_N.numel())
        if contributors and mine.delta_N is not None:
            theirs_N = (delta_N - own_share * mine.delta_N).div_(1 - own_share) if own_share < 1 else mine.delta_N
            weighs = (1 - own_share) / own_share if own_share else 1.0
            delta_N = self._along(host, fragment, mine.delta_N, delta_N, theirs_N, weighs, share)
        pull_N = self.pulled(host, fragment, mine.anchor_N, pull_N, share)
        if self._lies(host):
            pull_N = torch.zeros_like(pull_N)
            delta_N = mine.delta_N if mine.delta_N is not None else delta_N
        inside = tuple([members[i] for i in contributors])
        mixed = Mixed(delta_N, inside, anchor_N=mine.anchor_N + pull_N)
        return Taken(mixed, spread_of(pull_N, mine.anchor_N, num), self.restrained())

    def pulled(self, host: PeerId, fragment: int, anchor_N: Tensor, pull_N: Tensor, share: float) -> Tensor:
        """The pull of a ``host``, clipped; none from one that is wild."""
        nothing_N, size = torch.zeros_like(pull_N), _norm(anchor_N)
        return self._near(host, self._anchor_radii, fragment, nothing_N, pull_N, share, size)

    def restrained(self) -> tuple[Restrained, ...]:
        """Whose values did not count as they were brought since this was asked last: each once, in order of peer id."""
        found, self._found = sorted(self._found.items()), {}
        self._aside.clear()
        return tuple([Restrained(peer, kind, ratio, 1.0) for peer, (kind, ratio) in found])

    def _mean(
        self, key: SyncKey, host: Share, guests: Sequence[Share]
    ) -> tuple[Tensor, bytes, tuple[int, ...], dict[PeerId, float]]:
        """The mean pseudo-gradient as everybody decodes it, its frame, whose it is, and how much is each guest's.

        A host that only listens has nothing to compare with: it passes on the mean of the others as it is.
        """
        contributions = ShardContributions((host.peer, *(guest.peer for guest in guests)))
        contributions.enter(host.peer, Entry(host.weight, host.delta_N))
        weights = {host.peer: host.weight}
        for guest in guests:
            delta_N = guest.delta_N
            weight = guest.weight
            if host.weight and weight:
                weight = min(weight, _MAX_WEIGHT_RATIO * host.weight / host.part)
            if delta_N is not None and host.delta_N is not None:
                weighs = weight / host.weight
                delta_N = self._along(guest.peer, key.fragment, host.delta_N, delta_N, delta_N, weighs)
            contributions.enter(guest.peer, Entry(weight, delta_N))
            weights[guest.peer] = weight
        mean_N = contributions.mean(over_senders=self._wire.over_senders)
        total = sum(weights.values()) or 1.0
        shares = {guest.peer: weights[guest.peer] / total for guest in guests}
        if mean_N is None:
            return torch.zeros_like(host.anchor_N), b"", (), shares
        codec = self._wire.mean_codec
        keep_rest = self._wire.keep_rest and not codec.lossless
        if keep_rest:
            rest_N = self._rest.of(key, 0, mean_N.numel())
            mean_N = mean_N if rest_N is None else mean_N.add_(rest_N)
        frame = pack(codec, mean_N, seed_of(f"mean/{host.peer}/{key.round}/{key.fragment}"))
        decoded_N = mean_N if codec.lossless else unpack(frame, codec, mean_N.numel())
        if keep_rest:
            self._rest.hold(frame, key, 0, mean_N - decoded_N)
            self._rest.settle(frame, mixed=True)
        return decoded_N, frame, contributions.contributors(), shares

    def _along(
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
        length, own_length, seen = _norm(theirs_N), _norm(own_N), self._cosines[fragment]
        if self._options.bound and own_length:
            if length <= _NOTHING * own_length * min(1.0, weighs):
                self._found[peer] = Kind.NOTHING, 0.0
                return own_N
            cosine = float(cosines((own_N, theirs_N), dice_of((own_length, length)))[0, 1])
            direction = along(cosine, statistics.median_low(seen), own_N.numel())
            seen.append(cosine)
            if direction is Along.AWAY:
                self._found[peer] = Kind.AGAINST, cosine
                return own_N
            if direction is Along.ASIDE:
                self._aside.add(peer)
        return self._near(peer, self._delta_radii, fragment, own_N, other_N, share)

    def _near(
        self,
        peer: PeerId,
        radii: Sequence[Radius],
        fragment: int,
        own_N: Tensor,
        other_N: Tensor,
        share: float = 1.0,
        size: float = 0.0,
    ) -> Tensor:
        """Another's values within ``share`` of the radius around one's own; one's own if they were absurdly far off.

        Anchors less far apart than their own ``size`` are not absurd: workers may have trained apart for long.
        """
        # The longest of the last rounds: replicas that did not meet for some of them went apart by as much in each.
        scale = max(self._lengths[fragment], default=0.0)
        is_aside = radii is self._anchor_radii and peer in self._aside
        allowed = share * radii[fragment].limit(0.0 if is_aside else scale)
        limit = share * radii[fragment].limit(scale)  # the last one asked for is that with which a distance counts
        near_N, distance = clip(own_N, other_N, limit)
        radii[fragment].observe(distance / share)
        if distance <= allowed:
            return near_N
        is_wild = distance > max(_WILD * limit, share * size)
        if distance > limit > 0:
            found = Kind.WILD if is_wild else Kind.LENGTH, distance / limit
            self._found[peer] = max(self._found.get(peer, found), found)
        return own_N if is_wild or is_aside else near_N

    def _lies(self, peer: PeerId) -> bool:
        """Whether no honest worker would have brought what this one did."""
        return peer in self._found and self._found[peer][0] in OFFENCES

    def _anchor(self, guest: Share, own_N: Tensor) -> Tensor:
        """A guest's anchor; one's own of who lies."""
        return own_N if self._lies(guest.peer) else guest.anchor_N


def part_of(mine: Contribution, inner_steps: int) -> float:
    """How much of a whole round of H ``inner_steps`` is behind a contribution, in (0, 1]."""
    return min(1.0, max(1, mine.num_inner_steps) / inner_steps)


def spread_of(pull_N: Tensor, anchor_N: Tensor, num_members: int) -> float:
    """What the distance of one member from its group's mean says of the distance between two.

    For n independent replicas of equal variance the squared distance of two is 2 n / (n - 1) times that of one from
    their mean; for a pair this is exact.

    Returns:
        RMS of the difference of two anchors over the RMS of the anchor; NaN for one member or an anchor of zeros.
    """
    rms = _norm(anchor_N)
    if num_members < 2 or not rms:
        return math.nan
    return math.sqrt(2 * num_members / (num_members - 1)) * _norm(pull_N) / rms


def _norm(x_N: Tensor | None) -> float:
    """L2 norm; 0 for nothing."""
    return 0.0 if x_N is None else float(torch.linalg.vector_norm(x_N, dtype=torch.float64))
