"""What a leader said to a member that called it, and whether others say otherwise. Pure."""

from dataclasses import dataclass

from decentral.exchange.allreduce.members import Word
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.api import Aborted, Reason
from decentral.types import PeerId, SyncKey

#: Why a leader that is passed over is absent.
_LIED = "said of the round what most members contradict"


@dataclass(frozen=True, slots=True)
class Called:
    """The participants as received."""

    participants: Participants
    packed: bytes
    missed: Aborted | None = None
    """If they were named without this member, whose round ends so, should the means not be had any more."""
    doubted: tuple[PeerId, ...] = ()
    """Leaders that said otherwise of the round."""

    @property
    def absent(self) -> tuple[tuple[PeerId, str], ...]:
        """Who is known and not among the participants, each with the reason."""
        lied = [(peer, _LIED) for peer in self.doubted if peer not in self.participants.members]
        return (*self.participants.absent, *lied)


def contradicts(word: Word, key: SyncKey, base: str, said: Called | Aborted) -> bool:
    """Whether most members contradict what a leader said of a round to a member that holds ``base``."""
    if isinstance(said, Aborted):
        out_of_sync = said.reason is Reason.OUT_OF_SYNC
        return word.are_with(key.round, base) if out_of_sync else word.is_open(key.round, b"")
    if said.missed is not None:
        return word.is_open(key.round, said.packed)
    return word.are_left_out(key.round, base, said.participants.members)
