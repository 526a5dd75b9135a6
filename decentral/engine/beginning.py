"""Waiting for others where a run begins."""

import asyncio
from collections.abc import Callable

from decentral.engine.membership import Membership
from decentral.engine.options import RunOptions
from decentral.ports.clock import Clock

#: The first round waits for so long at most for the workers that the run asks for.
_WAIT_S = 120.0


async def wait_for_workers(
    options: RunOptions, membership: Membership, clock: Clock, explain: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Before the first step of a run: wait for the workers it asks for, else a founder trains alone meanwhile."""
    until = clock.monotonic() + _WAIT_S
    while clock.monotonic() < until and not stop.is_set():
        missing = options.min_workers - len(membership.roster.active(clock.monotonic()))
        explain(f"waits for {missing} more workers" if missing > 0 else "")
        if missing <= 0:
            return
        await asyncio.sleep(options.timing.beat_s / 4)
