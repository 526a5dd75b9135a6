"""When what is due: which fragments to launch after an inner step, and which of those on their way to take in.

Steps come from the plan and from how far this worker is; with ``auto`` they follow what links and steps take.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from decentral.engine.options import RunOptions
from decentral.engine.syncs import InFlightSync, InFlightSyncs, Landing
from decentral.exchange.progress import Progress
from decentral.schedule.pacing import Pacing
from decentral.swarm.presence import Presence
from decentral.types import SyncKey

#: Who was ahead of others in so many syncs in a row is out of step with them; one may have waited for somebody dead.
_NUM_AHEAD = 3


class Timetable:
    """Due dates in inner steps.

    Args:
        options: equal on all workers.
        numels: values in each fragment.
        progress: the next round of every fragment that is not on its way.
        syncs: those on their way.
    """

    def __init__(self, options: RunOptions, numels: Sequence[int], progress: Progress, syncs: InFlightSyncs) -> None:
        self.plan = options.plan
        self._options = options
        self._numels = numels
        self._progress = progress
        self._syncs = syncs
        self._pacing = Pacing(options.plan.inner_steps, options.plan.num_fragments)
        self._step_s = 0.0
        self._waits_s: deque[float] = deque(maxlen=_NUM_AHEAD)
        """How long the last syncs waited for other members, of those launched since this worker last stood still."""
        self._stood_at = 0

    @property
    def last_step(self) -> int:
        """Inner steps of the whole run."""
        return self.plan.step_of_round(self._options.rounds)

    @property
    def delay_steps(self) -> int:
        """Inner steps between a launch and the landing, if the result has come by then."""
        if self._options.eager is not None:
            return self.plan.inner_steps
        return self._pacing.delay_steps if self._options.auto_delay else self.plan.delay_steps

    @property
    def slack_s(self) -> float:
        """Seconds for which training goes on without the result of a launch; infinite if it waits for that anyway."""
        return self.delay_steps * self._step_s or math.inf

    def resume(self, num_groups: int, step_s: float) -> None:
        """Go on in as many groups as in an earlier life; what the link takes is measured anew."""
        if self._options.auto_groups:
            self.plan = replace(self.plan, num_groups=num_groups)
        self.stepped(step_s)

    def stepped(self, step_s: float) -> None:
        """Inner steps take so many seconds now."""
        self._step_s = step_s
        self._pacing.stepped(step_s)

    def landed(self, sync: InFlightSync, landing: Landing) -> None:
        """What a sync with a result tells of the link, and of where the others are."""
        if not landing.in_time:
            self._waits_s.clear()
            return
        verdict = landing.end.verdict
        self._pacing.landed(
            landing.duration_s, waiting_s=verdict.waiting_s, transfer_s=verdict.transfer_s, share=sync.group
        )
        if sync.step >= self._stood_at and self._options.own_steps:  # else others wait for its steps, too
            self._waits_s.append(verdict.waiting_s)

    def stand_still_s(self, step: int) -> float:
        """Seconds for which to stand still now, once, as the others are behind; 0 if they are not, or not by much.

        Whoever is ahead of another member by more than the planned delay gets every result late, and replaces what it
        has done meanwhile; nothing else would ever bring the two together again. All rounds of late have waited for
        somebody for longer than this, so nobody waits for this worker then. Where a part of what is done meanwhile
        stays (``mix_alpha``) that is worth more than being in step.
        """
        ahead_s = min(self._waits_s) if len(self._waits_s) == _NUM_AHEAD else 0.0
        if ahead_s <= self.slack_s or self._options.mix_alpha:
            return 0.0
        self._waits_s.clear()
        self._stood_at = step
        return ahead_s

    def group_of(self, fragment: int) -> float:
        """Of the model's values, the share that is launched together with a fragment, itself included."""
        together = [numel for f, numel in enumerate(self._numels) if self.plan.is_together(f, fragment)]
        return sum(together) / sum(self._numels)

    def next_event(self, step: int) -> int:
        """Inner steps taken when next something is due, as things stand after ``step`` of them."""
        events = [self.last_step, self.next_launches]
        for sync in self._syncs:
            due = self._landing_step(sync)
            # What is late is looked for after every step.
            events.append(due if due > step or sync.landed else step + 1)
        return min(events)

    @property
    def next_launches(self) -> int:
        """Inner steps taken when next something is launched."""
        return min(map(self.next_launch, range(self.plan.num_fragments)))

    def next_launch(self, fragment: int) -> int:
        """Inner steps taken at the next launch of a fragment, after the one on its way if there is one."""
        round_ = min(self._round_to_launch(fragment), self._options.rounds)
        return self.plan.launch_step(SyncKey(round_, fragment))

    def to_launch(self, step: int) -> list[SyncKey]:
        """What to launch after ``step`` inner steps, in order."""
        due = [
            fragment
            for fragment in range(self.plan.num_fragments)
            if self._syncs.get(fragment) is None
            and self._progress.next_round(fragment) < self._options.rounds
            and self.next_launch(fragment) <= step
        ]
        return [SyncKey(self._progress.next_round(f), f) for f in sorted(due, key=self.next_launch)]

    def to_wait_for(self, step: int) -> list[InFlightSync]:
        """What must have landed before anything else is done: its next launch is due, or the last step is taken."""
        over = step >= self.last_step
        return [sync for sync in self._syncs if over or self.next_launch(sync.key.fragment) <= step]

    def to_land(self, step: int) -> list[InFlightSync]:
        """What is due and there; without overlap, what was just launched."""
        due = [sync for sync in self._syncs if self._landing_step(sync) <= step]
        return [sync for sync in due if sync.landed or not self.delay_steps]

    def follow_the_link(self, others: Callable[[], Iterable[Presence]]) -> int:
        """Launch as many fragments together as the slowest link asks for; returns how many groups this one would like.

        From a round's end on: whoever has not heard of it yet launches at other steps for a round, which is no harm.
        """
        present = self.plan.num_groups
        if not self._options.auto_groups:
            return present
        wanted = self._pacing.num_groups(present)
        if len({self._round_to_launch(fragment) for fragment in range(self.plan.num_fragments)}) == 1:
            most = self.plan.inner_steps // (self.plan.delay_steps + 1)
            asked = max([wanted, *(presence.metrics.num_groups for presence in others())])
            self.plan = replace(self.plan, num_groups=max(1, min(asked, most, self.plan.num_fragments)))
        return wanted

    def _round_to_launch(self, fragment: int) -> int:
        """The next round that a fragment is launched for."""
        sync = self._syncs.get(fragment)
        return self._progress.next_round(fragment) if sync is None else sync.key.round + 1

    def _landing_step(self, sync: InFlightSync) -> int:
        return sync.step + self.delay_steps
