"""What a worker writes to its folder, and what it says when the disk does not do its part."""

import dataclasses
import logging
import math
from pathlib import Path

import pytest
import torch

from decentral.run.disk import Disk
from decentral.run.saving import estimated_bytes, last_state, saver, warn_if_short
from decentral.state.checkpoints.checkpoint import About
from decentral.state.checkpoints.folder import newest
from decentral.state.checkpoints.manifest import CHECKPOINTS, MODEL
from tests.unit.state.test_checkpoints import state

ABOUT = About("demo-1", "diloco", 2000)


def wall() -> float:
    return 1000.0


def test_a_state_is_a_checkpoint_and_its_size_is_told(tmp_path: Path) -> None:
    disk = Disk()
    save = saver(tmp_path, ABOUT, 2, wall, disk)
    for step in (1, 2, 3):
        written = save(state(step))
        assert written is not None
        folder = tmp_path / CHECKPOINTS / f"step_00000{step}"
        assert written.path == str(folder)
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
        assert written.nbytes == sum(path.stat().st_size for path in files)
    assert len(list((tmp_path / CHECKPOINTS).glob("step_*"))) == 2
    assert disk.problem is None


def test_a_full_disk_is_told_once_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    save = saver(tmp_path, ABOUT, 3, wall, disk)
    save(state(1))
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("decentral.state.checkpoints.folder.write", full)
        assert [save(state(step)) for step in (2, 3)] == [None, None]
    assert caplog.text.count("No space left on device") == 1
    assert disk.problem is not None
    assert [path.name for path in (tmp_path / CHECKPOINTS).glob("*step*")] == ["step_000001"]
    assert newest(tmp_path, "demo-1")[1].step == 1
    assert save(state(4)) is not None
    assert disk.problem is None


def test_a_state_that_is_not_finite_is_no_fault_of_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    save = saver(tmp_path, ABOUT, 3, wall, disk)
    assert save(dataclasses.replace(state(7), anchors={"a": torch.tensor([math.nan])})) is None
    assert "no checkpoint at step 7: a has values that are not finite" in caplog.text
    assert disk.problem is None


def test_what_is_needed_is_estimated_and_a_small_disk_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert estimated_bytes(1_000_000, num_buffers=1, keep=3) == 5 * 7 * 4_000_000
    taken = saver(tmp_path, ABOUT, 3, wall, Disk())(state(1))
    assert taken is not None

    class Usage:
        free = 5_000_000

    monkeypatch.setattr("decentral.run.saving.shutil.disk_usage", lambda _: Usage)
    warn_if_short(tmp_path, 5_000_000 + taken.nbytes)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        warn_if_short(tmp_path, 12_000_000)
    assert "will take about 12.0MB, and 5.0MB is free: make room, or keep fewer with --keep" in caplog.text


def test_a_worker_that_comes_back_has_its_last_state_if_there_is_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert last_state(tmp_path, "demo-1") is None
    assert caplog.text == ""
    written = saver(tmp_path, ABOUT, 3, wall, Disk())(state(7))
    found = last_state(tmp_path, "demo-1")
    assert found is not None
    assert found.step == 7
    assert last_state(tmp_path, "demo-2") is None
    assert written is not None
    (Path(written.path) / MODEL).unlink()
    assert last_state(tmp_path, "demo-1") is None
    assert "model.safetensors is missing). This worker comes back without it." in caplog.text
