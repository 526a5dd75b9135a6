"""Signatures for simulated peers: as strict as real ones, at the price of a hash. No protection against anyone."""

import functools
import hashlib

from decentral.types import PeerId


class SimIdentity:
    """A peer that signs by hashing; ``verify`` accepts exactly what the named peer signed.

    Args:
        peer_id: any text.
    """

    def __init__(self, peer_id: PeerId) -> None:
        self._peer_id = peer_id

    @property
    def peer_id(self) -> PeerId:
        """The identity it was given."""
        return self._peer_id

    def sign(self, data: bytes) -> bytes:
        """A hash of peer and data."""
        return _signature(self._peer_id, data)

    @staticmethod
    def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
        """Whether ``peer`` signed exactly ``data``."""
        return signature == _signature(peer, data)


def _signature(peer: PeerId, data: bytes) -> bytes:
    """The only signature of ``data`` by ``peer``; the peer keys the hash, so no two pairs share their input."""
    return hashlib.blake2b(data, digest_size=32, key=_key(peer)).digest()


@functools.cache
def _key(peer: PeerId) -> bytes:
    return hashlib.blake2b(peer.encode(), digest_size=32).digest()
