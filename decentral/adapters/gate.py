"""Decides who is let in: what one peer proves to another, and what the swarm's policy and this machine say of it.

Two peers of a private swarm prove to each other, before anything else, that each holds a key that the policy allows.
The caller goes first, so that a stranger learns nothing. Each signs both peer ids, which libp2p authenticates, a fresh
number of each, and its role: what one says cannot be used by anybody else, nor again, nor against itself. Why it is not
libp2p's pre-shared key: ``docs/adr/0012-members-prove-themselves.md``.

Knows no stream: what is to be said is bytes, and ``transport`` carries them.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.adapters.invitation import Key, is_signed
from decentral.adapters.policy import MAX_POLICY_BYTES, SignedPolicy, read_policy
from decentral.errors import FrameError, NotAdmittedBy
from decentral.swarm.message import Message, from_wire, to_wire
from decentral.types import PeerId

NONCE_BYTES = 32
MAX_PROOF_BYTES = MAX_POLICY_BYTES + 1024
#: Peers that are remembered as admitted; whoever is forgotten proves itself again.
_MAX_ADMITTED = 4096
_DOMAIN = b"decentral admission:"


class Role(StrEnum):
    """Who speaks first."""

    CALLER = "caller"
    CALLEE = "callee"


@dataclass(frozen=True, slots=True)
class Meeting:
    """One exchange of proofs."""

    caller: PeerId
    callee: PeerId
    nonces: bytes
    """The caller's and the callee's."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What this peer has to show."""

    key: Key
    """Of an invitation, or the founder's."""
    founder: bytes
    """Fingerprint of the founder's key: of whom a policy is believed."""
    policy: bytes = b""
    """The newest that is known; empty for a newcomer."""


class _Proof(Message, frozen=True):
    what: ClassVar[str] = "proof of admission"
    max_bytes: ClassVar[int] = MAX_PROOF_BYTES
    objection: Annotated[str, Meta(max_length=40)]
    """Of a callee that does not let the caller in: why; its own proof is empty then."""
    public: Annotated[bytes, Meta(max_length=32)]
    signature: Annotated[bytes, Meta(max_length=64)]
    policy: bytes


