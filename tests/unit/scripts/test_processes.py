"""Processes of a bench are heard, waited for and ended."""

from pathlib import Path

import pytest

from scripts.benches.lib.command import BenchError
from scripts.benches.lib.processes import Process, Swarm, python

SLEEPING = python("-c", "print('here', flush=True); import time; time.sleep(1000)")


def test_what_it_says_and_ends_with(tmp_path: Path) -> None:
    process = Process(tmp_path / "one", python("-c", "print('first'); print('{\"a\": 1}')"))
    assert process.result(30) == {"a": 1}
    assert process.lines() == ["first", '{"a": 1}']
    assert process.end() == 0


def test_a_failure_is_told_with_its_last_words(tmp_path: Path) -> None:
    process = Process(tmp_path / "two", python("-c", "import sys; sys.exit('no disk')"))
    with pytest.raises(BenchError, match=r"two ended with 1: no disk"):
        process.result(30)


def test_waiting_has_a_deadline_and_the_end_is_brought_about(tmp_path: Path) -> None:
    process = Process(tmp_path / "three", SLEEPING)
    try:
        assert process.wait_for(process.lines, "a line", 30) == ["here"]
        with pytest.raises(BenchError, match="not within 0 s: rain"):
            process.wait_for(lambda: False, "rain", 0)
    finally:
        assert process.end() == -9


def test_a_swarm_says_what_is_missing_and_leaves_nothing(tmp_path: Path) -> None:
    with Swarm(tmp_path, []) as swarm:
        worker = swarm.add()
        process = worker.process = Process(worker.folder, [*SLEEPING, str(worker.folder / "identity.key")])
        assert swarm.living == [worker]
        with pytest.raises(BenchError, match="not within 0 s: rain"):
            swarm.until(lambda: False, "rain", 0)
    assert swarm.living == []
    assert process.popen.poll() is not None


def test_a_worker_that_ended_is_noticed(tmp_path: Path) -> None:
    with Swarm(tmp_path, []) as swarm:
        worker = swarm.add()
        worker.process = Process(worker.folder, python("-c", ""))
        with pytest.raises(BenchError, match="worker0 ended with 0"):
            swarm.until(lambda: False, "rain", 60)
