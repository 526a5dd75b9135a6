"""Expiring records in hivemind's DHT. Implements ``ports.directory.Directory``.

hivemind's expiry is a moment on the wall clock, as each holder sees it. We publish it on the clock of the peers we
joined through, so a worker whose clock is behind stays visible to others. A worker whose clock is *ahead* drops what
it reads as expired; that cannot be mended from outside hivemind, and need not be: workers that know each other also
exchange presence directly (``swarm.presence``), by age and not by date.
"""

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Sequence
from itertools import islice
from typing import TypeVar

from decentral.adapters.hivemind_light import P2P, DHTNode, DHTRecord, MSGPackSerializer, PeerID, dht_pb2
from decentral.types import PeerId

T = TypeVar("T")
_log = logging.getLogger(__name__)

_RPC_TIMEOUT_S = 3.0
#: A store or a search takes several rounds of calls, each bounded by the limit above.
_DEADLINE_S = 10.0
#: Only our own daemon is asked; it does not answer at all if it is gone.
_CLOSE_TIMEOUT_S = 1.0
#: hivemind holds up to 4 MB a record; ours are far smaller, and a search returns all of a key's.
_MAX_VALUE_BYTES = 65_536
_MAX_SUBKEY_BYTES = 256
#: More entries under one key than any swarm has workers come from somebody who makes them up.
_MAX_ENTRIES = 4096
_MAX_TTL_S = 3600.0
#: Beyond this a clock is not skewed but made up.
_MAX_OFFSET_S = 86_400.0


class _RecordCheck:
    """What this node stores for others and reads from them: entries of a dictionary that hold few bytes, for a while.

    hivemind by itself lets anybody replace a whole dictionary by a plain value, claim an entry for a hundred years,
    and spoil a search with an entry that cannot be unpacked.
    """

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record is one that a directory of ours could have published."""
        if len(record.value) > _MAX_VALUE_BYTES + 16 or len(record.subkey) > _MAX_SUBKEY_BYTES:
            return False
        try:
            subkey, value = MSGPackSerializer.loads(record.subkey), MSGPackSerializer.loads(record.value)
        except Exception:  # The unpacker raises whatever the bytes provoke.
            return False
        lasts_s = record.expiration_time - time.time()
        return isinstance(subkey, str) and isinstance(value, bytes) and lasts_s < _MAX_TTL_S + _MAX_OFFSET_S

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value as it is: our records bring their own signatures."""
        value: bytes = record.value
        return value

    strip_value = sign_value


class HivemindDirectory:
    """One peer's view of the DHT. Made by ``open_directory``."""

    def __init__(self, node: DHTNode, offset_s: float) -> None:
        self._node = node
        self._offset_s = offset_s
        self._closed = False

    async def publish(self, key: str, subkey: str, value: bytes, *, ttl_s: float) -> bool:
        """See ``ports.directory.Directory.publish``."""
        if self._closed or len(value) > _MAX_VALUE_BYTES or ttl_s > _MAX_TTL_S:
            return False
        expiration = time.time() + self._offset_s + ttl_s
        stored = await _within_deadline(self._node.store(key, value, expiration, subkey=subkey), "publish")
        return bool(stored)

    async def lookup(self, key: str) -> dict[str, bytes]:
        """See ``ports.directory.Directory.lookup``."""
        if self._closed:
            return {}
        found = await _within_deadline(self._node.get(key, latest=True), "lookup")
        entries = found.value if found is not None and isinstance(found.value, dict) else {}
        return {subkey: entry.value for subkey, entry in islice(entries.items(), _MAX_ENTRIES)}

    async def close(self) -> None:
        """Leave the DHT. Idempotent."""
        if not self._closed:
            self._closed = True
            await _within_deadline(self._node.shutdown(), "close", _CLOSE_TIMEOUT_S)


async def open_directory(p2p: P2P, known: Sequence[PeerId]) -> HivemindDirectory:
    """Join the DHT of the ``known`` peers, to which the daemon is connected; without any, found a new one."""
    node = await DHTNode.create(
        p2p=p2p,
        initial_peers=[f"/p2p/{peer}" for peer in known],
        wait_timeout=_RPC_TIMEOUT_S,
        strict=False,
        ensure_bootstrap_success=False,
        record_validator=_RecordCheck(),
        # No caches: we always ask for the latest, and a cache's refresh task outlives the node.
        cache_locally=False,
        cache_on_store=False,
        cache_nearest=0,
    )
    offsets = await asyncio.gather(*(_clock_offset(node, peer) for peer in known))
    return HivemindDirectory(node, statistics.median([offset for offset in offsets if offset is not None] or [0.0]))


async def _clock_offset(node: DHTNode, peer: PeerId) -> float | None:
    """Seconds by which the peer's wall clock is ahead of ours, to half a round trip; None if it does not say."""
    stub = node.protocol.get_stub(PeerID.from_base58(peer))
    asked_at = time.time()
    reply = await _within_deadline(stub.rpc_ping(dht_pb2.PingRequest(), timeout=_RPC_TIMEOUT_S), "clock")
    if reply is None:
        return None
    offset = float(reply.dht_time) - (asked_at + time.time()) / 2
    return offset if abs(offset) < _MAX_OFFSET_S else None


async def _within_deadline(work: Awaitable[T], what: str, deadline_s: float = _DEADLINE_S) -> T | None:
    """The result, or None for whatever goes wrong: a DHT's failures are nobody's fault and never end a worker."""
    try:
        async with asyncio.timeout(deadline_s):
            return await work
    except Exception as err:
        _log.debug("directory: %s failed: %r", what, err)
        return None
