"""How far this worker is: the next round of each fragment. Shared by the parts of one exchange."""

from collections.abc import Sequence

from decentral.types import PeerId, SyncKey


class Progress:
    """The next round of every fragment that this worker has not finished, by whatever verdict.

    Args:
        num_fragments: P.
    """

    def __init__(self, num_fragments: int) -> None:
        self._next = [0] * num_fragments
        self.participants: dict[SyncKey, bytes | None] = {}
        """Rounds under way here, each with its packed participants once this worker has it."""
        self.donor: PeerId | None = None
        """Of whom this worker has its state, as long as it was among the participants of no round with it."""

    @property
    def num_fragments(self) -> int:
        """P."""
        return len(self._next)

    def next_round(self, fragment: int) -> int:
        """The round that comes next for ``fragment``."""
        return self._next[fragment]

    def finish(self, key: SyncKey) -> None:
        """Round ``key`` is over for this worker."""
        self._next[key.fragment] = max(self._next[key.fragment], key.round + 1)

    def resume(self, rounds: Sequence[int]) -> None:
        """Go on from these rounds, after a download."""
        self._next = list(rounds)

    def rounds(self) -> tuple[int, ...]:
        """The next round of every fragment."""
        return tuple(self._next)
