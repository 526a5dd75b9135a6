"""What a verdict means for this worker. The only place where one is judged; everybody else acts on what it says."""

from dataclasses import dataclass

from torch import Tensor

from decentral.exchange.api import Aborted, Contribution, Reason, Verdict
from decentral.exchange.bounds import Kind
from decentral.exchange.merge import norm_of
from decentral.outer.rule import Mixed
from decentral.types import PeerId, SyncKey

#: The anchor is not the swarm's: no round will count this worker's work as long as that is so.
_REPAIR = frozenset({Reason.BEHIND, Reason.OUT_OF_SYNC})
#: Whose contribution was left out as wild, and is so many times longer than the mean indeed, is not sound. A reducer
#: that lies cannot make that of an honest one.
_UNSOUND = 10.0


@dataclass(frozen=True, slots=True)
class TakeStep:
    """Take the outer step and bring it to the local parameters."""

    mixed: Mixed
    sent_N: Tensor | None
    """What of ours is in the mean, as the others decoded it; ``None`` for nothing."""
    uncounted: tuple[tuple[int, int], ...] | None
    """Ranges whose work enters the next round, as they were closed without ours; ``None`` if that is all of it."""
    again: bool
    """Whether the round was over before this worker came to it, and the same work may go on to the next one at once."""
    unsound: bool = False
    """Whether what this worker brought was no contribution, though it lies to nobody: its memory, its GPU or its inner
    optimizer is broken."""

    @property
    def counted(self) -> bool:
        """Whether anything of ours is in the mean."""
        return self.uncounted is not None


@dataclass(frozen=True, slots=True)
class KeepWork:
    """There is no step: the work enters the next round."""

    aborted: Aborted
    repair: bool
    """Whether the swarm's state is to be downloaded before that."""


def judge(key: SyncKey, mine: Contribution, verdict: Verdict, me: PeerId, rounds: int) -> TakeStep | KeepWork:
    """What to do about a verdict.

    Args:
        key: of the round.
        mine: what was brought to it.
        verdict: how it ended.
        me: this worker.
        rounds: of the whole run.
    """
    outcome = verdict.outcome
    if isinstance(outcome, Aborted):
        return KeepWork(outcome, repair=outcome.reason in _REPAIR)
    counted = me in outcome.members
    return TakeStep(
        outcome,
        verdict.sent_N if counted else None,
        outcome.missed if counted else None,
        again=verdict.missed and mine.weight > 0 and key.round + 1 < rounds,
        unsound=not outcome.relative  # changes may be of any length beside those of others
        and any((each.peer, each.kind) == (me, Kind.WILD) for each in verdict.restrained)
        and norm_of(mine.delta_N) > _UNSOUND * norm_of(outcome.delta_N),
    )
