"""What one worker signs as a member and as a reducer, and what it keeps to be held to it.

Knows no network; what the signatures say is in ``account``.
"""

from collections import OrderedDict
from collections.abc import Sequence

from decentral.errors import FrameError
from decentral.exchange.allreduce.account import Account, Used, digest_of, mean_claim, part_claim, sealed
from decentral.exchange.allreduce.messages import Mean, Shard
from decentral.ports.identity import Identity
from decentral.swarm.message import to_wire
from decentral.types import PeerId

#: What a worker was shown of lies is kept apart from its own, of so many.
_MAX_PROOFS = 4


class Books:
    """Of one worker.

    Args:
        identity: its key.
        budget_bytes: parts of older shards are kept as long as all together are no longer than this.
    """

    def __init__(self, identity: Identity, budget_bytes: int) -> None:
        self.identity = identity
        self._budget_bytes = budget_bytes
        self._size_bytes = 0
        self._kept: OrderedDict[tuple[bytes, int], tuple[bytes, Sequence[bytes]]] = OrderedDict()
        self.proofs: OrderedDict[tuple[bytes, int], tuple[bytes, Sequence[bytes]]] = OrderedDict()
        """By participants and shard, account and exhibits of answers that are lies."""

    def shard(self, participants: bytes, index: int, weight: float, frame: bytes) -> Shard:
        """The signed message that brings a part."""
        claim = part_claim(participants, index, weight, digest_of(frame))
        return Shard(participants, index, weight, frame, self.identity.sign(claim))

    def check_shard(self, sender: PeerId, shard: Shard, digest: bytes) -> None:
        """Raise ``FrameError`` if the sender did not sign this part."""
        claim = part_claim(shard.participants, shard.index, shard.weight, digest)
        if not self.identity.verify(sender, claim, shard.seal):
            raise FrameError("a part that is not signed by its sender")

    def close(
        self, participants: bytes, index: int, mean: Mean, round_weight: float, brought: Sequence[tuple[Used, bytes]]
    ) -> bytes:
        """The signed answer, of which account and parts are kept.

        Args:
            participants: of the round.
            index: of the shard.
            mean: the answer.
            round_weight: see ``Account``.
            brought: what it is of, in the participants' order, with the parts.
        """
        account = to_wire(Account(tuple([used for used, _ in brought]), round_weight))
        mean = sealed(mean, digest_of(account), b"")
        answer = to_wire(sealed(mean, mean.account, self.identity.sign(mean_claim(participants, index, mean))))
        exhibits = [*(frame for _, frame in brought), answer]
        _, before = self._kept.get((participants, index), (b"", ()))  # closed again after a call that was cut off
        self._kept[participants, index] = account, exhibits
        self._size_bytes += sum(map(len, exhibits)) - sum(map(len, before))
        while len(self._kept) > 1 and self._size_bytes > self._budget_bytes:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._size_bytes -= sum(map(len, dropped))
        return answer

    def check_mean(self, reducer: PeerId, participants: bytes, index: int, mean: Mean) -> None:
        """Raise ``FrameError`` if the reducer did not sign this answer."""
        if not self.identity.verify(reducer, mean_claim(participants, index, mean), mean.seal):
            raise FrameError("an answer that is not signed by its reducer")

    def prove(self, participants: bytes, index: int, account: bytes, exhibits: Sequence[bytes]) -> None:
        """Keep what shows a lie, for others."""
        self.proofs[participants, index] = account, exhibits
        while len(self.proofs) > _MAX_PROOFS:
            self.proofs.popitem(last=False)

    def account(self, participants: bytes, index: int) -> bytes:
        """The account of an answer, as long as it is known; else empty."""
        return self._find(participants, index)[0]

    def exhibit(self, participants: bytes, index: int, number: int) -> bytes:
        """The part with this number in the account, or after the last one the answer; empty if it is not here."""
        exhibits = self._find(participants, index)[1]
        return exhibits[number] if number < len(exhibits) else b""

    def _find(self, participants: bytes, index: int) -> tuple[bytes, Sequence[bytes]]:
        key = participants, index
        return self._kept.get(key) or self.proofs.get(key) or (b"", ())
