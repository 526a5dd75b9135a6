"""Who this worker believes to be alive. Pure: every method that needs the time takes it as ``now``, monotonic seconds.

Evidence of life is a ``seq`` never seen before, or the peer itself in a round. A peer that could not be reached is
buried: it counts as dead until it is heard of again, so a wrong burial heals with the peer's next beat.
"""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from decentral.swarm.presence import ACTIVE, Presence, State
from decentral.swarm.timing import lifetime_s
from decentral.types import PeerId

#: Peers remembered; beyond it the one without news for longest is forgotten.
MAX_PEERS = 4096
#: A silent peer stays visible in ``status`` for this many times its time to live.
_REMEMBER_TTLS = 20.0


def without(peer: PeerId, peers: Sequence[PeerId]) -> list[PeerId]:
    """All ``peers``, which are in order, but one."""
    place = bisect.bisect_left(peers, peer)
    there = place < len(peers) and peers[place] == peer
    return [*peers[:place], *peers[place + there :]]


class _Shown:
    """Records in order of peer id; what is asked for twice is one object as long as nothing has changed."""

    def __init__(self, presences: Iterable[Presence] = (), before: tuple[PeerId, ...] = ()) -> None:
        self._by_peer = {presence.peer: presence for presence in presences}
        peers = tuple(self._by_peer)
        self.peers = before if peers == before else peers
        self._records: tuple[Presence, ...] | None = None

    def __contains__(self, peer: PeerId) -> bool:
        """Whether a record of this peer is among them."""
        return peer in self._by_peer

    @property
    def records(self) -> tuple[Presence, ...]:
        """All of them."""
        if self._records is None:
            self._records = tuple(map(self._by_peer.__getitem__, self.peers))
        return self._records

    def show(self, presence: Presence, is_in: bool) -> None:
        """The newest record of a peer, and whether it is among them."""
        peer = presence.peer
        if is_in != (peer in self._by_peer):
            others = without(peer, self.peers)
            self.peers = tuple(sorted([*others, peer]) if is_in else others)
        if is_in:
            self._by_peer[peer], self._records = presence, None
        elif self._by_peer.pop(peer, None) is not None:
            self._records = None


@dataclass(slots=True)
class _Entry:
    presence: Presence
    heard_at: float
    buried: bool = False


