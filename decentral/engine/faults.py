"""When what cannot be used has come too often: of one machine, which ends, or of a run, which ends or rolls back."""

from collections import defaultdict

from decentral.engine.replica import Replica
from decentral.engine.report import Report
from decentral.errors import DivergedError
from decentral.exchange.api import Excuse
from decentral.types import SyncKey

#: Rounds in a row.
_MAX_DIVERGED = 3


class Ruined(DivergedError):
    """All that was learnt is lost, as far as this worker can tell by itself; earlier anchors may be good."""


class Faults:
    """Counts what this worker brought and could not be used.

    Args:
        replica: knows of parameters that were not finite.
        report: hears of what was none.
    """

    def __init__(self, replica: Replica, report: Report) -> None:
        self._replica = replica
        self._report = report
        self._unsound = defaultdict[int, set[int]](set)
        """Rounds in a row in which what it brought was none, by fragment: each once, though a round ends once more for
        this worker if the state that it fetched is of before it."""

    def check_finite(self, round: int) -> None:
        """After a round in which there may have been nothing finite to give.

        Raises:
            Ruined: there was nothing several times in a row.
        """
        if self._replica.rounds_diverged >= _MAX_DIVERGED:
            raise Ruined(
                f"the parameters were not finite in {_MAX_DIVERGED} rounds in a row (round {round})",
                hint="Lower the learning rate or the outer learning rate, or look at this machine's data.",
            )

    def sound(self, fragment: int) -> None:
        """What this worker brought of a fragment was a contribution."""
        self._unsound.pop(fragment, None)

    def unsound(self, key: SyncKey) -> None:
        """It was none, though this worker means no harm.

        Raises:
            DivergedError: several times in a row; the run is sound, and this machine is not.
        """
        self._report.sat_out(key, Excuse.UNSOUND)
        self._unsound[key.fragment].add(key.round)
        if len(self._unsound[key.fragment]) >= _MAX_DIVERGED:
            raise DivergedError(
                f"what this worker brought was far from all others' in {_MAX_DIVERGED} rounds in a row "
                f"(round {key.round})",
                hint="The others train on. Look at this machine's memory, GPU and data before it joins again.",
            )
