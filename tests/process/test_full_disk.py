"""A disk that is full, to real processes: a file system of one megabyte in a user's namespace of its own."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from decentral.errors import ExitCode
from tests.process.command import DEADLINE_S, ENTRY, Process, founding, processes_of, status_of, wait_for

#: Mounts it on the first argument and becomes the others.
_TINY = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"')


def _has_namespaces(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_TINY, str(folder), "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[str, ...]:
    """What starts ``decentral`` where ``tmp_path / "disk"`` is tiny."""
    (tmp_path / "disk").mkdir()
    if sys.platform != "linux" or not _has_namespaces(tmp_path / "disk"):
        pytest.skip("needs user namespaces")
    return *_TINY, str(tmp_path / "disk"), *ENTRY


def words(tmp_path: Path, numel: int, rounds: int) -> tuple[str, ...]:
    """A run of the toy task whose weights take four bytes a value."""
    return *founding(tmp_path / "hurry", step_s=0.02, rounds=rounds)[1:], "--set", f"task.settings.numel={numel}"


def degraded(address: str) -> bool:
    """Whether the worker is shown as one that takes part and cannot save."""
    code, report = status_of(address)
    notes = [row["note"] for row in report["workers"] if row["contributes"]] if report else []
    return code == ExitCode.DEGRADED and any(re.search("cannot save: .*No space left", note) for note in notes)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_worker_that_cannot_save_trains_on_and_ends_with_an_error(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    here = ("--host", "127.0.0.1", "--threads", "1", "--out", str(tmp_path / "disk" / "run"))
    often = ("--checkpoint-every", "8steps")
    worker = Process(tmp_path / "said", "worker", "--new", *words(tmp_path, 400_000, 4000), *often, *here, entry=tiny)
    try:
        wait_for(lambda: " r5 " in worker.stderr or worker.popen.poll() is not None, "some rounds")
        wait_for(lambda: degraded(worker.stdout.split()[-1]), "a status that says so")
        worker.signal(signal.SIGTERM)
        assert worker.code() == ExitCode.DISK, worker.stderr
    finally:
        worker.end()
    (error,) = [line for line in worker.stderr.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "disk" / "run" / "checkpoints") in error
    assert re.search(r"It takes [\d.]+MB, and [\d.]+[kM]B is free", error), error
    assert worker.stderr.count("Training goes on") == 1
    assert not processes_of(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("shape", ["workers", "pipeline"])
def test_a_local_run_that_cannot_save_is_no_success(tmp_path: Path, tiny: tuple[str, ...], shape: str) -> None:
    if shape == "workers":
        command = ("--workers", "2", *words(tmp_path, 400_000, 3))
    else:  # the head fits, its stage does not
        sizes = {"model.d_model": 128, "model.num_layers": 2, "model.num_heads": 2, "model.context": 16}
        settings = {f"task.settings.{key}": value for key, value in sizes.items()}
        settings |= {"run.rounds": 1, "method.inner_steps": 2, "pipeline.microbatches": 2}
        command = ("--stages", "1", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")))
    run = Process(tmp_path / "said", "local", *command, "--out", str(tmp_path / "disk" / "run"), entry=tiny)
    try:
        wait_for(lambda: run.popen.poll() is not None, "the end of the run", 3 * DEADLINE_S)
        assert run.code() == ExitCode.DISK, run.stderr
    finally:
        run.end()
    assert "Cannot write" in run.stderr
    assert not processes_of(tmp_path)
