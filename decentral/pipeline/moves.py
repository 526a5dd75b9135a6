"""What members say to each other when blocks move from one cut to the next. Layouts: ``docs/wire-format.md``."""

from typing import ClassVar, Literal

from decentral.pipeline.placement import MAX_STAGES, Placement
from decentral.swarm.message import Duration, Message, Text
from decentral.types import Count

PREPARE, FOLLOW, WHERE = "move.prepare", "move.follow", "move.where"
#: A cut names a peer for each of its stages.
_CUT_BYTES = MAX_STAGES * 210 + 256


class Prepare(Message, frozen=True):
    """The head to all who hold blocks, or are to: the last step under this cut is taken, make ready for another one."""

    what: ClassVar[str] = "order to prepare a cut"
    max_bytes: ClassVar[int] = 2 * _CUT_BYTES
    now: Placement
    """With those who hold its stages."""
    new: Placement
    step: Count
    """The next one; the states that change hands are those before it."""

    def check(self) -> None:
        """Refuse cuts that do not follow each other, or of different models."""
        self.now.check()
        self.new.check()
        if self.new.number <= self.now.number or not self.new.bounds:
            raise ValueError("the new cut is not a later one")
        if self.now.bounds and self.now.bounds[-1] != self.new.bounds[-1]:
            raise ValueError("the cuts are of different models")


class Prepared(Message, frozen=True):
    """The answer."""

    what: ClassVar[str] = "answer to an order to prepare"
    state: Literal["busy", "ready", "unfit", "failed"]
    why: Text
    """In words, if it is not ready."""
    num_fetched: Count
    """Blocks that came from others ..."""
    seconds: Duration
    """... in this time."""


class Follow(Message, frozen=True):
    """The head to all: this cut is in force. Whoever had prepared another one goes back."""

    what: ClassVar[str] = "cut in force"
    max_bytes: ClassVar[int] = _CUT_BYTES
    cut: Placement

    def check(self) -> None:
        """See ``Placement.check``."""
        self.cut.check()


class Where(Message, frozen=True):
    """A member's answer to the question which cut it has."""

    what: ClassVar[str] = "cut of a member"
    max_bytes: ClassVar[int] = _CUT_BYTES
    cut: Placement
    """In force there."""
    preparing: Count
    """The number of one that is being prepared, by a head; else 0."""
    last: Count
    """The highest number that was heard of there."""

    def check(self) -> None:
        """See ``Placement.check``."""
        self.cut.check()
