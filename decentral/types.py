"""Names without behaviour, shared by every room. This module must not import torch: the status path stays light."""

from dataclasses import dataclass
from typing import NewType

#: A peer's identity: the base58 form of its libp2p peer id (the hash of its public key).
PeerId = NewType("PeerId", str)


@dataclass(frozen=True, slots=True, order=True)
class SyncKey:
    """One synchronisation: outer round ``round`` of fragment ``fragment``, both counted from 0."""

    round: int
    fragment: int


def short_id(peer: PeerId) -> str:
    """The last six characters of a peer id: enough for a person to tell workers apart (RSA ids all begin alike)."""
    return peer[-6:]
