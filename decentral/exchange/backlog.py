"""For how many rounds somebody may have work that no mean has counted yet, as one worker has seen it. Pure.

Who was cut off or paused comes back with the work of many rounds. That is longer than what all others bring, and no
lie; but whoever only says so is not to be believed. So what counts is in how many rounds it was not. Who stays away in
order to bring more at once brings no more, over those rounds together, than it might have brought by being there.
"""

from collections.abc import Iterable
from typing import Final

from decentral.types import PeerId

#: Work of so many rounds at most may come at once: a single wild round should not undo more than these.
MOST_ROUNDS: Final = 8.0
#: Of so many it is remembered when they were last counted.
_MAX_PEERS: Final = 4096


class Backlog:
    """Of one fragment."""

    def __init__(self) -> None:
        self._num = 0
        self._last: dict[PeerId, int] = {}

    def counted(self, peers: Iterable[PeerId]) -> None:
        """What these brought was counted, all at once."""
        self._num += 1
        self._last |= dict.fromkeys(peers, self._num)
        if len(self._last) > _MAX_PEERS:
            self._last = dict(sorted(self._last.items(), key=lambda one: -one[1])[:_MAX_PEERS])

    def rounds(self, peer: PeerId, per_round: int = 1) -> float:
        """The rounds of which a peer may bring the work now, at least 1; of a peer not heard of yet 1.

        Args:
            peer: who brings it.
            per_round: how many times ``counted`` is called in a round.
        """
        last = self._last.get(peer, self._num)
        return max(1.0, min((self._num - last + 1) / per_round, MOST_ROUNDS))
