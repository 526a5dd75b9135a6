"""A worker's files of stages: what counts as a checkpoint, and what becomes of a disk that does not do its part."""

import logging
from pathlib import Path

import pytest
import torch

from decentral.cli.sources import parts_from_paths
from decentral.engine.options import Outcome
from decentral.monitor.events import Event, Saved
from decentral.run.disk import Disk
from decentral.run.folder import stage_file
from decentral.run.store import StageFiles
from decentral.state.files import save_weights


class Told:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)


def store(folder: Path, run: str = "demo-1", num_stages: int = 4, disk: Disk | None = None) -> StageFiles:
    return StageFiles(folder, run, num_stages, Told(), disk or Disk())


def outcome(value: float, round: int = 7) -> Outcome:
    return Outcome(False, round, 10, "d", {"blocks.0.w": torch.full((2,), value)})


def test_a_stage_that_was_saved_can_be_loaded_also_by_the_next_process(tmp_path):
    first = store(tmp_path)
    assert first.stages() == frozenset()
    first.save(2, outcome(1.0))
    first.save(2, outcome(3.0, round=8))
    first.save(0, outcome(2.0))
    for found in (first, store(tmp_path)):
        assert found.stages() == {0, 2}
        assert found.load(2)["blocks.0.w"].tolist() == [3.0, 3.0]
    with pytest.raises(FileNotFoundError):
        first.load(1)


def test_the_journal_is_told(tmp_path):
    told = Told()
    StageFiles(tmp_path, "demo-1", 4, told, Disk()).save(2, outcome(1.0))
    assert told.events == [Saved(str(tmp_path / stage_file(2)), 7)]


def test_export_finds_what_it_needs_to_know(tmp_path):
    store(tmp_path).save(2, outcome(1.0))
    ((part,), _, _) = parts_from_paths([str(tmp_path)])
    assert (part.stage, part.num_stages, part.replica.run, part.replica.round) == (2, 4, "demo-1", 7)


def test_files_of_another_run_or_another_cut_do_not_count(tmp_path):
    store(tmp_path).save(2, outcome(1.0))
    assert store(tmp_path, run="demo-2").stages() == frozenset()
    assert store(tmp_path, num_stages=3).stages() == frozenset()


@pytest.mark.parametrize("broken", [b"", b"half", None])
def test_a_broken_file_is_no_checkpoint(tmp_path, broken):
    if broken is None:  # whole, but its values cannot be used
        about = {"run": "demo-1", "stages": "4", "round": "1"}
        save_weights(tmp_path / stage_file(1), {"w": torch.tensor([torch.nan])}, about)
        assert store(tmp_path).stages() == {1}
    else:
        (tmp_path / stage_file(1)).write_bytes(broken)
    found = store(tmp_path)
    with pytest.raises(OSError, match=r"not a file of tensors|not finite"):
        found.load(1)
    assert found.stages() == frozenset()


def test_a_disk_that_cannot_be_written_is_reported_and_the_last_file_kept(tmp_path, monkeypatch, caplog):
    disk = Disk()
    found = store(tmp_path, disk=disk)
    found.save(2, outcome(1.0))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("decentral.run.store.save_weights", full)
    with caplog.at_level(logging.ERROR):
        found.save(2, outcome(9.0))
        found.save(3, outcome(9.0))
    assert caplog.text.count("No space left on device") == 2
    assert disk.problem is not None
    assert found.stages() == {2}
    assert found.load(2)["blocks.0.w"].tolist() == [1.0, 1.0]