class Gate:
    """See the module.

    Args:
        own: this peer.
        held: what it has to show; ``None`` in a public swarm.
        allow: if there are any, nobody else is let in here.
        deny: these are not let in here.
    """

    def __init__(
        self, own: PeerId, held: Pass | None = None, allow: Collection[PeerId] = (), deny: Collection[PeerId] = ()
    ) -> None:
        self._own = own
        self._held = held
        self._allow, self._deny = frozenset(allow), frozenset(deny)
        self.barred: set[PeerId] = set()
        """Kept out by this worker because of what they did."""
        self._admitted: OrderedDict[PeerId, bytes] = OrderedDict()
        """With the public key that each has proved to hold."""
        self.on_policy: list[Callable[[SignedPolicy], None]] = []
        """Told of every policy that holds from now on."""
        self.policy = read_policy(held.policy, held.founder) if held is not None and held.policy else None
        """Who may enter, as far as is known here."""

    @property
    def is_private(self) -> bool:
        """Whether anybody has to prove anything."""
        return self._held is not None

    def own_objection(self) -> NotAdmittedBy | None:
        """Why the swarm has put this peer out, as its founder signed; ``None`` if it has not."""
        if self._held is None or self.policy is None:
            return None
        return self.policy.policy.objection(self._own, self._held.key.public)

    def objection(self, peer: PeerId) -> NotAdmittedBy | None:
        """Why a peer is not served and not called; ``None`` if it may be."""
        if peer == self._own:
            return None
        if peer in self._deny or peer in self.barred or (self._allow and peer not in self._allow):
            return NotAdmittedBy.DENIAL
        if self._held is None:
            return None
        if self.policy is not None and peer in self.policy.policy.banned:
            return NotAdmittedBy.BAN
        public = self._admitted.get(peer)
        if public is None or self.policy is None:
            return NotAdmittedBy.NO_PROOF
        return self.policy.policy.objection(peer, public)

    def is_barred(self, peer: PeerId) -> bool:
        """Whether a peer is kept out for good: no proof would help it."""
        return self.objection(peer) not in (None, NotAdmittedBy.NO_PROOF)

    def forget(self, peer: PeerId) -> None:
        """Have a peer prove itself again."""
        self._admitted.pop(peer, None)

    def nonce(self) -> bytes:
        """A fresh number for one meeting."""
        return secrets.token_bytes(NONCE_BYTES)

    def proof(self, role: Role, meeting: Meeting) -> bytes:
        """What this peer says of itself."""
        assert self._held is not None
        signature = self._held.key.sign(_transcript(role, meeting, self._held.founder))
        policy = self.policy.data if self.policy is not None else b""
        return to_wire(_Proof("", self._held.key.public, signature, policy))

    def answer(self, data: bytes, meeting: Meeting) -> bytes:
        """What a callee says to the proof of its caller, who is admitted if it is good."""
        objection = self._examined(data, meeting, Role.CALLER)
        if objection is None:
            return self.proof(Role.CALLEE, meeting)
        # Whoever was in, and is out now, is shown that the founder wants it so.
        is_out = objection in (NotAdmittedBy.BAN, NotAdmittedBy.REVOCATION)
        policy = self.policy.data if is_out and self.policy is not None else b""
        return to_wire(_Proof(objection, b"", b"", policy))

    def conclude(self, data: bytes, meeting: Meeting) -> NotAdmittedBy | None:
        """What a caller makes of the answer: why the two do not come together; ``None`` if each is admitted."""
        try:
            objection = from_wire(_Proof, data).objection
            if objection:
                self._adopt_from(data)
                return NotAdmittedBy(objection)
        except (FrameError, ValueError):
            return NotAdmittedBy.IMPOSTURE
        found = self._examined(data, meeting, Role.CALLEE)
        return NotAdmittedBy.IMPOSTURE if found is NotAdmittedBy.WRONG_TOKEN else found

    def adopt(self, data: bytes) -> bool:
        """Take a policy if it is newer than ours and the founder's; whether it is in force here now.

        Raises:
            FrameError: it is malformed, or not the founder's.
        """
        assert self._held is not None
        found = read_policy(data, self._held.founder)
        if found.is_newer_than(self.policy):
            self.policy = found
            for tell in self.on_policy:
                tell(found)
        return self.policy == found

    def _adopt_from(self, data: bytes) -> None:
        policy = from_wire(_Proof, data).policy
        if policy:
            self.adopt(policy)

    def _examined(self, data: bytes, meeting: Meeting, role: Role) -> NotAdmittedBy | None:
        """Why the one in that role is not admitted; if it is, it is remembered."""
        assert self._held is not None
        peer = meeting.caller if role is Role.CALLER else meeting.callee
        if self.objection(peer) is NotAdmittedBy.DENIAL:
            return NotAdmittedBy.DENIAL
        try:
            proof = from_wire(_Proof, data)
            if not is_signed(proof.public, _transcript(role, meeting, self._held.founder), proof.signature):
                return NotAdmittedBy.WRONG_TOKEN
            self._adopt_from(data)
        except FrameError:
            return NotAdmittedBy.WRONG_TOKEN
        if self.policy is None:
            return NotAdmittedBy.WRONG_TOKEN
        objection = self.policy.policy.objection(peer, proof.public)
        if objection is None:
            self._admitted[peer] = proof.public
            self._admitted.move_to_end(peer)
            if len(self._admitted) > _MAX_ADMITTED:
                self._admitted.popitem(last=False)
        return objection


def _transcript(role: Role, meeting: Meeting, founder: bytes) -> bytes:
    return _DOMAIN + to_wire((role, founder, meeting.caller, meeting.callee, meeting.nonces))
