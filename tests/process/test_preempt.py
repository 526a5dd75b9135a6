"""Machines that may be taken away, with real processes: a notice as a file, and a signal to a local run."""

import signal
from pathlib import Path

import pytest

from tests.process.command import Process, WorkerProcess, founding, processes_of, wait_for
from tests.process.test_hang_up import PATIENCE_S, events


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_leaves_at_a_notice_if_it_was_told_to(tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    here = ("--on-preempt", "leave", "--set", f"worker.preempt_notice={notice}")
    worker = WorkerProcess(tmp_path / "0", *founding(tmp_path / "hurry", step_s=0.05, rounds=4000), *here)
    try:
        wait_for(lambda: worker.events("round_mixed"), "a round")
        notice.touch()
        assert worker.code() == 0
    finally:
        worker.end()
    assert len(worker.events("saved")) == 2
    assert worker.events("stopped")[-1]["reason"] == "asked to stop"


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_a_local_run_passes_the_notice_on(tmp_path: Path) -> None:
    """Not to workers that do not listen yet, which it would end."""
    folder = tmp_path / "run"
    words = founding(tmp_path / "hurry", step_s=0.1, rounds=40)[1:]
    run = Process(tmp_path / "said", "local", "--workers", "2", *words, "--out", str(folder))
    try:
        wait_for(lambda: (folder / "workers" / "0" / "log.txt").exists(), "the first worker")
        run.signal(signal.SIGUSR1)
        wait_for(lambda: all(events(folder, worker, "round_mixed") for worker in (0, 1)), "a round of both", PATIENCE_S)
        before = [len(events(folder, worker, "saved")) for worker in (0, 1)]
        run.signal(signal.SIGUSR1)
        wait_for(
            lambda: all(len(events(folder, worker, "saved")) > before[worker] for worker in (0, 1)), "both to save"
        )
        (tmp_path / "hurry").touch()
        assert run.code() == 0, run.stderr
    finally:
        run.end()
    assert not processes_of(tmp_path)
