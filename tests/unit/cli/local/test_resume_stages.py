"""From which step a local run of a pipeline goes on, all of its folders being at hand."""

from pathlib import Path

import pytest
import torch

from decentral.cli.local.resume import _with_stages
from decentral.config.pipeline import PipelineSection
from decentral.errors import ConfigError, UsageError
from decentral.pipeline.placement import CutInForce
from decentral.run.whole import start_from, stores_of
from tests.unit.run.test_store import ABOUT, state, store


def saved(folder: Path, stages: dict[int, tuple[int, ...]]) -> list[Path]:
    """Folders of workers, of which each holds a stage."""
    folders = [folder / str(stage) for stage in stages]
    for path, (stage, steps) in zip(folders, stages.items(), strict=True):
        for step in steps:
            name = f"blocks.{stage - 1}.w" if stage else "wte"
            store(path, num_stages=2).save(stage, state(1.0, step, anchors={name: torch.ones(2)}))
    return folders


def common_step(folders: list[Path], *spans: tuple[int, int]) -> int:
    cut = CutInForce(spans)
    return start_from(stores_of(folders, ABOUT, cut), ABOUT.run, cut, "").step


def test_from_the_newest_that_all_stages_have(tmp_path: Path) -> None:
    folders = saved(tmp_path, {0: (10, 20, 30), 1: (10, 20), 2: (20, 30)})
    assert common_step(folders, (0, 1), (1, 2)) == 20
    assert common_step(folders, (0, 2)) == 20


def test_the_stage_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="demo-1 cannot go on: nobody here has a checkpoint of stage 1 at step 30"):
        common_step(saved(tmp_path, {0: (10, 30), 2: (20, 30)}), (0, 1), (1, 2))


def test_processes_beyond_stages_and_replicas_are_spares() -> None:
    pipeline = PipelineSection(stages=2, replicas=2)
    assert [
        (_with_stages(pipeline, None, size).size, _with_stages(pipeline, None, size).num_spares) for size in (3, 8)
    ] == [
        (6, 0),
        (8, 2),
    ]
    with pytest.raises(UsageError, match="--workers and a pipeline exclude each other"):
        _with_stages(pipeline, 5, 6)
