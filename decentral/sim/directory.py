"""A directory in memory, shared by all peers of a network, with the weaknesses of a distributed one.

Records expire on virtual time, may be seen late, may be lost, and do not cross a partition: what was published
before the cut stays visible on both sides, what is published later is visible on the publisher's side until the
cut is healed.
"""

import asyncio
import math
from collections import defaultdict
from dataclasses import dataclass, field

from decentral.sim.loop import virtual_loop
from decentral.sim.network import Endpoint, Network
from decentral.types import PeerId


@dataclass(frozen=True, slots=True)
class _Version:
    """One record as it was published."""

    value: bytes
    publisher: PeerId
    layout: int
    visible_s: float
    expires_s: float


@dataclass(slots=True)
class _Key:
    """The records of one key."""

    versions: dict[str, list[_Version]] = field(default_factory=dict)
    """Of each subkey, the latest last."""
    latest: dict[str, bytes] = field(default_factory=dict)
    """What whoever sees everything reads, until one of them expires."""
    until_s: float = -math.inf
    """When that may be."""

    def add(self, subkey: str, version: _Version, now_s: float) -> None:
        """A record is published."""
        if subkey in self.versions and subkey not in self.latest:
            self.until_s = -math.inf  # it has its old place among the others
        versions = self.versions.setdefault(subkey, [])
        # Older versions stay until they expire: some readers cannot see the latest one yet.
        versions[:] = [older for older in versions if older.expires_s > now_s]
        versions.append(version)
        self.until_s = min(self.until_s, version.expires_s)
        self.latest[subkey] = version.value

    def read(self, now_s: float) -> dict[str, bytes]:
        """The latest record of each subkey that has not expired."""
        if now_s >= self.until_s:
            newest = {subkey: versions[-1] for subkey, versions in self.versions.items()}
            newest = {subkey: version for subkey, version in newest.items() if version.expires_s > now_s}
            self.latest = {subkey: version.value for subkey, version in newest.items()}
            self.until_s = min([version.expires_s for version in newest.values()], default=math.inf)
        return self.latest.copy()


class SharedDirectory:
    """The records of all peers; ``seen_by`` gives each peer its port.

    Args:
        network: whose partitions, latency and loss apply; a publication or a look-up takes one round trip.
        stale_s: how long others do not see what was published.
    """

    def __init__(self, network: Network, *, stale_s: float = 0.0) -> None:
        self.network = network
        self.stale_s = stale_s
        self.records: defaultdict[str, _Key] = defaultdict(_Key)

    def seen_by(self, endpoint: Endpoint) -> "MemoryDirectory":
        """The directory as one peer uses it."""
        return MemoryDirectory(self, endpoint)


class MemoryDirectory:
    """One peer's use of the shared directory; ends when the peer leaves the network."""

    def __init__(self, shared: SharedDirectory, endpoint: Endpoint) -> None:
        self._shared = shared
        self._network = shared.network
        self._endpoint = endpoint
        self._loop = virtual_loop()
        self._closed = False

    async def publish(self, key: str, subkey: str, value: bytes, *, ttl_s: float) -> bool:
        """See ``ports.directory.Directory.publish``. ``False`` if the record was lost or this peer has left."""
        await self._round_trip()
        if self._left or self._network.is_lost():
            return False
        now_s = self._loop.time()
        visible_s, me = now_s + self._shared.stale_s, self._endpoint.peer_id
        version = _Version(value, me, self._network.layout, visible_s, now_s + ttl_s)
        self._shared.records[key].add(subkey, version, now_s)
        return True

    async def lookup(self, key: str) -> dict[str, bytes]:
        """See ``ports.directory.Directory.lookup``. Empty if the look-up was lost or this peer has left."""
        await self._round_trip()
        if self._left or self._network.is_lost():
            return {}
        now_s = self._loop.time()
        records = self._shared.records[key]
        if not (self._shared.stale_s or self._network.is_parted):
            return records.read(now_s)
        found: dict[str, bytes] = {}
        for subkey, versions in records.versions.items():
            latest = self._latest_visible(versions, now_s)
            if latest is not None and latest.expires_s > now_s:
                found[subkey] = latest.value
        return found

    async def close(self) -> None:
        """Leave the directory. What was published stays until it expires."""
        self._closed = True

    @property
    def _left(self) -> bool:
        """Whether this peer cannot reach anybody any more."""
        return self._closed or self._endpoint.gone

    async def _round_trip(self) -> None:
        """Wait for the nearest holder of the key to answer."""
        await asyncio.sleep(2 * self._network.conditions.latency_s)

    def _latest_visible(self, versions: list[_Version], now_s: float) -> _Version | None:
        """What this peer can read of a record: others' late, and not what was published across the present cut."""
        me = self._endpoint.peer_id
        for version in reversed(versions):
            if version.publisher == me:
                return version
            if version.visible_s > now_s:
                continue
            if version.layout == self._network.layout and self._network.blocks(version.publisher, me):
                continue
            return version
        return None
