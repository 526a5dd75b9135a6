"""Where this worker is in the run: the only place that moves its step, and that sets rounds which it has not finished.

Where it goes on after a sync is up to the exchange; what is due when, up to the timetable.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from decentral.engine.syncs import InFlightSync, Landing
from decentral.engine.timetable import Timetable
from decentral.exchange.api import Exchange
from decentral.monitor.events import StretchDone
from decentral.ports.clock import Clock
from decentral.ports.trainer import StepReport
from decentral.types import PeerId, SyncKey


@dataclass(slots=True)
class _Stretch:
    """Inner steps between two launches."""

    steps: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def add(self, report: StepReport, steps: int, seconds: float) -> None:
        """More of them."""
        self.steps += steps
        self.tokens += report.tokens
        if report.tokens:  # else there is no loss either, and NaN would spoil the others'
            self.loss_sum += report.loss * report.tokens
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean training loss per token."""
        return self.loss_sum / self.tokens if self.tokens else math.nan


class Course:
    """Step, rounds and pace of one worker.

    Args:
        timetable: when what is due.
        exchange: finishes rounds, and says where to go on.
        clock: for times.
        chunk_s: how many seconds of inner steps to ask for at once.
        own_steps: see ``RunOptions``.
    """

    def __init__(
        self, timetable: Timetable, exchange: Exchange, clock: Clock, chunk_s: float, *, own_steps: bool
    ) -> None:
        self.step_s = 0.0
        """Seconds of an inner step, as the last ones took; 0 as long as that is not known."""
        self.pace_s = 0.0
        """Seconds of a round's inner steps, as the last stretch took; 0 as long as that is not known."""
        self._timetable = timetable
        self._exchange = exchange
        self._progress = exchange.progress
        self._clock = clock
        self._own_steps = own_steps
        self._chunk_s = chunk_s
        self._step = 0
        self._donor_step = 0
        self._stretch = _Stretch()
        self._stepped_at = clock.monotonic()
        self._chunk_steps = 1

    @property
    def step(self) -> int:
        """The global step: inner steps behind this worker, its own or those that it left to others."""
        return self._step

    @property
    def round(self) -> int:
        """The round it is in: the earliest that a fragment has not finished."""
        return min(self._progress.rounds())

    def found(self, step: int) -> Sequence[int]:
        """Begin at a step; returns the rounds in which fragments are then."""
        rounds = self._timetable.plan.rounds_after(step)
        self._go_to(step, rounds)
        return rounds

    def facts(self) -> dict[str, float]:
        """All that it goes on from after a restart, as plain JSON; rounds are the replica's."""
        return {
            "step": self._step,
            "donor_step": self._donor_step,
            "step_s": self.step_s,
            "pace_s": self.pace_s,
            "num_groups": self._timetable.plan.num_groups,
            **asdict(self._stretch),
        }

    def resume(self, facts: Mapping[str, float], rounds: Sequence[int]) -> None:
        """Go on from the ``facts`` of an earlier life, with fragments in these rounds."""
        self.step_s, self.pace_s = facts["step_s"], facts["pace_s"]
        self._donor_step = int(facts["donor_step"])
        self._stretch = _Stretch(
            int(facts["steps"]), int(facts["tokens"]), loss_sum=facts["loss_sum"], seconds=facts["seconds"]
        )
        self._timetable.resume(int(facts["num_groups"]), self.step_s)
        self._go_to(int(facts["step"]), rounds)

    def adopt(self, step: int, rounds: Sequence[int], donor: PeerId, donor_step: int, *, overdue: bool) -> None:
        """Go on from a donor's state, at least one step before the next launch.

        Args:
            step: when the state was made.
            rounds: of its fragments.
            donor: who has given it.
            donor_step: where that one is by now.
            overdue: this worker has enough work for a round already, which is not kept waiting for more.
        """
        next_launch = min(self._timetable.plan.launch_step(SyncKey(r, f)) for f, r in enumerate(rounds))
        self._go_to(next_launch - 1 if overdue else min(step, next_launch - 1), rounds)
        self._progress.donor, self._donor_step = donor, donor_step

    # -- inner steps --------------------------------------------------------------------------------------------------

    def chunk(self, until: int) -> int:
        """How many steps to ask for at once on the way to step ``until``."""
        return min(self._chunk_steps, until - self._step)

    def trained(self, report: StepReport, steps: int, seconds: float) -> None:
        """So many inner steps were taken just now, in so long."""
        self._stepped_at = self._clock.monotonic()
        self._go_to(self._step + steps)
        if seconds > 0 and steps:
            self.step_s = seconds / steps
            self._timetable.stepped(self.step_s)
            self._chunk_steps = max(1, int(self._chunk_s * steps / seconds))
        self._stretch.add(report, steps, seconds)

    def end_stretch(self) -> StretchDone | None:
        """The inner steps since the last launch are one event, if there were any, and tell the pace."""
        done, self._stretch = self._stretch, _Stretch()
        if not done.steps:
            return None
        self.pace_s = done.seconds * self._timetable.plan.inner_steps / done.steps
        return StretchDone(self.round, self._step, done.tokens, done.loss, done.seconds)

    def until_launch_s(self, fragment: int) -> float:
        """Seconds of inner steps before the next sync of a fragment, as the last steps tell."""
        key = SyncKey(self._progress.next_round(fragment), fragment)
        steps = self._timetable.plan.launch_step(key) - self._step
        return max(0.0, steps * self.step_s - (self._clock.monotonic() - self._stepped_at))

    # -- syncs --------------------------------------------------------------------------------------------------------

    def launched(self, paces_s: Callable[[], Sequence[float]]) -> None:
        """What was due was launched; the others' paces are these."""
        self._go_to(self._after_skip(self._step, self._donor_step, paces_s))

    def passed(self, sync: InFlightSync, landing: Landing) -> None:
        """Rounds went by without this worker: it goes on at the step where those are who did not miss them.

        Those have taken as many steps as this worker since that round began.
        """
        since_s = self._clock.monotonic() - landing.ended_at + landing.end.verdict.transfer_s
        since = round(since_s / self.step_s) if self.step_s > 0 else 0
        launched_at = self._timetable.plan.launch_step(landing.end.key)
        self._go_to(max(self._step, launched_at + min(since, self._step - sync.step)))

    def go_on(self, paces_s: Callable[[], Sequence[float]]) -> int | None:
        """Go on where the exchange says, now that nothing is on its way; returns the round if it is not the next."""
        plan, onward = self._timetable.plan, self._exchange.onward()
        if onward.round is not None:
            start = plan.step_of_round(onward.round)
            self._go_to(start, [onward.round] * plan.num_fragments)
            self._go_to(self._after_skip(start, 0, paces_s))
        if self._own_steps and self.step_s > 0 and not math.isnan(onward.due_in_s):
            start = plan.launch_step(SyncKey(self.round, 0)) - max(1, round(onward.due_in_s / self.step_s))
            self._go_to(max(self._step, start))
        return onward.round

    def _after_skip(self, step: int, donor_step: int, paces_s: Callable[[], Sequence[float]]) -> int:
        """Where to go on from ``step``: there or later, at least one step before the next launch."""
        left = self._timetable.next_launches - step
        skipped = self._exchange.steps_to_skip(max(1, left), max(0, donor_step - step), self.pace_s, paces_s)
        return step + max(0, min(skipped, left - 1))

    def _go_to(self, step: int, rounds: Sequence[int] | None = None) -> None:
        """Be at a step, and in other rounds than those that come next."""
        self._step = step
        if rounds is not None:
            self._progress.resume(rounds)
