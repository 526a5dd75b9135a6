"""Every duration of the protocol in one place. Seconds on one machine's monotonic clock, never compared across two."""

from dataclasses import dataclass

#: Up to so many workers nearly all news is younger than four beats, the usual time to live. With more it takes longer
#: in proportion, as an exchange of records carries 16 of them: with 64 one in ten thousand is older than 24 beats.
_QUICK_PEERS = 12


def lifetime_s(ttl_s: float, num_peers: int) -> float:
    """How long a peer may be silent before it counts as dead, where the news of so many goes from mouth to mouth."""
    return ttl_s * max(1.0, num_peers / _QUICK_PEERS)


@dataclass(frozen=True, slots=True)
class Timing:
    """How often to say that one lives, and how long to wait for whom.

    A worker is waited for as long as it is alive and not a known straggler; the other limits are backstops. Patience
    follows the pace of the swarm, so that the same settings serve rounds of a second and rounds of an hour.
    """

    beat_s: float = 1.5
    """Between two signs of life."""
    ttl_s: float = 6.0
    """A worker silent for so long is dead; in swarms of more than a dozen longer (``lifetime_s``)."""
    min_patience_s: float = 5.0
    """The least time to wait for a living worker at the start of a round."""
    patience_factor: float = 1.0
    """Wait for a living worker for so many times the duration of one's own inner steps ..."""
    max_patience_s: float = 120.0
    """... but never longer than this, which also holds while no pace is known."""
    transfer_timeout_s: float = 60.0
    """A shard is closed over the parts that have arrived after at most this time."""
    hold_s: float = 2.0
    """A peer answers "not yet" after so long, so that a lost reply costs seconds and not a round."""
    grace_s: float = 3.0
    """Added to every expected duration of a call before it counts as lost."""
    min_rate_bytes_per_s: float = 50_000.0
    """The slowest link that can take part: bounds the time of a transfer of known size."""

    def patience_s(self, pace_s: float) -> float:
        """How long to wait for a living member when one's own inner steps took ``pace_s`` (0 if unknown)."""
        if pace_s <= 0:
            return self.max_patience_s
        return min(self.max_patience_s, max(self.min_patience_s, self.patience_factor * pace_s))

    def call_timeout_s(self, size_bytes: int) -> float:
        """Deadline of a held call that moves ``size_bytes`` in both directions together."""
        return self.hold_s + self.grace_s + size_bytes / self.min_rate_bytes_per_s
