"""Who validates the anchor and when, and what is good enough to go back to.

One member does it now and then, in the place of all; or all do, each for itself, where a ruined run is to roll back:
then nobody has to be believed, and as all have the same anchor they come to the same.
"""

import math
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from decentral.engine.faults import Ruined
from decentral.engine.membership import Membership
from decentral.engine.options import Parts, RunOptions
from decentral.engine.replica import Replica
from decentral.engine.syncs import Stepped
from decentral.monitor.events import Validated
from decentral.swarm.matching import evaluator
from decentral.types import SyncKey

#: One alone may be a bad draw of held-out data, or a merge that the next round makes good.
_BAD_IN_A_ROW: Final = 2
#: Of a worker, as long as it runs.
_MAX_ROLLBACKS: Final = 3


@dataclass(frozen=True, slots=True)
class Loss:
    """What came of a validation."""

    digest: str
    """Of the anchors and outer states that were validated."""
    loss: float
    """Nats per token; NaN if the trainer cannot tell."""
    best: bool
    """Whether none was better so far."""


@dataclass(frozen=True, slots=True)
class Good:
    """What to go back to."""

    round: int
    """That began with it."""
    loss: float
    anchors: tuple[Tensor, ...]
    """Of each fragment [N]."""


class LossHistory:
    """What one worker's validations have come to, and whether they say that the run is ruined.

    It is if two in a row are worse than the very first one by a tenth of a nat, after at least a tenth of that had been
    gained; or worse than twice that by a nat, whatever had been gained; or infinite. A loss that rises for a while is
    none of this, and neither is the noise of one that is nearly zero.
    """

    def __init__(self) -> None:
        self._first = self._best = math.inf
        self._num_bad = 0

    def resume(self, loss: float) -> None:
        """An earlier life has come to a loss; NaN if it is not known."""
        if loss < self._best:
            self._best = loss

    def begin_anew(self) -> None:
        """What was ruined is undone."""
        self._num_bad = 0

    def take(self, loss: float) -> tuple[bool, bool]:
        """Whether a loss is the best so far, and whether the run is ruined. NaN says nothing: nobody could tell."""
        if math.isnan(loss):
            return False, False
        best = math.isfinite(loss) and loss < self._best
        first = self._first
        gained = first - self._best >= 0.1 * abs(first)  # never true before the first one
        bad = math.isinf(loss) or (gained and loss > first + 0.1) or loss > first + abs(first) + 1.0
        self._num_bad = self._num_bad + 1 if bad else 0
        self._first = loss if math.isinf(self._first) else self._first
        self._best = loss if best else self._best
        return best, self._num_bad >= _BAD_IN_A_ROW


class Validation:
    """One worker's part in it.

    Args:
        options: equal on all workers.
        parts: this worker's own.
        replica: what is validated.
        membership: who could do it as well.
        common: whether all have the same anchor.
    """

    def __init__(
        self, options: RunOptions, parts: Parts, replica: Replica, membership: Membership, *, common: bool
    ) -> None:
        self._options = options
        self._parts = parts
        self._replica = replica
        self._membership = membership
        self._common = common
        self._history = LossHistory()
        self._good: Good | None = None
        """The lowest loss of this life, if it is lower than all to which was gone back."""
        self._good_loss = math.inf
        self._last: Good | None = None
        """To which was gone back last."""
        self._begun_in = -1
        """The first round since then."""
        self._num_rollbacks = 0
        self.ruined = False
        """Whether all that was learnt is lost."""

    def resume(self, loss: float) -> None:
        """See ``LossHistory``."""
        self._history.resume(loss)

    async def after(self, end: Stepped) -> Loss | None:
        """After an outer step: validate if it is this worker's turn.

        Raises:
            Ruined: by two losses in a row.
        """
        key, every, clock = end.key, self._options.eval_every_rounds, self._parts.clock
        last_fragment = key.fragment == self._options.plan.num_fragments - 1
        if not every or not last_fragment or (key.round + 1) % every:
            return None
        members = end.judged.mixed.members
        if not self._common:
            # Those who mixed are a few of many, and each group would pay; who is done has been here.
            members = tuple([p.peer for p in self._membership.roster.runners(clock.monotonic())])
        all_do = self._options.rolls_back
        if not all_do and (not members or evaluator(members, key) != self._parts.transport.peer_id):
            return None
        snapshot, loss = await clock.run(self._replica.validate)
        self._parts.journal.record(Validated(key.round + 1, loss))
        best, self.ruined = self._history.take(loss)
        if all_do and loss < self._good_loss:  # so it is none that is bad
            self._good_loss = loss
            self._good = Good(key.round + 1, loss, tuple([state.anchor_N for state in snapshot.fragments]))
        if self.ruined:
            raise Ruined(
                f"the validation loss is {loss:.4g} after round {key.round}: all that was learnt is lost",
                hint="The weights as they are were not saved at the end, the best are in checkpoints/best, to which "
                "`decentral rewind` goes back. Lower the learning rate; `decentral audit` says who brought what.",
            )
        return Loss(snapshot.name, loss if math.isfinite(loss) else math.nan, best)

    def good(self, fault: Ruined) -> Good:
        """What to go back to, once.

        Raises:
            Ruined: the fault, if there is nothing better than before, or the run was rolled back often enough.
        """
        if self._good is None or self._num_rollbacks >= _MAX_ROLLBACKS:
            raise fault
        return self._good

    async def roll_back(self, good: Good, round: int) -> None:
        """Go back to what was good, and begin ``round`` with it; not again before there is a lower loss."""
        await self._parts.clock.run(lambda: self._replica.begin_anew(good.anchors))
        self._last, self._good, self.ruined = good, None, False
        self._num_rollbacks, self._begun_in = self._num_rollbacks + 1, round
        self._history.begin_anew()

    def awaits_others(self, key: SyncKey) -> bool:
        """Whether others that hold another anchor in this round may yet go back, as this worker did just before it."""
        return key.round == self._begun_in

    async def undone(self) -> None:
        """What others hold takes the place of what this worker holds, which one of them has gone back from perhaps.

        Work that was done in a ruined model is worth nothing in a sound one, and who was alone in going back may have
        to do so again.
        """
        if self._options.rolls_back:
            await self._parts.clock.run(self._replica.reset)
            self._good = self._good or self._last
