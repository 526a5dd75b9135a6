"""Who may enter a private swarm: a small record that its founder signs and its members keep and hand on.

It names the public keys of invitations, those that were revoked, and peers that are banned; there is no secret in it.
The one with the higher counter holds. Pure: knows no connection and no clock.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from decentral.adapters.invitation import PUBLIC_BYTES, SIGNATURE_BYTES, Key, fingerprint, is_signed
from decentral.errors import FrameError, NotAdmittedBy, UsageError
from decentral.swarm.message import Message, Peer, from_wire, to_wire
from decentral.types import Count, PeerId

#: Invitations that hold, and as many that were revoked last: who brings an older one is told that it is not known.
MAX_INVITATIONS = 256
MAX_BANS = 512
MAX_POLICY_BYTES = 1 << 16
_DOMAIN = b"decentral policy:"

PublicKey = Annotated[bytes, Meta(min_length=PUBLIC_BYTES, max_length=PUBLIC_BYTES)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Policy(Message, frozen=True):
    """What the founder says."""

    what: ClassVar[str] = "policy"
    max_bytes: ClassVar[int] = MAX_POLICY_BYTES
    founder: PublicKey
    """His public key, which may always enter."""
    counter: Count
    invited: Annotated[tuple[PublicKey, ...], Meta(max_length=MAX_INVITATIONS)] = ()
    revoked: Annotated[tuple[PublicKey, ...], Meta(max_length=MAX_INVITATIONS)] = ()
    banned: Annotated[tuple[Peer, ...], Meta(max_length=MAX_BANS)] = ()

    def objection(self, peer: PeerId, public: bytes) -> NotAdmittedBy | None:
        """Why a peer that has proved to hold the key with this public half may not enter; ``None`` if it may."""
        if peer in self.banned:
            return NotAdmittedBy.BAN
        if public == self.founder or public in self.invited:
            return None
        return NotAdmittedBy.REVOCATION if public in self.revoked else NotAdmittedBy.WRONG_TOKEN

    def with_invitation(self, public: bytes) -> "Policy":
        """One more.

        Raises:
            UsageError: there are too many.
        """
        if len(self.invited) >= MAX_INVITATIONS:
            raise UsageError(f"There are {MAX_INVITATIONS} invitations already.", hint="Revoke some.")
        return self._next(invited=(*self.invited, public))

    def without_invitation(self, public: bytes) -> "Policy":
        """One less.

        Raises:
            UsageError: there is no such invitation.
        """
        if public not in self.invited:
            why = "was revoked before" if public in self.revoked else "is not of this swarm"
            raise UsageError(f"This invitation {why}.")
        left = tuple(each for each in self.invited if each != public)
        return self._next(invited=left, revoked=(*self.revoked, public)[-MAX_INVITATIONS:])

    def with_ban(self, peer: PeerId) -> "Policy":
        """One more is kept out.

        Raises:
            UsageError: there are too many.
        """
        if len(self.banned) >= MAX_BANS:
            raise UsageError(f"There are {MAX_BANS} bans already.", hint="Revoke the invitation by which they come.")
        return self._next(banned=(*(each for each in self.banned if each != peer), peer))

    def without_ban(self, peer: PeerId) -> "Policy":
        """One that was kept out may come back."""
        return self._next(banned=tuple(each for each in self.banned if each != peer))

    def _next(self, **changes: object) -> "Policy":
        return msgspec.structs.replace(self, counter=self.counter + 1, **changes)


class _Signed(Message, frozen=True):
    what: ClassVar[str] = "signed policy"
    max_bytes: ClassVar[int] = MAX_POLICY_BYTES
    body: bytes
    signature: Signature


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """A policy and the bytes in which it travels."""

    policy: Policy
    data: bytes

    def is_newer_than(self, other: "SignedPolicy | None") -> bool:
        """Whether it holds and not ``other``; of two with one counter all choose the same."""
        if other is None:
            return True
        return (self.policy.counter, self.data) > (other.policy.counter, other.data)


def signed(policy: Policy, founder: Key) -> SignedPolicy:
    """A policy with its founder's signature."""
    body = to_wire(policy)
    return SignedPolicy(policy, to_wire(_Signed(body, founder.sign(_DOMAIN + body))))


def read_policy(data: bytes, founder: bytes) -> SignedPolicy:
    """A policy from anywhere, checked.

    Args:
        data: what came.
        founder: the fingerprint of the swarm's founder.

    Raises:
        FrameError: malformed, of another founder, or not signed by him.
    """
    parcel = from_wire(_Signed, data)
    policy = from_wire(Policy, parcel.body)
    if fingerprint(policy.founder) != founder:
        raise FrameError("policy of another founder")
    if not is_signed(policy.founder, _DOMAIN + parcel.body, parcel.signature):
        raise FrameError("policy that its founder did not sign")
    return SignedPolicy(policy, data)
