"""A worker's checkpoints of stages: what counts as one, and what becomes of a disk that does not do its part."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decentral.cli.sources import parts_from_paths
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import HEAD, Stored
from decentral.run.disk import Disk
from decentral.run.folder import MODEL, stage_folder
from decentral.run.store import StageFiles
from decentral.state.checkpoints.checkpoint import About
from decentral.state.worker_state import WorkerState

SPAN = 0, 1
ABOUT = About("demo-1", "diloco", 40)


def store(
    folder: Path, run: str = "demo-1", num_stages: int = 4, disk: Disk | None = None, keep: int = 1
) -> StageFiles:
    return StageFiles(
        folder,
        replace(ABOUT, run=run),
        CutInForce(tuple((k, k + 1) for k in range(num_stages))),
        keep,
        disk or Disk(),
        lambda: 1.0,
    )


def state(value: float, step: int = 70, **changes: object) -> WorkerState:
    anchors = {"blocks.0.w": torch.full((2,), value)}
    made = WorkerState(
        step=step,
        round=step // 10,
        tokens=10,
        digest=f"d{step}",
        closed=False,
        anchors=anchors,
        outer={},
        own={},
        facts={"made": {}},
        trainer={"state": {"position": {"slot": 1, "batch": step, "committed": {0: step - 1}}}},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_stage_that_was_saved_can_be_loaded_also_by_the_next_process(tmp_path):
    first = store(tmp_path)
    assert first.stored() == []
    assert first.save(2, state(1.0)).path == str(tmp_path / "stage-2" / "checkpoints" / "step_000070")
    first.save(2, state(3.0, 80))
    first.save(0, state(2.0, anchors={"wte": torch.ones(2)}), own=False)
    for found in (first, store(tmp_path)):
        expected = {Stored(*HEAD, 70, "d70", False), Stored(*SPAN, 80, "d80", True), Stored(*SPAN, 70, "d70", True)}
        assert set(found.stored()) == expected
        loaded = found.load(Stored(*SPAN, 70, "d70", True))
        assert loaded.anchors["blocks.0.w"].tolist() == [1.0, 1.0]
        assert loaded.trainer == state(1.0).trainer
    with pytest.raises(FileNotFoundError, match="the blocks 1 to 2 at step 70"):
        first.load(Stored(1, 2, 70, "d70", True))


def test_three_are_kept_so_that_one_of_them_is_common_to_all_stages(tmp_path):
    found = store(tmp_path, keep=1)
    for step in (10, 20, 30, 40):
        found.save(1, state(1.0, step))
    assert [one.step for one in found.stored()] == [40, 30, 20]


def test_what_lies_ahead_of_the_step_that_a_run_went_on_from_does_not_count(tmp_path):
    found = store(tmp_path)
    for step in (10, 40, 20):
        found.save(1, state(1.0, step))
    assert [one.step for one in found.stored()] == [20, 10]
    assert [one.step for one in store(tmp_path).stored()] == [20, 10]


def test_export_finds_what_it_needs_to_know(tmp_path):
    store(tmp_path).save(2, state(1.0))
    ((part,), _, _) = parts_from_paths([str(tmp_path)])
    assert (part.stage, part.num_stages, part.replica.run, part.replica.round) == (2, 4, "demo-1", 7)


def test_checkpoints_of_another_run_do_not_count_and_those_of_another_cut_do_as_what_they_have(tmp_path):
    anchors = {f"blocks.{number}.w": torch.ones(2) for number in (3, 4, 5)}
    store(tmp_path).save(2, state(1.0, anchors=anchors))
    store(tmp_path, num_stages=8).save(7, state(1.0, 80, anchors={"blocks.3.w": torch.ones(2)}))
    assert store(tmp_path, run="demo-2").stored() == []
    found = store(tmp_path, num_stages=1)
    assert found.stored() == [Stored(3, 6, 70, "d70", True), Stored(3, 4, 80, "d80", True)]
    assert set(found.load(found.stored()[0]).anchors) == set(anchors)


@pytest.mark.parametrize("read", ["load", "verify"])
def test_a_damaged_one_is_not_offered_again_and_the_one_before_it_is_taken(tmp_path, read):
    store(tmp_path).save(1, state(1.0, 70))
    store(tmp_path).save(1, state(2.0, 80))
    torn = tmp_path / stage_folder(1) / "checkpoints" / "step_000080" / MODEL
    torn.write_bytes(torn.read_bytes()[:-4] + b"\0\0\0\1")
    found = store(tmp_path)
    assert [one.step for one in found.stored()] == [80, 70]
    if read == "load":
        with pytest.raises(OSError, match=f"{MODEL} is damaged"):
            found.load(Stored(*SPAN, 80, "d80", True))
    else:
        found.verify()
    assert [one.step for one in found.stored()] == [70]


def test_a_disk_that_cannot_be_written_is_reported_and_the_last_checkpoint_kept(tmp_path, monkeypatch, caplog):
    disk = Disk()
    found = store(tmp_path, disk=disk)
    found.save(2, state(1.0))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("decentral.state.checkpoints.checkpoint.save_weights", full)
    with caplog.at_level(logging.ERROR):
        assert found.save(2, state(9.0, 80)) is None
        assert found.save(3, state(9.0, 80)) is None
    assert caplog.text.count("No space left on device") == 2
    assert disk.problem is not None
    (one,) = found.stored()
    assert one == Stored(*SPAN, 70, "d70", True)
    assert found.load(one).anchors["blocks.0.w"].tolist() == [1.0, 1.0]


def test_values_that_are_not_finite_are_not_kept(tmp_path):
    found = store(tmp_path)
    found.save(2, state(1.0))
    assert found.save(2, state(float("nan"), 80)) is None
    assert [one.step for one in found.stored()] == [70]
