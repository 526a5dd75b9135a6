"""Whom a download asks for how much: a window of pieces for each donor, and what becomes of donors that fail.

A donor has as many pieces in flight as its line takes without a queue: more while they come as soon as the soonest
did, fewer when they come late. So a slow one has one, a line is full, and what is lost with a donor is little. Pure:
times are arguments.
"""

from collections import deque
from dataclasses import dataclass, field
from math import inf

from torch import Tensor

from decentral.state.download.pieces import Content, Head
from decentral.types import PeerId

_MAX_WINDOW = 8
#: The window grows by a piece that came so soon, and so little later than the soonest; it shrinks by one so late.
_SOON_S, _QUEUE_S, _LATE_S = 1.0, 0.25, 2.0
#: Refusals in a row, as of a donor that is busy; and calls in a row without an answer.
_MAX_REFUSALS, _MAX_SILENCES = 6, 2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
#: What is left is judged by what came in so long.
_PACE_S = 20.0


@dataclass(slots=True)
class Source:
    """One donor, as a download sees it."""

    peer: PeerId
    took_s: float
    """How long a piece takes from it, about; at first a guess."""
    head: Head | None = None
    """What it has; ``None`` as long as it has not said so, or cannot give it."""
    window: int = 1
    soonest_s: float = inf
    """The shortest time that a piece took."""
    in_flight: int = 0
    pausing: bool = False
    problem: str = ""
    """Why nothing comes from it, in words."""
    sample: list[Tensor] = field(default_factory=list)
    """What it has said of its state's values, if it was asked."""
    tried: bool = False
    """Whether it was asked for anything."""
    false: bool = False
    """It gave what it had not promised, and is not asked again."""
    gone: set[Content] = field(default_factory=set)
    """What it has no more."""
    refusals: int = 0
    silences: int = 0

    def has(self, fragment: int, content: Content) -> bool:
        """Whether it can give this content of a fragment."""
        return self.head is not None and self.head.fragments[fragment].content == content and content not in self.gone

    @property
    def is_free(self) -> bool:
        """Whether it can be asked for one more piece."""
        return self.head is not None and not self.pausing and self.in_flight < self.window

    def said(self, head: Head) -> None:
        """It told what it has."""
        self.head, self.problem = head, ""
        self.gone.clear()
        self.refusals = self.silences = 0

    def gave(self, took_s: float) -> None:
        """A piece has come."""
        self.took_s += (took_s - self.took_s) / 3
        self.soonest_s = min(self.soonest_s, took_s)
        self.refusals = self.silences = 0
        if took_s < _SOON_S and took_s - self.soonest_s < _QUEUE_S:
            self.window = min(self.window + 1, _MAX_WINDOW)
        elif took_s > _LATE_S:
            self.window = max(self.window - 1, 1)

    def refused(self, why: str) -> float:
        """It refused, perhaps for it is busy; returns for how many seconds it is to be left in peace."""
        self.refusals += 1
        self.window = max(1, self.in_flight)
        if self.refusals >= _MAX_REFUSALS:
            self.lose(why)
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self.refusals - 1))

    def resume(self) -> None:
        """It was left in peace for long enough."""
        self.pausing = False

    def lost(self, content: Content) -> None:
        """It has this no more."""
        self.gone.add(content)
        self.problem = "it does not have this state any more"

    def silent(self, why: str) -> None:
        """It did not answer in time."""
        self.silences += 1
        self.window = 1
        if self.silences >= _MAX_SILENCES:
            self.lose(why)

    def lose(self, why: str) -> None:
        """It is gone for now."""
        self.head, self.problem = None, why

    def accuse(self, why: str) -> None:
        """It is not to be trusted."""
        self.lose(why)
        self.false = True


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is."""

    received_bytes: int
    total_bytes: int
    """That are fetched in all; what was here already is not counted."""
    num_donors: int
    """That are giving."""
    left_s: float
    """About; infinite as long as nothing came."""


class Pace:
    """Bytes a second, of the last while.

    Args:
        now: monotonic time in seconds.
    """

    def __init__(self, now: float) -> None:
        self._marks = deque([(now, 0)])

    def left_s(self, now: float, received_bytes: int, total_bytes: int) -> float:
        """Seconds that the rest takes, if so much has come by now; infinite if nothing came lately."""
        while len(self._marks) > 1 and self._marks[1][0] <= now - _PACE_S:
            self._marks.popleft()
        if now - self._marks[-1][0] >= _PACE_S / 20:
            self._marks.append((now, received_bytes))
        began, before = self._marks[0]
        if received_bytes == before or now == began:
            return inf
        return (total_bytes - received_bytes) * (now - began) / (received_bytes - before)
