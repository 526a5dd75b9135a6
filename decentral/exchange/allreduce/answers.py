"""Answers of reductions this worker has seen, kept for members that missed them.

Two facts about a shard exclude each other, and this is what keeps members together when a reducer dies between two
replies: either this worker holds the reducer's answer and hands it to any member that asks, or somebody asked before
it came and it is forsworn: a later answer from the reducer is not accepted any more. So once a member has asked
everybody it can reach and nobody had the answer, nobody among them will ever use it (the cooperative termination of
atomic commitment; Bernstein, Hadzilacos and Goodman 1987, section 7.4).

After a round answers are for who missed it. Once all who are known were in a later one there is nobody, and what was
kept is forsworn: that gives its memory back, and a contribution that is sent again begins no round anew.
"""

from collections import OrderedDict

#: Rounds that are remembered at least: members ask within the round.
_MIN_ROUNDS = 3
#: And at most: those whom a round was called without, and newcomers whose download took several, ask later.
MAX_ROUNDS = 64


class Answers:
    """Answers of one fragment's rounds, by participants and shard. Keys are the participants' packed bytes.

    Args:
        budget_bytes: rounds beyond the least are kept as long as all answers together are no longer than this.
        spare_bytes: so much is kept even of rounds that nobody known will ask about.
    """

    def __init__(self, budget_bytes: int = 0, spare_bytes: int = 0) -> None:
        self._budget_bytes, self._spare_bytes = budget_bytes, spare_bytes
        self._size_bytes = 0
        self._known: OrderedDict[bytes, dict[int, bytes | None]] = OrderedDict()
        self._over: dict[bytes, None] = {}
        """Of these the rounds that this worker is through with, in their order, until they are forsworn."""

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

    def end(self, participants: bytes, *, with_all: bool) -> None:
        """This worker is through with a round.

        If all who are known were in it, they held an anchor that has what this worker was through with before, and
        will not ask about that: it is forsworn.
        """
        if with_all:
            while self._over and self._size_bytes > self._spare_bytes:
                oldest = next(iter(self._over))
                self._size_bytes -= _size(self._known[oldest])
                self._known[oldest] = dict.fromkeys(self._known[oldest])
                del self._over[oldest]
        if participants in self._known:
            self._over[participants] = None

    def _of(self, participants: bytes) -> dict[int, bytes | None]:
        known = self._known.setdefault(participants, {})
        self._known.move_to_end(participants)
        self._drop_oldest()
        return known

    def _drop_oldest(self) -> None:
        """Forget the rounds that nobody has asked about for longest."""
        while len(self._known) > _MIN_ROUNDS and (
            self._size_bytes > self._budget_bytes or len(self._known) > MAX_ROUNDS
        ):
            participants, dropped = self._known.popitem(last=False)
            self._size_bytes -= _size(dropped)
            self._over.pop(participants, None)


def _size(answers: dict[int, bytes | None]) -> int:
    return sum(len(answer) for answer in answers.values() if answer)
