"""What a reducer's codec left out of the means it sent: it adds that to its later means of the same values.

Reducers change from round to round, so each keeps what it left out until it reduces those values again. As with error
feedback on contributions, the codec loses nothing: all means as they were sent and what all reducers keep add up to
the exact means.

Legend: S = values in a shard.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor

from decentral.tensors.blank import blank
from decentral.types import SyncKey

#: Rounds whose end is awaited, beside one for each fragment: rounds that end in nothing. What falls out
#: is lost.
_SPARE_ROUNDS = 2


class MeanRest:
    """Rests of one reducer, held back until it is known whether the round counts.

    Args:
        numels: values in each fragment.
    """

    def __init__(self, numels: Sequence[int]) -> None:
        self._numels = tuple(numels)
        self._owed_N: dict[int, Tensor] = {}
        self._held: OrderedDict[bytes, dict[tuple[int, int], Tensor]] = OrderedDict()
        self._shown: set[int] = set()
        """Fragments whose rest somebody else refers to: it is copied before it is changed."""
        self._changing = threading.Lock()

    def of(self, key: SyncKey, start: int, stop: int) -> Tensor | None:
        """What is owed to the mean of the values [start, stop), not to be changed; ``None`` if nothing is."""
        owed_N = self._owed_N.get(key.fragment)
        return None if owed_N is None else owed_N[start:stop]

    def hold(self, participants: bytes, key: SyncKey, start: int, left_S: Tensor) -> None:
        """What was left out of the mean of these values; owed if the round of ``participants`` counts."""
        self._held.setdefault(participants, {})[key.fragment, start] = left_S
        while len(self._held) > len(self._numels) + _SPARE_ROUNDS:
            self._held.popitem(last=False)

    def settle(self, participants: bytes, *, mixed: bool) -> None:
        """The round has ended: the means were used, or nobody uses them."""
        held = self._held.pop(participants, {})
        with self._changing:
            for (fragment, start), left_S in held.items() if mixed else ():
                if fragment not in self._owed_N:
                    self._owed_N[fragment] = blank(self._numels[fragment]).zero_()
                elif fragment in self._shown:
                    self._owed_N[fragment] = self._owed_N[fragment].clone()
                self._shown.discard(fragment)
                self._owed_N[fragment][start : start + left_S.numel()] = left_S

    def void(self, key: SyncKey) -> None:
        """Nothing is owed to the mean of this fragment any more."""
        self._owed_N.pop(key.fragment, None)

    def owed(self) -> Mapping[int, Tensor]:
        """What is owed to each fragment's means, on any thread; not changed any more."""
        with self._changing:
            self._shown.update(self._owed_N)
            return dict(self._owed_N)

    def restore(self, owed_N: Mapping[int, Tensor]) -> None:
        """Owe what was owed in an earlier life."""
        self._owed_N = dict(owed_N)
        self._shown = set(owed_N)
