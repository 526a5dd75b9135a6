"""What all members agree on about gossip: how large groups are and how anchors travel."""

from dataclasses import dataclass

from decentral.codecs.codec import Codec


@dataclass(frozen=True, slots=True)
class Pairing:
    """Gossip in place of the all-reduce."""

    anchor_codec: Codec
    """For the anchor that a guest sends its host."""
    pull_codec: Codec
    """For the difference between the group's mean anchor and the guest's, which the host sends back."""
    group_size: int = 2
    """n: members of a group as it is planned; there may be fewer, and one more."""
    events_per_round: float | None = None
    """Swaps of anchors that a worker starts in the time of a round, at random moments; ``None`` to swap in rounds."""
    gamma: float = 0.7
    """By how much of the way to the mean such a swap moves an anchor; in rounds the outer rule decides."""
