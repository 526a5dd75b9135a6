r"""What a reducer signs of a mean, and how anybody finds a lie in it. Pure.

Every member signs the part that it sends, every reducer the answer that it gives. The answer names the digest of its
account: whose parts it is of, each with digest, weight and its member's signature. With the account and the parts
anybody can take the mean over, long afterwards and on another machine, and shows a lie by the liar's own signatures.

No lie is what another machine may round otherwise: sums differ in their last bits from processor to processor, and what
the codec left out of earlier means is added (``exchange.rest``). So an answer may be as far from the mean as ``near``
says, and a reducer sees to it that its own is nearer. Knows no network.

Legend: S = values in a shard.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from blake3 import blake3
from msgspec import Meta
from torch import Tensor

from decentral.codecs.codec import Codec
from decentral.codecs.frame import pack, reread, unpack
from decentral.errors import FrameError
from decentral.exchange.allreduce.messages import Mean
from decentral.exchange.allreduce.participants import MAX_MEMBERS, Participants
from decentral.exchange.backlog import MOST_ROUNDS
from decentral.exchange.bounds import Finding
from decentral.exchange.merge import MAX_WEIGHT, norm_of
from decentral.exchange.shard import Entry, ShardContributions
from decentral.exchange.wire import Part, Wire, seed_of
from decentral.swarm.message import Message, ascending, to_wire
from decentral.tensors.finite import all_finite
from decentral.types import Count, PeerId, SyncKey

#: With a key of 4096 bits; of 2048 bits it has 557 bytes.
MAX_SEAL_BYTES = 1_100
#: Longest account: of each member a signature and some numbers.
MAX_ACCOUNT_BYTES = (MAX_SEAL_BYTES + 64) * MAX_MEMBERS
#: An answer may be so far from the mean, as a share of the mean's length, whatever the codec; and so many times as far
#: as the codec alone leaves it. What was left out of earlier means is about as long again.
_SHARE, _TIMES = 0.02, 3.0
#: A reducer keeps within this part of that.
_OWN = 0.8
#: Decisions of bounds that are this close may fall otherwise on another machine.
_CLOSE = 1e-3

#: Whether a peer signed exactly these bytes: peer, data, signature.
Verify = Callable[[PeerId, bytes, bytes], bool]
Digest = Annotated[bytes, Meta(min_length=16, max_length=16)]
Seal = Annotated[bytes, Meta(max_length=MAX_SEAL_BYTES)]


class Used(Message, frozen=True):
    """One contribution that a mean is of."""

    what: ClassVar[str] = "contribution in an account"
    index: Count
    """Of its member among the participants."""
    weight: float
    rounds: float
    """Of which the member may have brought the work (see ``exchange.backlog``)."""
    digest: Digest
    """Of the part, as it came."""
    seal: Seal
    """The member's signature of ``part_claim``."""


