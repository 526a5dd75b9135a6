"""Inner steps of a trainer without a training loop around it, as simulated workers have none. Knows nobody else."""

import asyncio

from decentral.ports.clock import Clock
from decentral.ports.trainer import Steps, Trainer


class LocalSteps:
    """Implements ``ports.trainer.InnerLoop``: all steps are taken at once, on the clock's thread.

    Args:
        trainer: takes them.
        clock: for the thread, and what they take.
    """

    def __init__(self, trainer: Trainer, clock: Clock) -> None:
        self._trainer = trainer
        self._clock = clock

    async def take(self, first_step: int, count: int, stop: asyncio.Event) -> Steps:
        """Take ``count`` inner steps; who asks for them chooses so few that a signal to stop can wait."""
        began = self._clock.monotonic()
        report = await self._clock.run(lambda: self._trainer.train_steps(first_step, count))
        return Steps(count, report, self._clock.monotonic() - began)

    def over(self) -> None:
        """See ``InnerLoop``: there is nothing to end."""
