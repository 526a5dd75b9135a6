"""What a user and others are told of a disk that does not do its part."""

import logging
from pathlib import Path

import pytest

from decentral.errors import ExitCode
from decentral.run.disk import Disk

FULL = OSError(28, "No space left on device")


def fail(err: OSError) -> None:
    raise err


def test_a_full_disk_is_logged_once_and_the_error_says_what_it_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk, path = Disk(), tmp_path / "model.safetensors"
    assert (disk.problem, disk.note()) == (None, "")
    for _ in range(3):
        assert not disk.write(path, 5_000_000, lambda: fail(FULL))
    assert caplog.text.count("No space left on device") == 1
    assert disk.note() == "cannot save: No space left on device"
    error = disk.problem
    assert error is not None
    assert error.exit_code == ExitCode.DISK
    assert str(path) in error.message
    assert "It takes 5.0MB, and " in error.message
    assert "--out" in error.hint


def test_what_is_written_again_is_no_problem_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    one, other = tmp_path / "one", tmp_path / "other"
    disk.write(one, 1, lambda: fail(FULL))
    disk.write(other, 1, lambda: fail(OSError(30, "Read-only file system")))
    with caplog.at_level(logging.WARNING):
        assert disk.write(one, 1, lambda: "done") == "done"
    assert f"{one} is written again" in caplog.text
    assert disk.note() == "cannot save: Read-only file system"
    assert disk.problem is not None
    assert str(other) in disk.problem.message
    disk.write(other, 1, lambda: None)
    assert (disk.problem, disk.note()) == (None, "")


def test_a_folder_that_is_gone_has_nothing_free_and_a_note_fits_into_a_record(tmp_path: Path) -> None:
    disk = Disk()
    disk.write(tmp_path / "gone" / "model.safetensors", 1000, lambda: fail(OSError("x" * 500)))
    assert disk.problem is not None
    assert "nothing is free" in disk.problem.message
    assert len(disk.note()) == 160
