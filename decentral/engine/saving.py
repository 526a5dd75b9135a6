"""Keeps the worker's state now and then, beside the training: whatever ends this process, little is lost."""

import asyncio
from collections.abc import Awaitable, Callable

from decentral.engine.background import Background
from decentral.engine.capture import Picture
from decentral.engine.meter import Meter
from decentral.engine.options import Parts
from decentral.monitor.events import Saved
from decentral.schedule import together
from decentral.state.worker_state import WorkerState

#: Of the time, so much at most goes into what is asked for by the clock or by steps.
_SHARE = 0.1


class Saving:
    """One save at a time.

    Args:
        parts: what saves, and how often.
        meter: is told what is on disk.
        background: where it goes on.
        picture: takes the worker as it is; told whether it has left in order.
        state: makes the state of a picture, on any thread.
        offer: told of every state but the last, for what others keep of it.
    """

    def __init__(
        self,
        parts: Parts,
        meter: Meter,
        background: Background,
        picture: Callable[[bool], Awaitable[Picture]],
        state: Callable[[Picture], WorkerState],
        offer: Callable[[WorkerState], None],
    ) -> None:
        self._clock = parts.clock
        self._meter = meter
        self._journal = parts.journal
        self._save = parts.save
        self._every = parts.save_every
        self._is_kept = parts.save is not None or parts.protect > 0
        self._background = background
        self._picture = picture
        self._state = state
        self._offer = offer
        self._began_at = self._not_before = parts.clock.monotonic()
        self._saved_step = 0
        self._cost_s = 0.0
        """What the last save took, beside the training."""
        self._steps = 0
        """Of those who save together: at every multiple of so many, as steps took since the last save; 0 for none."""
        self._writing: asyncio.Task[None] | None = None
        self._asked: list[asyncio.Future[None]] = []

    def begin_at(self, step: int) -> None:
        """Training begins; what was saved of this step and before is on disk."""
        self._began_at, self._saved_step = self._clock.monotonic(), step
        self._steps = self._every.steps

    def next_step(self, step: int, until: int) -> int:
        """How far to train at once on the way to step ``until``: saves by steps are of just those steps."""
        every = self._steps
        return min(until, (step // every + 1) * every) if every and self._is_kept else until

    async def at_rest(self, step: int, *, best: bool = False, waits: bool = False) -> None:
        """The worker stands between two inner steps: save if it is time, or somebody has asked for it.

        Args:
            step: inner steps behind it.
            best: save in any case: its anchors are the best so far.
            waits: it does not go on before an exchange has ended, after which those who save together do so.
        """
        due = self._is_kept and (best or self._is_due(step, waits=waits))
        if not due and not self._asked:
            return
        if best and self._writing is not None:
            await self._writing
        self._began_at, self._saved_step = self._clock.monotonic(), step
        asked, self._asked = self._asked, []
        picture = await self._picture(False)
        self._writing = self._background.begin(self._deliver(picture, asked, self._began_at))

    def _is_due(self, step: int, *, waits: bool) -> bool:
        now, every = self._clock.monotonic(), self._every
        if self._writing is not None and not self._writing.done():
            return False
        if every.together:
            if waits or step <= self._saved_step:
                return False
            if not every.steps:
                step_s = (now - self._began_at) / (step - self._saved_step)
                self._steps = together.steps_between(max(every.seconds, self._cost_s / _SHARE), step_s)
            return step % self._steps == 0
        if now < self._not_before:
            return False
        by_steps = every.steps > 0 and step // every.steps > self._saved_step // every.steps
        return by_steps or now - self._began_at >= every.seconds

    async def _deliver(self, picture: Picture, asked: list[asyncio.Future[None]], began: float) -> None:
        """Make the state of a picture and keep it; those who asked hear that it is done, whatever came of it."""
        try:
            state = await self._clock.run_aside(lambda: self._state(picture))
            self._offer(state)
            await self._write(state, picture.held_s)
        finally:
            _done(asked)
        now = self._clock.monotonic()
        self._cost_s = now - began
        self._not_before = now + self._cost_s * (1 / _SHARE - 1)

    async def _write(self, state: WorkerState, held_s: float) -> None:
        save = self._save
        if save is not None and (written := await self._clock.run_on_disk(lambda: save(state))) is not None:
            self._meter.saved(state.step)
            self._journal.record(Saved(written.path, state.round, state.step, held_s, written.nbytes))

    async def now(self) -> None:
        """Save at the next rest between two steps; returns when that is done, or the worker has ended before that."""
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        await asked

    def over(self) -> None:
        """The worker does not run any more: nobody waits for its next rest in vain."""
        asked, self._asked = self._asked, []
        _done(asked)

    async def at_end(self, *, closed: bool) -> None:
        """Save, whatever was saved before, of a worker that does not run; returns when it is done."""
        if self._save is not None:
            picture = await self._picture(closed)
            await self._write(await self._clock.run_aside(lambda: self._state(picture)), picture.held_s)

    async def finish(self, within_s: float) -> None:
        """Wait for the save under way, if there is one."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=within_s)


def _done(asked: list[asyncio.Future[None]]) -> None:
    for future in asked:
        if not future.done():
            future.set_result(None)