class Roster:
    """The last record of every peer, this worker included.

    Args:
        ttl_s: a peer not heard of for so long is dead, as long as there are few (see ``lifetime_s``).
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._entries: dict[PeerId, _Entry] = {}
        """In the order in which the last news of each came in."""
        self._by_peer: list[_Entry] = []
        """In order of peer id, once somebody reads them, but for those that came since (``_in_order``)."""
        self._live, self._active = _Shown(), _Shown()
        self._stale_at: float = -math.inf
        """When the first of the living dies if nothing is heard of it: so long the two are true."""
        self._any_done = False
        """Whether anybody ever was."""
        self._forget_at: float = -math.inf
        """Before that nobody has been silent for too long."""

    def __contains__(self, peer: PeerId) -> bool:
        """Whether the peer is remembered."""
        return peer in self._entries

    def __iter__(self) -> Iterator[PeerId]:
        """The peers that are remembered."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Peers remembered."""
        return len(self._entries)

    def knows(self, presence: Presence) -> bool:
        """Whether this record or a newer one of its peer was observed, so that it is no news."""
        entry = self._entries.get(presence.peer)
        return entry is not None and presence.seq <= entry.presence.seq

    def observe(self, presence: Presence, now: float, *, age_s: float = 0.0) -> bool:
        """Take in a verified record whose ``seq`` was new ``age_s`` seconds ago; returns whether it was news here."""
        entry = self._entries.get(presence.peer)
        heard_at = now - max(0.0, age_s)
        self._any_done = self._any_done or presence.state is State.DONE
        if entry is None:
            entry = self._entries[presence.peer] = _Entry(presence, heard_at)
            self._by_peer.append(entry)
            # With one more, all live longer.
            self._stale_at = self._forget_at = -math.inf
            if len(self._entries) > MAX_PEERS:
                self.drop({next(iter(self._entries))})
            return True
        if presence.seq <= entry.presence.seq:
            return False
        # The age is hearsay: it must not take back what was heard at first hand.
        entry.presence, entry.heard_at, entry.buried = presence, max(heard_at, entry.heard_at), False
        self._entries[presence.peer] = self._entries.pop(presence.peer)
        self._show(entry, now)
        return True

    def _show(self, entry: _Entry, now: float) -> None:
        """There is news of a peer that was known before."""
        if now >= self._stale_at:
            return  # all are gone through again before anybody looks
        presence, lives = entry.presence, not entry.buried
        if lives and presence.peer not in self._live:
            dies_at = entry.heard_at + self._lifetime_s
            lives = now < dies_at
            self._stale_at = min(self._stale_at, dies_at) if lives else self._stale_at
        self._live.show(presence, lives)
        self._active.show(presence, lives and presence.state in ACTIVE)

    def vouch(self, peers: Iterable[PeerId], now: float) -> None:
        """The peers were heard of just now by other means than a record: they called, or a leader named them."""
        entries, lifetime_s = self._entries, self._lifetime_s
        for peer in peers:
            entry = entries.get(peer)
            if entry is not None:
                was_dead = entry.buried or now >= entry.heard_at + lifetime_s
                entry.heard_at, entry.buried = now, False
                if was_dead:
                    self._show(entry, now)

    def bury(self, peer: PeerId) -> None:
        """The peer could not be reached: dead until heard of anew."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.buried = True
            self._show(entry, -math.inf)

    def is_live(self, peer: PeerId, now: float) -> bool:
        """Whether the peer was heard of within its time to live and not buried since."""
        entry = self._entries.get(peer)
        return entry is not None and not entry.buried and self._is_fresh(entry, now)

    def get(self, peer: PeerId) -> Presence | None:
        """The peer's last record, dead or alive."""
        entry = self._entries.get(peer)
        return None if entry is None else entry.presence

    def live(self, now: float) -> tuple[Presence, ...]:
        """Records of the living, in order of peer id; the same object as before while nothing has changed."""
        self._refresh(now)
        return self._live.records

    def active(self, now: float) -> tuple[Presence, ...]:
        """Records of living members (training or syncing), in order of peer id; as with ``live``, one object."""
        self._refresh(now)
        return self._active.records

    def live_peers(self, now: float) -> tuple[PeerId, ...]:
        """The living, in order of peer id; the same object as before while they are the same."""
        self._refresh(now)
        return self._live.peers

    def active_peers(self, now: float) -> tuple[PeerId, ...]:
        """Living members, in order of peer id; the same object as before while they are the same."""
        self._refresh(now)
        return self._active.peers

    def runners(self, now: float) -> tuple[Presence, ...]:
        """Records of living members, and of all who are remembered to have finished the run."""
        if not self._any_done:
            return self.active(now)
        done = [entry.presence for entry in self._in_order() if entry.presence.state is State.DONE]
        return (*self.active(now), *done)

    def _refresh(self, now: float) -> None:
        """Work out anew who lives, if that may have changed."""
        if now < self._stale_at:
            return
        lifetime_s = self._lifetime_s
        living = [entry for entry in self._in_order() if not entry.buried and now < entry.heard_at + lifetime_s]
        records = [entry.presence for entry in living]
        active = [presence for presence in records if presence.state in ACTIVE]
        self._live, self._active = _Shown(records, self._live.peers), _Shown(active, self._active.peers)
        self._stale_at = min([entry.heard_at for entry in living], default=math.inf) + lifetime_s

    def _is_fresh(self, entry: _Entry, now: float) -> bool:
        return now < entry.heard_at + self._lifetime_s

    @property
    def _lifetime_s(self) -> float:
        return lifetime_s(self._ttl_s, len(self._entries))

    def with_ages(self, now: float) -> list[tuple[Presence, float]]:
        """Every remembered record with the seconds since it was news, in order of peer id."""
        return [(entry.presence, max(0.0, now - entry.heard_at)) for entry in self._in_order()]

    def _in_order(self) -> list[_Entry]:
        """All entries, in order of peer id: quick if they were nearly so."""
        self._by_peer.sort(key=lambda entry: entry.presence.peer)
        return self._by_peer

    def longest_silent(self, count: int) -> set[PeerId]:
        """At most ``count`` peers: those whose last news came in longest ago."""
        return set(itertools.islice(self._entries, count))

    def latest(self, now: float, count: int) -> list[tuple[PeerId, float]]:
        """At most ``count`` peers heard of within their time to live, whose news came in last, with its age."""
        latest, lifetime_s = reversed(self._entries.items()), self._lifetime_s
        fresh = ((peer, now - entry.heard_at) for peer, entry in latest if now < entry.heard_at + lifetime_s)
        return list(itertools.islice(fresh, count))

    def forget(self, now: float) -> None:
        """Drop the long silent."""
        if now < self._forget_at:
            return
        after_s = _REMEMBER_TTLS * self._lifetime_s
        self.drop({peer for peer, entry in self._entries.items() if entry.heard_at < now - after_s})
        self._forget_at = min([entry.heard_at for entry in self._entries.values()], default=now) + after_s

    def drop(self, peers: Set[PeerId]) -> None:
        """Forget peers at once."""
        if peers:
            self._entries = {peer: entry for peer, entry in self._entries.items() if peer not in peers}
            self._by_peer = [entry for entry in self._by_peer if entry.presence.peer not in peers]
            self._stale_at = self._forget_at = -math.inf
