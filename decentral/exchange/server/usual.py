"""What one push may count for, where pushes come one by one: the bounds of ``exchange.bounds`` on length and direction.

A server compares a push with the last one of every other worker; who was away while the others pushed several times may
bring so many times as much (see ``exchange.backlog``). Pushes are taken against anchors of different age, and near an
optimum honest ones point against each other; so a direction says something only where those of most others agree.
Knows no messages and no clock.

Legend: N = values in a fragment, K = those of them that are looked at.
"""

import statistics
from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from decentral.exchange.backlog import Backlog
from decentral.exchange.bounds import Kind, against, beyond, drawn
from decentral.exchange.merge import norm_of
from decentral.types import PeerId

#: Workers whose last push is remembered, 64 KiB each; beyond it that of the one which pushed longest ago is forgotten.
_MAX_WORKERS: Final = 64
#: How far away a push is that is left out, and how clearly the others agree: more than in a round, of a single anchor.
_AWAY: Final = 1 / 2
_CLEARLY: Final = 2.0


@dataclass(frozen=True, slots=True)
class Look:
    """What is remembered of a push."""

    length: float
    direction_K: Tensor
    """Some of its values, the same of every push."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a push may count for."""

    kind: Kind | None
    """What is wrong with it; ``None`` for nothing."""
    ratio: float
    """Its length over what is usual; of ``AGAINST`` the median of its cosines with the others."""
    share: float
    """By which it is to be scaled; 0 to leave it out."""


class Usual:
    """The last pushes to one fragment.

    Args:
        factor: so many times what is usual one may be long, at least 1.
        seed: draws the values that are looked at.
    """

    def __init__(self, factor: float, seed: int) -> None:
        self._factor = factor
        self._seed = seed
        self._looks: OrderedDict[PeerId, Look] = OrderedDict()
        self._backlog = Backlog()

    def look(self, delta_N: Tensor) -> Look:
        """What there is to remember of a push."""
        places = drawn(delta_N.numel(), torch.Generator().manual_seed(self._seed))
        return Look(norm_of(delta_N), delta_N[places].clone())

    def note(self, sender: PeerId, look: Look) -> None:
        """A worker has pushed, whatever comes of it."""
        self._backlog.counted((sender,))
        self._looks[sender] = look
        self._looks.move_to_end(sender)
        if len(self._looks) > _MAX_WORKERS:
            self._looks.popitem(last=False)

    def judge(self, sender: PeerId, look: Look, living: Set[PeerId]) -> Judged | None:
        """Note a push and compare it with the last ones of all who live, itself among them.

        With one other the shorter of the two is what is usual; ``None`` if there is no other.
        """
        others = [known for peer, known in self._looks.items() if peer in living and peer != sender]
        factor = self._factor * self._backlog.rounds(sender, per_round=len(others) + 1)
        self.note(sender, look)
        lengths = [*[other.length for other in others], look.length]
        usual = statistics.median_low(lengths)
        if not others:
            return None
        if usual == 0:
            return Judged(None, 1.0, 1.0)
        ratio = look.length / usual
        kind = beyond(ratio, factor)
        if kind in (Kind.WILD, Kind.NOTHING):
            return Judged(kind, ratio, 0.0)
        directions = [*[other.direction_K for other in others], look.direction_K]
        pointing = dict(against(directions, lengths, share=_AWAY, clearly=_CLEARLY))
        if len(others) in pointing:
            return Judged(Kind.AGAINST, pointing[len(others)], 0.0)
        return Judged(kind, ratio, factor / ratio if kind is Kind.LENGTH else 1.0)
