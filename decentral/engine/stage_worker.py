"""One stage at one worker: its weights, its part of the pipeline, its place in the swarm of the stage's replicas."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from decentral.engine.options import Outcome, Parts, RunOptions
from decentral.engine.worker import Worker
from decentral.monitor.events import StageRecovered
from decentral.monitor.journal import Journal
from decentral.pipeline.handover import KeptHeads, LiveWeights
from decentral.pipeline.head import HeadLoop
from decentral.pipeline.stage import StageLoop
from decentral.ports.clock import Clock
from decentral.ports.trainer import Steps
from decentral.state.worker_state import WorkerState
from decentral.types import PeerId


class StageWorker:
    """Runs a stage from when it is here to when it leaves.

    Args:
        stage: 0 is the head.
        loop: its part of the pipeline.
        options: of the swarm of its replicas.
        parts: of the worker in it; ``transport`` is the stage's own scope and ``inner`` is this one's.
        weights: hands them out as they are.
        kept: copies of heads, of a stage that keeps some.
        is_saved: whether there is a checkpoint of the stage. Else there is one when it leaves, wherever it is then.
    """

    def __init__(
        self,
        stage: int,
        loop: HeadLoop | StageLoop,
        options: RunOptions,
        parts: Parts,
        weights: LiveWeights,
        kept: KeptHeads | None,
        is_saved: Callable[[], bool],
    ) -> None:
        self.stage = stage
        self.loop = loop
        self.worker = Worker(replace(options, own_steps=False), parts)
        self._transport = parts.transport
        self._weights = weights
        self._restored = parts.restored is not None
        self._is_saved = is_saved
        self._kept = kept
        self._goes_on = False
        """Whether it goes on elsewhere when it leaves."""
        self._stop = asyncio.Event()
        self._task: asyncio.Task[Outcome] | None = None

    async def start(self, step: int, replicas: Sequence[PeerId], together: Sequence[PeerId] = ()) -> None:
        """Found the swarm of the stage at a global step, or join its replicas; then begin to answer and to train.

        Args:
            step: of the run. With a saved state it is that of the state, from which the worker goes on.
            replicas: that hold the stage.
            together: others that come back with the same state.

        Raises:
            UnreachableError: there are replicas, and none could hand over its state.
            MismatchError: the saved state is another model's, or another release's.
        """
        if replicas:
            await self.worker.join(replicas)
        elif self._restored:
            await self.worker.resume()
            for peer in together:  # those who are not there yet will say so themselves
                await self.worker.membership.tell(peer)
        else:
            await self.worker.found(step)
        await self._weights.start()
        if self._kept is not None:
            await self._kept.start()
        await self.loop.start()
        self._task = asyncio.create_task(self._run())

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._task is not None and self._task.done()

    def outcome(self) -> Outcome:
        """Of one that is over. Raises what ended it."""
        assert self._task is not None
        return self._task.result()

    def ask_to_stop(self) -> None:
        """Leave in order."""
        self._stop.set()

    async def ended(self) -> None:
        """Wait until it is over. Raises what ended it."""
        if self._task is not None:
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()

    async def freeze(self) -> WorkerState:
        """Leave in order; returns what it goes on from, wherever that is. Raises what ended it."""
        self._goes_on = True
        self.ask_to_stop()
        if isinstance(self.loop, StageLoop):
            self.loop.wake()
        await self.ended()
        return await self.worker.state()

    async def abandon(self) -> None:
        """End at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._transport.close()

    async def _run(self) -> Outcome:
        try:
            outcome = await self.worker.run(self._stop)
            if outcome.done or not (self._goes_on or self._is_saved()):
                await self.worker.keep()
            if outcome.done:
                await self.loop.finish(self._stop)
            return outcome
        finally:
            await self.loop.close()
            await self._transport.close()


class FirstStep:
    """Implements ``ports.trainer.InnerLoop``: another one whose first step after a recovery is told of.

    Args:
        loop: takes the steps.
        clock: for the time since the recovery began.
        journal: hears of it.
        recovered: the event without what is not known before the step; ``None`` if nothing was recovered.
        began_at: when the recovery did.
        tell: called with the event.
    """

    def __init__(
        self,
        loop: HeadLoop | StageLoop,
        clock: Clock,
        journal: Journal,
        recovered: Callable[[int, float, float], StageRecovered] | None,
        began_at: float,
        tell: Callable[[StageRecovered], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._journal = journal
        self._recovered = recovered
        self._began_at = began_at
        self._tell = tell

    async def take(self, first_step: int, count: int, stop: asyncio.Event) -> Steps:
        """See ``InnerLoop``."""
        if self._recovered is None:
            return await self._loop.take(first_step, count, stop)
        steps = await self._loop.take(first_step, 1, stop)
        if steps.report.tokens:
            seconds = self._clock.monotonic() - self._began_at
            event = self._recovered(first_step, steps.report.loss, seconds)
            self._recovered = None
            self._journal.record(event)
            self._tell(event)
        return steps

    def over(self) -> None:
        """See ``InnerLoop``."""
        self._loop.over()
