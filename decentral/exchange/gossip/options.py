"""What all members agree on about gossip: how large groups are, when they meet, and how anchors travel."""

from dataclasses import dataclass

from decentral.codecs.codec import Codec


@dataclass(frozen=True, slots=True)
class RandomSwaps:
    """Swaps of anchors at random moments, in place of those of a round."""

    events_per_round: float
    """How many a worker starts in the time of a round."""
    gamma: float = 0.7
    """By how much of the way to the mean such a swap moves an anchor; in rounds the outer rule decides."""


@dataclass(frozen=True, slots=True)
class GossipOptions:
    """Gossip in place of the all-reduce."""

    anchor_codec: Codec
    """For the anchor that a guest sends its host."""
    pull_codec: Codec
    """For the difference between the group's mean anchor and the guest's, which the host sends back."""
    group_size: int = 2
    """n: members of a group as it is planned; there may be fewer, and one more."""
    swaps: RandomSwaps | None = None
    """``None`` to swap in rounds."""
    over_senders: bool = False
    """Whether a value's mean is over those in the group who sent it."""
    keep_rest: bool = True
    """Whether a host adds what the codec left out of a mean to its next one."""
    bound: float = 5.0
    """So many times the usual distance from one's own another's values may be (see ``outer.clip``); 0 for any."""
