"""Answers of reductions this worker has seen, kept for members that missed them.

Two facts about a shard exclude each other, and this is what keeps members together when a reducer dies between two
replies: either this worker holds the reducer's answer and hands it to any member that asks, or somebody asked before
it came and it is forsworn: a later answer from the reducer is not accepted any more. So once a member has asked
everybody it can reach and nobody had the answer, nobody among them will ever use it (the cooperative termination of
atomic commitment; Bernstein, Hadzilacos and Goodman 1987, section 7.4).
"""

from collections import OrderedDict

#: Rounds that are remembered at least: members ask within the round.
_MIN_ROUNDS = 3
#: And at most: those whom a round was called without, and newcomers whose download took several, ask later.
MAX_ROUNDS = 64


class Answers:
    """Answers by participants and shard. Keys are the participants' packed bytes.

    Args:
        num_fragments: P, of each of which a round may be under way.
        budget_bytes: rounds beyond the least are kept as long as all answers together are no longer than this.
    """

    def __init__(self, num_fragments: int = 1, budget_bytes: int = 0) -> None:
        self._min_known, self._max_known = _MIN_ROUNDS * num_fragments, MAX_ROUNDS * num_fragments
        self._budget_bytes = budget_bytes
        self._size_bytes = 0
        self._known: OrderedDict[bytes, dict[int, bytes | None]] = OrderedDict()

    def accept(self, participants: bytes, index: int, answer: bytes) -> bool:
        """Keep the reducer's answer unless it was forsworn; returns whether it may be used."""
        if index not in self._of(participants):
            self.adopt(participants, index, answer)
        return not self.forsworn(participants, index)

    def get(self, participants: bytes, index: int) -> bytes | None:
        """The answer if this worker has it."""
        return self._of(participants).get(index)

    def ask(self, participants: bytes, index: int) -> bytes | None:
        """The answer for another member; if it is not here, it is forsworn."""
        return self._of(participants).setdefault(index, None)

    def adopt(self, participants: bytes, index: int, answer: bytes) -> None:
        """Keep an answer that another member handed over: it exists, so everybody may have it."""
        self._size_bytes += len(answer) - len(self._of(participants).get(index) or b"")
        self._of(participants)[index] = answer
        self._drop_oldest()

    def forsworn(self, participants: bytes, index: int) -> bool:
        """Whether the answer may not be used any more."""
        return self._of(participants).get(index, b"") is None

    def _of(self, participants: bytes) -> dict[int, bytes | None]:
        known = self._known.setdefault(participants, {})
        self._known.move_to_end(participants)
        self._drop_oldest()
        return known

    def _drop_oldest(self) -> None:
        """Forget the rounds that nobody has asked about for longest."""
        while len(self._known) > self._min_known and (
            self._size_bytes > self._budget_bytes or len(self._known) > self._max_known
        ):
            _, dropped = self._known.popitem(last=False)
            self._size_bytes -= sum(len(answer) for answer in dropped.values() if answer)
