"""Names without behaviour, shared by every room. This module must not import torch: the status path stays light."""

from typing import Annotated, NamedTuple, NewType

from msgspec import Meta, Struct

#: A whole number from 0 to below 2^53, exact in any float.
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]

#: A peer's identity: the base58 form of its libp2p peer id (the hash of its public key).
PeerId = NewType("PeerId", str)


class SyncKey(Struct, frozen=True, order=True, array_like=True, forbid_unknown_fields=True):
    """One synchronisation: outer round ``round`` of fragment ``fragment``, both counted from 0. Part of messages."""

    round: Count
    fragment: Count


class Grant(NamedTuple):
    """A chunk of a data set that one worker alone may read in an epoch."""

    epoch: int
    chunk: int


class Page(NamedTuple):
    """What is known to be taken of an epoch of a data set."""

    epoch: int
    tags: bytes
    """Four for each chunk: who has it (``swarm.rows``)."""


def short_id(peer: PeerId) -> str:
    """The last six characters of a peer id: enough for a person to tell workers apart (RSA ids all begin alike)."""
    return peer[-6:]
