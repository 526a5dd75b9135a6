"""Where peers find each other: expiring records under a shared key.

The directory is a rumour mill: records may be stale, missing or forged. Readers verify what they read (see
``swarm.presence``) and nothing whose loss stops a run is kept only here.
"""

from typing import Protocol


class Directory(Protocol):
    """A dictionary of expiring records, each ``key`` holding one value for each ``subkey``."""

    async def publish(self, key: str, subkey: str, value: bytes, *, ttl_s: float) -> bool:
        """Store ``value`` under ``key``/``subkey`` for ``ttl_s`` seconds; it replaces what this peer stored before.

        Returns:
            Whether at least one holder took it. A refusal or a lost network is a value, not an error.
        """
        ...

    async def lookup(self, key: str) -> dict[str, bytes]:
        """The latest unexpired values under ``key`` by subkey; empty if there are none or nobody answers."""
        ...

    async def close(self) -> None:
        """Leave the directory. Idempotent."""
        ...
