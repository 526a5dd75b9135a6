"""A terminal that goes away under ``decentral local``: its workers leave in order, and what they learnt is kept."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from decentral.monitor.journal import JournalReader
from tests.process.command import DEADLINE_S, ENTRY, ROOT, founding, processes_of, wait_for

#: Three processes start at a time, and import torch.
PATIENCE_S = 3 * DEADLINE_S


def events(folder: Path, worker: int, name: str) -> list[object]:
    reader = JournalReader(folder / "workers" / str(worker) / "journal.jsonl")
    return [event for event in reader.read() if event["event"] == name]


@pytest.mark.slow
@pytest.mark.timeout(450)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("shape", [("--workers", "2"), ("--stages", "1")])
def test_a_local_run_whose_terminal_is_gone_ends_in_order(tmp_path: Path, shape: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    if shape[0] == "--workers":
        words = founding(tmp_path / "hurry", step_s=0.1, rounds=400)[1:]
    else:
        sizes = ("d_model=16", "num_layers=2", "num_heads=2")
        words = tuple(word for size in sizes for word in ("--set", f"task.settings.model.{size}"))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*ENTRY, "local", *shape, *words, "--threads", "1", "--set", "run.rounds=400", "--out", str(folder)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=_with_a_terminal,
    ) as run:
        os.close(theirs)
        try:
            wait_for(lambda: _read(ours) and events(folder, 1, "stretch_done"), "inner steps of both", PATIENCE_S)
            os.close(ours)
            assert run.wait(PATIENCE_S) == 0
        finally:
            run.kill()
    for worker in (0, 1):
        assert events(folder, worker, "stopped")[-1]["reason"] == "asked to stop"
    assert (folder / "model.safetensors").exists()
    assert not processes_of(tmp_path)


def _with_a_terminal() -> None:
    """In the child: a session with the terminal it was given, which hears of its end whatever its parent ignores."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first one opened is the session's


def _read(terminal: int) -> bool:
    """Read what is shown, else the terminal is full one day."""
    os.set_blocking(terminal, False)
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass
    return True
