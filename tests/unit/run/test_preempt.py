"""How a worker notices that its machine may be taken away, and what it does then."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from decentral.run import preempt
from decentral.run.preempt import save_at_once, watching
from decentral.run.stop import Stop


def test_a_notice_counts_when_it_appears_and_when_it_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preempt, "_LOOK_S", 0.01)
    notice, told = tmp_path / "notice", threading.Semaphore(0)
    with watching(str(notice), told.release):
        notice.touch()
        assert told.acquire(timeout=60)
        os.utime(notice, ns=(1, 1))
        assert told.acquire(timeout=60)


def test_a_notice_from_before_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine that comes back with its disk would leave at once, for ever."""
    monkeypatch.setattr(preempt, "_LOOK_S", 0.01)
    notice, told, looks = tmp_path / "notice", threading.Semaphore(0), threading.Semaphore(0)
    notice.touch()
    written_at = preempt._written_at
    monkeypatch.setattr(preempt, "_written_at", lambda path: (looks.release(), written_at(path))[1])
    with watching(str(notice), told.release):
        for _ in range(3):
            assert looks.acquire(timeout=60)
        assert not told.acquire(blocking=False)
        os.utime(notice, ns=(1, 1))
        assert told.acquire(timeout=60)


def saver(done: list[str], hangs: asyncio.Event | None = None) -> Callable[[], Awaitable[None]]:
    async def save() -> None:
        if hangs is not None:
            await hangs.wait()
        done.append("saved")

    return save


def test_what_is_saved_at_once_is_saved_before_the_worker_leaves() -> None:
    done: list[str] = []
    asyncio.run(save_at_once(saver(done), None))
    assert done == ["saved"]
    asyncio.run(save_at_once(saver(done), lambda: done.append("left")))
    assert done == ["saved", "saved", "left"]


def test_a_trainer_that_hangs_does_not_keep_a_worker_from_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preempt, "_SAVE_S", 0.01)
    done: list[str] = []
    hangs = asyncio.Event()

    def leave() -> None:
        done.append("left")
        hangs.set()

    asyncio.run(save_at_once(saver(done, hangs), leave))
    assert done == ["left", "saved"]


def test_a_notice_before_there_is_anything_to_save_is_kept_till_then() -> None:
    done: list[str] = []
    stop = Stop()
    stop.preempt()
    stop.then(lambda: done.append("stop"), preempted=lambda: done.append("save"))
    assert done == ["save"]
    stop.preempt()
    stop()
    assert done == ["save", "save", "stop"]
