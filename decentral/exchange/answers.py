"""Answers of reductions this worker has seen, kept for members that missed them.

Two facts about a shard exclude each other, and this is what keeps members together when a reducer dies between two
replies: either this worker holds the reducer's answer and hands it to any member that asks, or somebody asked before
it came and it is forsworn: a later answer from the reducer is not accepted any more. So once a member has asked
everybody it can reach and nobody had the answer, nobody among them will ever use it (the cooperative termination of
atomic commitment; Bernstein, Hadzilacos and Goodman 1987, section 7.4).
"""

from collections import OrderedDict

#: Rounds whose rolls are remembered. Members ask within the round, those whom it was called without soon after.
KEPT_ROUNDS = 3


class Answers:
    """Answers by roll and shard. Keys are the roll's packed bytes.

    Args:
        num_fragments: P, of each of which a round may be under way.
    """

    def __init__(self, num_fragments: int = 1) -> None:
        self._max_rolls = KEPT_ROUNDS * num_fragments
        self._rolls: OrderedDict[bytes, dict[int, bytes | None]] = OrderedDict()

    def accept(self, roll: bytes, index: int, answer: bytes) -> bool:
        """Keep the reducer's answer unless it was forsworn; returns whether it may be used."""
        known = self._of(roll)
        return known.setdefault(index, answer) is not None

    def get(self, roll: bytes, index: int) -> bytes | None:
        """The answer if this worker has it."""
        return self._of(roll).get(index)

    def ask(self, roll: bytes, index: int) -> bytes | None:
        """The answer for another member; if it is not here, it is forsworn."""
        return self._of(roll).setdefault(index, None)

    def adopt(self, roll: bytes, index: int, answer: bytes) -> None:
        """Keep an answer that another member handed over: it exists, so everybody may have it."""
        self._of(roll)[index] = answer

    def forsworn(self, roll: bytes, index: int) -> bool:
        """Whether the answer may not be used any more."""
        return self._of(roll).get(index, b"") is None

    def _of(self, roll: bytes) -> dict[int, bytes | None]:
        known = self._rolls.setdefault(roll, {})
        self._rolls.move_to_end(roll)
        while len(self._rolls) > self._max_rolls:
            self._rolls.popitem(last=False)
        return known
