import asyncio
import threading

import pytest

from decentral.adapters.clock import RealClock


def test_a_disk_that_hangs_holds_nobody() -> None:
    async def main() -> None:
        clock, ended = RealClock(), threading.Event()
        writing = asyncio.create_task(clock.run_on_disk(lambda: ended.wait(60)))
        assert await clock.run(lambda: 1) == await clock.run_aside(lambda: 1) == 1
        ended.set()
        assert await writing
        clock.close()

    asyncio.run(main())


def test_work_aside_does_not_wait_for_other_work() -> None:
    async def main() -> None:
        clock, done_aside = RealClock(), threading.Event()
        training = asyncio.create_task(clock.run(lambda: done_aside.wait(60)))
        threads = {await clock.run_aside(threading.get_ident) for _ in range(3)}
        assert len(threads) == 1
        assert threading.get_ident() not in threads
        await clock.run_aside(done_aside.set)
        assert await training
        clock.close()
        with pytest.raises(RuntimeError, match="shutdown"):
            await clock.run_aside(threading.get_ident)

    asyncio.run(main())
