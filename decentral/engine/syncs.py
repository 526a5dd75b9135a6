"""Fragments on their way: from the launch, through the exchange, to the outer step. All of it beside the training.

A fragment has one sync at a time. The training thread is asked for a copy of the fragment and nothing else; what the
result does to the local parameters, and when, is up to the worker.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from decentral.engine.background import Background
from decentral.engine.fragment import Taken
from decentral.engine.judge import KeepWork, TakeStep, judge
from decentral.engine.membership import Membership
from decentral.engine.replica import Applied, Replica
from decentral.exchange.api import Contribution, Exchange, Excuse, Verdict
from decentral.ports.clock import Clock
from decentral.tensors.blank import LARGE_VALUES, give_back_freed
from decentral.types import PeerId, SyncKey


@dataclass(frozen=True, slots=True)
class Stepped:
    """A round whose outer step was taken."""

    key: SyncKey
    verdict: Verdict
    judged: TakeStep
    applied: Applied


@dataclass(frozen=True, slots=True)
class Kept:
    """A round without one."""

    key: SyncKey
    verdict: Verdict
    judged: KeepWork


@dataclass(frozen=True, slots=True)
class Landing:
    """A sync that has ended."""

    passed: tuple[Stepped, ...]
    """From the launch on, the rounds that were over before this worker came to them: it has the steps of the others."""
    end: Stepped | Kept
    """The round to which the work was brought in the end."""
    excuse: Excuse | None
    """Why this worker brought nothing, if it did not."""
    duration_s: float
    """Since the launch."""
    ended_at: float

    @property
    def in_time(self) -> bool:
        """Whether this worker was there for the only round of it, which tells what the link takes."""
        return not self.passed and not self.end.verdict.missed


@dataclass(slots=True)
class InFlightSync:
    """A fragment on its way."""

    key: SyncKey
    """A later one than at the launch if the work is brought to a later round."""
    step: int
    """Inner steps taken at its launch."""
    group: float
    """Of the model's values, the share that was launched at the same step."""
    held_s: float
    """How long the training stood still for the launch."""
    taken: Taken | None
    """At its launch; ``None`` once it is taken in."""
    task: asyncio.Task[Landing]

    @property
    def landed(self) -> bool:
        """Whether it has ended."""
        return self.task.done()

    @property
    def landing(self) -> Landing | None:
        """How it has ended, if it has by itself."""
        return self.task.result() if self.task.done() and not self.task.cancelled() else None


