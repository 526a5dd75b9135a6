"""Which of several donors hold a state that is far from what most of them hold, where no two need hold the same.

Where every worker has an anchor of its own, a digest says nothing of a state. So who downloads one draws some positions
once all donors have named what they have, asks each of them for its values there, and looks how far each is from the
others: its *distance* is the least radius within which it has so many others that they and it are more than half of all
who answered. Let d be the least distance of all donors. One is far if its distance is above ``_FAR`` d in any tensor of
any fragment; if that is so of all, not the one that is the least far.

As long as fewer than half of those who answer lie, honest ones alone are more than half, so d is no more than honest
states are apart; and somebody honest is within the distance of each, so whatever is not far is within ``_FAR`` d of an
honest state, at the positions drawn. One liar of three or four is held, three of eight. Of two nobody can say who lies,
and neither is far. A lie in so few values that none of the positions is likely to be among them is missed.

Distances to nearest neighbours are those of Krum (Blanchard and others, 2017, arXiv 1703.02757), which takes the one
vector with the least sum of their squares; here donors keep their order, and only those that are far are passed by.

Pure. Legend: K = positions in a fragment, D = donors.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

#: So many values of each tensor are looked at, the same number in every fragment.
_NUM_POSITIONS = 4_096
#: So many times as far from the others as the nearest donor is nobody honest who is needed.
_FAR = 4.0


def drawn_positions(numels: Sequence[int], secret: bytes) -> list[list[int]]:
    """Positions in each fragment, ascending, as whoever does not know the secret cannot foresee them."""
    dice, each = random.Random(secret), max(1, _NUM_POSITIONS // len(numels))
    return [sorted(dice.sample(range(numel), min(numel, each))) for numel in numels]


def far_off(said: Sequence[Sequence[Tensor]]) -> list[int]:
    """Numbers of the donors that are far from most.

    Args:
        said: by each donor, its finite float32 [K] of every tensor of every fragment, in one order.
    """
    if len(said) < 3:
        return []
    worst_D = torch.ones(len(said), dtype=torch.float64)
    for values in zip(*said, strict=True):
        values_DK = torch.stack(values).double()
        between_DD = torch.stack([(values_DK - own_K).norm(dim=1) for own_K in values_DK])
        # The first of all is itself.
        distance_D = between_DD.sort(dim=1).values[:, len(said) // 2]
        # Where most hold the same, whoever does not is infinitely far.
        ratio_D = torch.where(distance_D == distance_D.min(), 1.0, distance_D / distance_D.min())
        worst_D = torch.maximum(worst_D, ratio_D)
    allowed = max(_FAR, float(worst_D.min()))
    return [number for number, worst in enumerate(worst_D.tolist()) if worst > allowed]
