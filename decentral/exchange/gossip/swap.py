r"""The arithmetic of one group: what its host answers, and what a guest makes of the answer. Knows no network.

With the host h, its guests g, and all n of them k, the host takes the means and tells each guest how far the mean
anchor is from that guest's own, a small difference that a coarse codec Q carries well::

    delta  = sum(w_k delta_k) / sum(w_k)            one frame, decoded by everybody, the host included
    D_g    = mean(phi_k) - phi_g                    sent as Q(D_g): the pull of guest g
    D_h    = -sum(Q(D_g))                           the host's own

So the pulls of a group add up to zero and its mean anchor stays where it is, however coarse Q is. What Q leaves of a
difference is still there at the next swap. How much of what others bring counts is up to ``bounds``.

Legend: N = values in the fragment.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decentral.codecs.frame import pack, unpack
from decentral.errors import FrameError
from decentral.exchange.api import Contribution, Memory, Restrained
from decentral.exchange.gossip.bounds import OwnBounds
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.merge import norm_of
from decentral.exchange.rest import MeanRest
from decentral.exchange.shard import Entry, ShardContributions
from decentral.exchange.wire import Wire, seed_of
from decentral.outer.rule import Mixed
from decentral.types import PeerId, SyncKey

#: A guest's tokens count at most so many times as those of the host's own whole round.
_MAX_WEIGHT_RATIO = 4.0
#: Host and guest, where there is one.
_PAIR = PeerId("host"), PeerId("guest")


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
    """The arithmetic with its memory: bounds, and what the codec of means left out. For one thread.

    Args:
        wire: sizes and codecs of pseudo-gradients and means.
        options: codecs of anchors and pulls.
    """

    def __init__(self, wire: Wire, options: GossipOptions) -> None:
        self._wire = wire
        self._options = options
        self._rest = MeanRest(wire.numels)
        self.bounds = OwnBounds(len(wire.numels), options.bound)

    def memory(self) -> Memory:
        """Bounds, and what is owed to means."""
        return Memory({"rest": self._rest.owed()}, self.bounds.memory())

    def remember(self, memory: Memory) -> None:
        """Go on from the memory of an earlier life."""
        self._rest.restore(memory.tensors.get("rest", {}))
        self.bounds.remember(memory.facts)

    def settle(
        self, key: SyncKey, host: Share, guests: Sequence[Share], *, has_ours: bool = False
    ) -> tuple[Taken, Answers]:
        """The host's side: means over all, pulls for the guests.

        Args:
            key: which sync.
            host: this worker.
            guests: those at its table.
            has_ours: whether the only guest has the host's pseudo-gradient, and takes the mean itself.
        """
        members = (host.peer, *(guest.peer for guest in guests))
        self.bounds.measure(key.fragment, host.delta_N, host.part, key.round)
        mean_N, frame, contributors, shares = self._mean(key, host, guests, has_ours)
        anchors = {guest.peer: self._anchor(guest, host.anchor_N) for guest in guests}
        own_N, pulls = self.pulls(key.fragment, host.anchor_N, anchors, f"pull/{key.round}/{key.fragment}")
        mixed = Mixed(mean_N, tuple([members[i] for i in contributors]), anchor_N=host.anchor_N + own_N)
        taken = Taken(mixed, spread_of(own_N, host.anchor_N, len(members)), self.bounds.restrained())
        return taken, Answers(members, contributors, frame, pulls, shares)

    def pulls(
        self, fragment: int, anchor_N: Tensor, guests: Mapping[PeerId, Tensor], purpose: str
    ) -> tuple[Tensor, dict[PeerId, bytes]]:
        """What moves the host's anchor to the mean, and a frame that does so for each guest."""
        codec, away, size = self._options.pull_codec, {}, norm_of(anchor_N)
        for peer, guest_N in guests.items():
            away[peer] = self.bounds.anchor(peer, fragment, anchor_N, guest_N, 1.0, size) - anchor_N
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
        theirs: bytes | None = None,
    ) -> Taken:
        """A guest's side: the host's answer, checked and clipped.

        Args:
            key: which sync.
            mine: what this worker brought, as the host decoded it.
            members: the group, the host first.
            contributors: indices of those in the mean.
            mean: its frame; empty if it is for the guest to take.
            pull: the frame of this worker's.
            own_share: as the host says, how much of the mean is this worker's own.
            theirs: the frame of what the host brought itself, if the mean is for the guest to take.

        Raises:
            FrameError: a frame breaks a rule.
        """
        host, num, fragment = members[0], len(members), key.fragment
        self.bounds.measure(fragment, mine.delta_N, mine.part, key.round)
        # Distances are from member to member; the mean is nearer by this.
        share = (num - 1) / num
        pull_N = unpack(pull, self._options.pull_codec, self._wire.numels[fragment])
        delta_N, theirs_N = torch.zeros_like(mine.anchor_N), None
        if contributors and theirs is not None:
            theirs_N = unpack(theirs, self._wire.codec, delta_N.numel()) if 0 in contributors else None
            delta_N = self._of_two(theirs_N, mine.delta_N, own_share, num)
        elif contributors:
            delta_N = unpack(mean, self._wire.mean_codec, delta_N.numel())
            if mine.delta_N is not None:
                theirs_N = mine.delta_N
                if own_share < 1:
                    theirs_N = (delta_N - own_share * mine.delta_N).div_(1 - own_share)
        if theirs_N is not None and mine.delta_N is not None:
            weighs = (1 - own_share) / own_share if own_share else 1.0
            delta_N = self.bounds.delta(host, fragment, mine.delta_N, delta_N, theirs_N, weighs, share)
        pull_N = self.pulled(host, fragment, mine.anchor_N, pull_N, share)
        if self.bounds.lies(host):
            pull_N = torch.zeros_like(pull_N)
            delta_N = mine.delta_N if mine.delta_N is not None else delta_N
        inside = tuple([members[i] for i in contributors])
        mixed = Mixed(delta_N, inside, anchor_N=mine.anchor_N + pull_N)
        return Taken(mixed, spread_of(pull_N, mine.anchor_N, num), self.bounds.restrained())

    def pulled(self, host: PeerId, fragment: int, anchor_N: Tensor, pull_N: Tensor, share: float) -> Tensor:
        """The pull of a ``host``, clipped; none from one that is wild."""
        nothing_N, size = torch.zeros_like(pull_N), norm_of(anchor_N)
        return self.bounds.anchor(host, fragment, nothing_N, pull_N, share, size)

    def _of_two(self, host_N: Tensor | None, guest_N: Tensor | None, share: float, num: int = 2) -> Tensor:
        """The mean of a pair, ``share`` of it the guest's: the same numbers on both sides.

        Raises:
            FrameError: they are more, or the share is none.
        """
        both = ((1 - share, host_N), (share, guest_N))
        if num != 2 or any((weight > 0) != (values_N is not None) for weight, values_N in both):
            raise FrameError(f"the mean is said to be of {num}, {share} of it ours")
        return self._merged(_PAIR, [Entry(weight, values_N) for weight, values_N in both])

    def _merged(self, members: Sequence[PeerId], entries: Sequence[Entry]) -> Tensor:
        """The weighted mean of what at least one has brought."""
        contributions = ShardContributions(members)
        for member, entry in zip(members, entries, strict=True):
            contributions.enter(member, entry)
        mean_N = contributions.mean(over_senders=self._wire.over_senders)
        assert mean_N is not None, "one of them has a weight"
        return mean_N

    def _mean(
        self, key: SyncKey, host: Share, guests: Sequence[Share], has_ours: bool
    ) -> tuple[Tensor, bytes, tuple[int, ...], dict[PeerId, float]]:
        """The mean pseudo-gradient as everybody decodes it, its frame, whose it is, and how much is each guest's.

        A host that only listens has nothing to compare with: it passes on the mean of the others as it is.
        """
        entries = [Entry(host.weight, host.delta_N)]
        for guest in guests:
            delta_N = guest.delta_N
            weight = guest.weight
            if host.weight and weight:
                weight = min(weight, _MAX_WEIGHT_RATIO * host.weight / host.part)
            if delta_N is not None and host.delta_N is not None:
                weighs = weight / host.weight
                delta_N = self.bounds.delta(guest.peer, key.fragment, host.delta_N, delta_N, delta_N, weighs)
            entries.append(Entry(weight, delta_N))
        contributors = tuple([index for index, entry in enumerate(entries) if entry.weight])
        total = sum(entry.weight for entry in entries) or 1.0
        shares = {guest.peer: entry.weight / total for guest, entry in zip(guests, entries[1:], strict=True)}
        if not contributors:
            return torch.zeros_like(host.anchor_N), b"", (), shares
        if has_ours:
            ours, theirs = entries
            return self._of_two(ours.values_S, theirs.values_S, shares[guests[0].peer]), b"", contributors, shares
        mean_N = self._merged((host.peer, *(guest.peer for guest in guests)), entries)
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
        return decoded_N, frame, contributors, shares

    def _anchor(self, guest: Share, own_N: Tensor) -> Tensor:
        """A guest's anchor; one's own of who lies."""
        return own_N if self.bounds.lies(guest.peer) else guest.anchor_N


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
    rms = norm_of(anchor_N)
    if num_members < 2 or not rms:
        return math.nan
    return math.sqrt(2 * num_members / (num_members - 1)) * norm_of(pull_N) / rms