class InFlightSyncs:
    """All that is under way.

    Args:
        replica: what is launched, and what takes the outer step.
        exchange: mixes.
        membership: to be awake before a round.
        clock: for threads and durations.
        me: this worker.
        rounds: of the run.
        goes_on: asked after a round that was over before this worker came to it, whether to bring the work to the next
            one at once.
        background: where they go on.
    """

    def __init__(
        self,
        replica: Replica,
        exchange: Exchange,
        membership: Membership,
        clock: Clock,
        me: PeerId,
        rounds: int,
        goes_on: Callable[[], bool],
        background: Background,
    ) -> None:
        self._replica = replica
        self._exchange = exchange
        self._membership = membership
        self._clock = clock
        self._me = me
        self._rounds = rounds
        self._goes_on = goes_on
        self._background = background
        self._syncs: dict[int, InFlightSync] = {}
        self._values = 0
        """Of syncs since memory was given back."""
        self.stepping = asyncio.Lock()
        """Held from the beginning of an outer step until the sync is known to have ended or goes on."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self._syncs)

    def __iter__(self) -> Iterator[InFlightSync]:
        """Those under way or not fetched yet, in the order of their launches."""
        return iter(list(self._syncs.values()))

    def get(self, fragment: int) -> InFlightSync | None:
        """The sync of a fragment, if it is on its way."""
        return self._syncs.get(fragment)

    async def launch(self, key: SyncKey, step: int, group: float, share: float, slack_s: float) -> None:
        """Cut the fragment out of the parameters and send it on its way.

        Args:
            key: of the sync.
            step: inner steps taken so far.
            group: see ``InFlightSync``.
            share: see ``Replica.take``.
            slack_s: see ``Contribution``.
        """
        began = self._clock.monotonic()
        taken = await self._clock.run(lambda: self._replica.take(key, share))
        launched_at = self._clock.monotonic()
        task = self._background.begin(self._fly(key, taken, launched_at, slack_s))
        self._syncs[key.fragment] = InFlightSync(key, step, group, launched_at - began, taken, task)
        self._values += taken.state.anchor_N.numel()

    def resume(self, key: SyncKey, step: int, group: float, taken: Taken, landing: Landing | None) -> None:
        """What was on its way in an earlier life is on its way again.

        Args:
            key: of the sync.
            step: at which it was launched.
            group: see ``InFlightSync``.
            taken: at its launch.
            landing: how it has ended, if it has; it is still to be taken in.
        """

        async def ended(landing: Landing) -> Landing:
            return landing

        now = self._clock.monotonic()
        fly = self._fly(key, taken, now, math.inf) if landing is None else ended(landing)
        self._syncs[key.fragment] = InFlightSync(key, step, group, 0.0, taken, self._background.begin(fly))

    async def fetch(self, sync: InFlightSync) -> Landing:
        """The end of a sync; waits for it. There may be another one of that fragment afterwards."""
        landing = await sync.task
        del self._syncs[sync.key.fragment]
        return landing

    def forget_freed(self) -> None:
        """Give the system the memory that syncs have freed, if it is much and none is under way."""
        if self._values >= LARGE_VALUES and not self._syncs and self._background.is_open:
            self._values = 0
            self._background.begin(self._clock.run_aside(give_back_freed))

    async def cancel(self, sync: InFlightSync) -> None:
        """Give a sync up."""
        sync.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sync.task
        del self._syncs[sync.key.fragment]

    async def _fly(self, key: SyncKey, taken: Taken, launched_at: float, slack_s: float) -> Landing:
        """Bring, mix, take the outer step."""
        mine = await self._clock.run_aside(lambda: self._replica.bring(key, taken))
        if mine.excuse is Excuse.NOT_FINITE:
            await self._clock.run(self._replica.reset)
        await self._membership.catch_up()
        mine = replace(mine, slack_s=max(0.0, slack_s - (self._clock.monotonic() - launched_at)))
        passed: list[Stepped] = []
        while True:
            end = await self._mix(key, mine)
            if isinstance(end, Kept) or not end.judged.again or not self._goes_on():
                now = self._clock.monotonic()
                return Landing(tuple(passed), end, mine.excuse, now - launched_at, now)
            passed.append(end)
            key = self._syncs[key.fragment].key = SyncKey(key.round + 1, key.fragment)
            # The others are not to hurry for one who is late already.
            mine = replace(self._replica.bring_again(mine, key.fragment), slack_s=math.inf)

    async def _mix(self, key: SyncKey, mine: Contribution) -> Stepped | Kept:
        """One round, and its outer step if there is one to take."""
        verdict = await self._exchange.mix(key, mine)
        judged = judge(key, mine, verdict, self._me, self._rounds)
        if isinstance(judged, KeepWork):
            return Kept(key, verdict, judged)
        async with self.stepping:
            return await self._step(key, verdict, judged)

    async def _step(self, key: SyncKey, verdict: Verdict, judged: TakeStep) -> Stepped:
        applied = await self._clock.run_aside(lambda: self._replica.step(key, judged.mixed, judged.sent_N))
        held = self._replica.anchor(key.fragment)
        if held is not None:
            self._exchange.adopted(key.fragment, *held)
        # The values have done their work. Given back now, their memory costs nothing at the landing.
        told = judged.mixed.emptied()
        return Stepped(
            key, replace(verdict, outcome=told, sent_N=None), replace(judged, mixed=told, sent_N=None), applied
        )