class Account(Message, frozen=True):
    """What a mean is of."""

    what: ClassVar[str] = "account of a mean"
    max_bytes: ClassVar[int] = MAX_ACCOUNT_BYTES
    used: Annotated[tuple[Used, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    round_weight: float
    """Of the reducer's own work of a whole round (see ``bounds.bounded``)."""

    def check(self) -> None:
        """Refuse members that are not in order."""
        ascending("contributions", tuple([each.index for each in self.used]))


def digest_of(data: bytes) -> bytes:
    """Of a part, an account or a list of participants: 16 bytes of BLAKE3, which reads memory as fast as it comes."""
    return blake3(data).digest(16)


def part_claim(participants: bytes, index: int, weight: float, digest: bytes) -> bytes:
    """What a member signs of the part that it sends of a shard."""
    return b"part:" + to_wire((digest_of(participants), index, float(weight), digest))


def mean_claim(participants: bytes, index: int, mean: Mean) -> bytes:
    """What a reducer signs of its answer: all of it."""
    said = digest_of(to_wire(sealed(mean, mean.account, b"")))
    return b"mean:" + to_wire((digest_of(participants), index, said))


def sealed(mean: Mean, account: bytes, seal: bytes) -> Mean:
    """The answer with this digest of its account, and this signature."""
    return Mean(mean.bits, mean.frame, mean.bounded, account, seal)


def merged(
    wire: Wire,
    key: SyncKey,
    part: Part,
    contributions: ShardContributions,
    round_weight: float,
    rounds: Mapping[PeerId, float],
    slack: float = 0.0,
) -> tuple[Tensor | None, tuple[Finding, ...]]:
    """What is made of contributions to a shard, which are kept within their bounds; and who was bounded.

    Args:
        wire: what members agree on.
        key: the round.
        part: the shard.
        contributions: of which it is made.
        round_weight: see ``bounds.bounded``, like the others.
        rounds: see there.
        slack: see there.

    Returns:
        float32 [S], or ``None`` if nobody brought values.
    """
    findings: tuple[Finding, ...] = ()
    if wire.bound:
        contributions, findings = contributions.bounded(wire.bound, round_weight, rounds, slack)
    directed = wire.directed_in(key.fragment, part)
    return contributions.mean(over_senders=wire.over_senders, directed=directed, robust=wire.robust), findings


def mean_seed(key: SyncKey, part: Part) -> int:
    """Of the rounding of a shard's mean."""
    return seed_of(f"mean/{key.round}/{key.fragment}/{part.index}")


def encoded(
    codec: Codec, mean_S: Tensor, rest_S: Tensor | None, seed: int, *, held_to: bool
) -> tuple[bytes, Tensor, Tensor | None]:
    """The frame of a mean with what is owed to it, or with as much of that as leaves it ``near`` to the mean.

    Args:
        codec: of means.
        mean_S: the mean, finite; changed.
        rest_S: what earlier frames left out of theirs.
        seed: see ``mean_seed``.
        held_to: whether anybody will hold the answer against the mean.

    Returns:
        The frame, what others find in it, and what is owed now if the codec loses anything.
    """
    if codec.lossless:
        return pack(codec, mean_S, seed), mean_S, None
    owed_S = mean_S if rest_S is None else mean_S + rest_S
    if rest_S is not None and not all_finite(owed_S.numpy()):
        owed_S, rest_S = mean_S, None
    frame = pack(codec, owed_S, seed)
    sent_S = reread(frame, codec, mean_S.numel())
    if held_to and rest_S is not None and not near(sent_S, mean_S, codec, seed, _OWN):
        plain = pack(codec, mean_S, seed)
        plain_S = reread(plain, codec, mean_S.numel())
        lost = norm_of(plain_S - mean_S)
        frame = pack(codec, torch.add(mean_S, rest_S, alpha=min(1.0, lost / norm_of(rest_S))), seed)
        sent_S = reread(frame, codec, mean_S.numel())
        if not near(sent_S, mean_S, codec, seed, _OWN):
            frame, sent_S = plain, plain_S
    return frame, sent_S, owed_S.sub_(sent_S)


def near(answer_S: Tensor, mean_S: Tensor, codec: Codec, seed: int, share: float = 1.0) -> bool:
    """Whether an answer may be that of an honest reducer whose parts have this mean.

    Args:
        answer_S: decoded.
        mean_S: of the parts.
        codec: of means.
        seed: see ``mean_seed``.
        share: of the distance that is allowed.
    """
    off = norm_of(answer_S - mean_S)
    if off <= share * _SHARE * norm_of(mean_S):
        return True
    lost = norm_of(reread(pack(codec, mean_S, seed), codec, mean_S.numel()) - mean_S)
    return off <= share * _TIMES * lost


@dataclass(frozen=True, slots=True)
class Case:
    """An answer that its reducer has signed, to be judged by whoever has the parts."""

    packed: bytes
    participants: Participants
    part: Part
    mean: Mean
    account: Account

    def lie(self, wire: Wire, frames: Sequence[bytes], verify: Verify) -> str:
        """What of the answer no honest reducer would have signed, for people; empty if nothing is.

        Args:
            wire: what members agree on.
            frames: the parts that the account names, in its order, with their digests checked.
            verify: ``Identity.verify``.
        """
        members = self.participants.members
        if tuple([used.index for used in self.account.used]) != self.mean.contributors:
            return "its account is of others than its answer names"
        for used in self.account.used:
            claim = part_claim(self.packed, self.part.index, used.weight, used.digest)
            if not verify(members[used.index], claim, used.seal):
                return "it counted a part that its member has not signed"
            if not (0 < used.weight <= MAX_WEIGHT and 1 <= used.rounds <= MOST_ROUNDS):
                return "it counted a part with a weight that no member may have"
        if not 0 <= self.account.round_weight < math.inf:
            return "it has a weight that no member may have"
        try:
            values = [unpack(frame, wire.codec, self.part.numel) for frame in frames]
        except FrameError:
            return "it counted a part that cannot be read"
        try:
            answer_S = unpack(self.mean.frame, wire.mean_codec, self.part.numel)
        except FrameError:
            return "its answer cannot be read"
        seed = mean_seed(self.participants.key, self.part)
        for slack in (0.0, -_CLOSE, _CLOSE):
            mean_S = self._mean(wire, values, slack)
            if mean_S is None or not all_finite(mean_S.numpy()) or near(answer_S, mean_S, wire.mean_codec, seed):
                return ""
        return "its answer is not the mean of the parts that it signed for"

    def _mean(self, wire: Wire, values: Sequence[Tensor], slack: float) -> Tensor | None:
        """Of these parts, bounded with so much slack."""
        members = self.participants.members
        contributions = ShardContributions(members)
        for used, values_S in zip(self.account.used, values, strict=True):
            contributions.enter(members[used.index], Entry(used.weight, values_S, used.digest))
        rounds = {members[used.index]: used.rounds for used in self.account.used}
        mean_S, _ = merged(
            wire, self.participants.key, self.part, contributions, self.account.round_weight, rounds, slack
        )
        return mean_S
