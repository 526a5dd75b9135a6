"""What one push may count for, where pushes come one by one: the bound on lengths of ``exchange.bounds``.

A server compares the length of a push with that of the last one of every other worker; who was away while the others
pushed several times may bring so many times as much (see ``exchange.backlog``). Directions are not compared:
pushes are taken against anchors of different age, and near an optimum honest ones point against each other.
Knows no messages and no clock.

Legend: N = values in a fragment.
"""

import statistics
from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from decentral.exchange.backlog import Backlog
from decentral.exchange.bounds import Kind, beyond
from decentral.types import PeerId

#: Workers whose last push is remembered; beyond it that of the one which pushed longest ago is forgotten.
_MAX_WORKERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Judged:
    """What a push may count for."""

    kind: Kind | None
    """What is wrong with its length; ``None`` for nothing."""
    ratio: float
    """Its length over what is usual."""
    share: float
    """By which it is to be scaled; 0 to leave it out."""


class Usual:
    """Lengths of pushes to one fragment.

    Args:
        factor: so many times what is usual one may be long, at least 1.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._lengths: OrderedDict[PeerId, float] = OrderedDict()
        self._backlog = Backlog()

    def note(self, sender: PeerId, length: float) -> None:
        """A worker has pushed values of a length, whatever comes of it."""
        self._backlog.counted((sender,))
        self._lengths[sender] = length
        self._lengths.move_to_end(sender)
        if len(self._lengths) > _MAX_WORKERS:
            self._lengths.popitem(last=False)

    def judge(self, sender: PeerId, length: float, living: Set[PeerId]) -> Judged | None:
        """Note a push and compare it with the last ones of all who live, itself among them.

        With one other the shorter of the two is what is usual; ``None`` if there is no other.
        """
        others = [length for peer, length in self._lengths.items() if peer in living and peer != sender]
        factor = self._factor * self._backlog.rounds(sender, per_round=len(others) + 1)
        self.note(sender, length)
        lengths = [*others, length]
        usual = statistics.median_low(lengths)
        if len(lengths) < 2:
            return None
        if usual == 0:
            return Judged(None, 1.0, 1.0)
        ratio = length / usual
        kind = beyond(ratio, factor)
        share = {Kind.LENGTH: factor / ratio, None: 1.0} if ratio else {}
        return Judged(kind, ratio, share.get(kind, 0.0))
