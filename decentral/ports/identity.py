"""Signatures that bind a record to a peer id, so that it can be passed on by strangers."""

from typing import Protocol

from decentral.types import PeerId


class Identity(Protocol):
    """This peer's key pair."""

    @property
    def peer_id(self) -> PeerId:
        """The identity that the public key hashes to."""
        ...

    def sign(self, data: bytes) -> bytes:
        """A signature of ``data`` that carries what ``verify`` needs (the public key included)."""
        ...

    def verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        """Whether ``peer`` signed exactly ``data``. Any malformed signature is simply ``False``."""
        ...
