"""Who this worker believes to be alive. Pure: every method that needs the time takes it as ``now``, monotonic seconds.

Evidence of life is a ``seq`` never seen before, or the peer itself in a round. A peer that could not be reached is
buried: it counts as dead until it is heard of again, so a wrong burial heals with the peer's next beat.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from decentral.swarm.presence import ACTIVE, Presence
from decentral.types import PeerId

#: Peers remembered; beyond it the one heard of longest ago is forgotten.
MAX_PEERS = 4096
#: A silent peer stays visible in ``status`` for this many times its time to live.
_REMEMBER_TTLS = 20.0


@dataclass(slots=True)
class _Entry:
    presence: Presence
    heard_at: float
    buried: bool = False


class Roster:
    """The last record of every peer, this worker included.

    Args:
        ttl_s: a peer not heard of for so long is dead.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._entries: dict[PeerId, _Entry] = {}

    def observe(self, presence: Presence, now: float, *, age_s: float = 0.0) -> bool:
        """Take in a verified record whose ``seq`` was new ``age_s`` seconds ago; returns whether it was news here."""
        entry = self._entries.get(presence.peer)
        heard_at = now - max(0.0, age_s)
        if entry is None:
            self._entries[presence.peer] = _Entry(presence, heard_at)
            self.forget(now)
            # Kept in order of peer id, so that nobody who reads has to sort.
            self._entries = dict(sorted(self._entries.items()))
            return True
        if presence.seq <= entry.presence.seq:
            return False
        # The age is hearsay: it must not take back what was heard at first hand.
        entry.presence, entry.heard_at, entry.buried = presence, max(heard_at, entry.heard_at), False
        return True

    def vouch(self, peers: Iterable[PeerId], now: float) -> None:
        """The peers were heard of just now by other means than a record: they called, or a chair has them in a roll."""
        for peer in peers:
            entry = self._entries.get(peer)
            if entry is not None:
                entry.heard_at, entry.buried = now, False

    def bury(self, peer: PeerId) -> None:
        """The peer could not be reached: dead until heard of anew."""
        if peer in self._entries:
            self._entries[peer].buried = True

    def is_live(self, peer: PeerId, now: float) -> bool:
        """Whether the peer was heard of within its time to live and not buried since."""
        entry = self._entries.get(peer)
        return entry is not None and not entry.buried and now - entry.heard_at < self._ttl_s

    def get(self, peer: PeerId) -> Presence | None:
        """The peer's last record, dead or alive."""
        entry = self._entries.get(peer)
        return None if entry is None else entry.presence

    def live(self, now: float) -> list[Presence]:
        """Records of the living, in order of peer id."""
        horizon = now - self._ttl_s
        return [entry.presence for entry in self._entries.values() if entry.heard_at > horizon and not entry.buried]

    def active(self, now: float) -> list[Presence]:
        """Records of living members (training or syncing), in order of peer id."""
        horizon = now - self._ttl_s
        return [
            entry.presence
            for entry in self._entries.values()
            if entry.heard_at > horizon and not entry.buried and entry.presence.state in ACTIVE
        ]

    def with_ages(self, now: float) -> list[tuple[Presence, float]]:
        """Every remembered record with the seconds since it was news, in order of peer id."""
        return [(entry.presence, max(0.0, now - entry.heard_at)) for entry in self._entries.values()]

    def forget(self, now: float) -> None:
        """Drop the long silent, and the most silent one when there are too many."""
        horizon = now - _REMEMBER_TTLS * self._ttl_s
        gone: Iterable[PeerId] = [peer for peer, entry in self._entries.items() if entry.heard_at < horizon]
        if len(self._entries) > MAX_PEERS:
            gone = [min(self._entries, key=lambda peer: self._entries[peer].heard_at), *gone]
        for peer in set(gone):
            del self._entries[peer]
