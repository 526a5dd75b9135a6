"""Keeps the anchors on disk now and then, beside the training: whatever ends this process, little is lost."""

import asyncio
from collections.abc import Callable

from decentral.engine.background import Background
from decentral.engine.options import Outcome, Parts


class Saving:
    """One save at a time.

    Args:
        parts: what saves, and how often.
        background: where it goes on.
    """

    def __init__(self, parts: Parts, background: Background) -> None:
        self._clock = parts.clock
        self._save = parts.save
        self._every_s = parts.save_every_s
        self._background = background
        self._began_at = parts.clock.monotonic()
        self._saving: asyncio.Task[None] | None = None

    async def if_due(self, outcome: Callable[[], Outcome]) -> None:
        """Begin to save if it is time; waits only for a disk that has not ended the last save by then."""
        save, now = self._save, self._clock.monotonic()
        if save is None or now - self._began_at < self._every_s:
            return
        self._began_at = now
        if self._saving is not None:
            await self._saving
        found = outcome()
        # Anchors are immutable: nobody has to stand still for it.
        self._saving = self._background.begin(self._clock.run_aside(lambda: save(found)))

    async def at_once(self, outcome: Outcome) -> None:
        """Save, whatever was saved before; returns when it is done."""
        save = self._save
        if save is not None:
            await self._clock.run_aside(lambda: save(outcome))

    async def finish(self, within_s: float) -> None:
        """Wait for the save under way, if there is one."""
        if self._saving is not None:
            await asyncio.wait({self._saving}, timeout=within_s)
