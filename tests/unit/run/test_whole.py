"""Folders of a run's stages from which it goes on as a whole model, and one of a whole model that goes on in stages."""

from pathlib import Path

import pytest

from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load
from decentral.engine.facts import Facts
from decentral.errors import ConfigError
from decentral.pipeline.compute import HeadCompute
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.stored import HEAD
from decentral.run.disk import Disk
from decentral.run.resuming import take_up
from decentral.run.store import StageFiles
from decentral.run.whole import put_together
from decentral.state.checkpoints.checkpoint import About
from decentral.state.checkpoints.folder import Checkpoints, newest
from tests.unit.engine.test_recut import CUTS, built, saved
from tests.unit.pipeline.models import NUM_BLOCKS, lm_blocks
from tests.unit.run.test_resuming import ID, filled

ABOUT = About(ID, "diloco", 10)
LM = (
    "task.factory=decentral.workers.lm:build",
    "task.settings.model.d_model=32",
    f"task.settings.model.num_layers={NUM_BLOCKS}",
    "task.settings.model.num_heads=2",
    "task.settings.model.context=16",
    "task.settings.batch_sequences=8",
    "pipeline.microbatches=4",
)


def store(folder: Path, num_stages: int = 2) -> StageFiles:
    return StageFiles(folder, ABOUT, CutInForce(tuple(CUTS[num_stages]), NUM_BLOCKS), 3, Disk(), lambda: 1.0)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A head and two stages; of step 30 one is missing."""
    parts = [HeadCompute(lm_blocks()), *built(lm_blocks(), CUTS[2])]
    folders = [tmp_path / str(number) for number in range(3)]
    for number, (folder, part) in enumerate(zip(folders, parts, strict=True)):
        folder.mkdir()
        filled(folder, *LM, "pipeline.stages=2", "pipeline.recovery=checkpoint", steps=())
        for step in (10, 20, 30)[: 3 if number else 2]:
            store(folder).save(number, saved(part, step=step))  # type: ignore[arg-type]
    return folders


def before() -> SwarmConfig:
    return load(None, [*LM, "pipeline.stages=2"]).swarm


def test_a_whole_is_made_of_the_newest_step_of_which_all_is_there(folders: list[Path]) -> None:
    put_together(folders, ID, before(), WorkerConfig(), "")
    _, state = newest(folders[0], ID)
    assert state.step == 20
    parts = [HeadCompute(lm_blocks()), *built(lm_blocks(), CUTS[2])]
    assert state.anchors.keys() == {name for part in parts for name in part.parameters()}
    assert Facts.of(state).turned


def test_who_has_not_all_of_it_is_told_what_is_missing_and_what_to_do(folders: list[Path]) -> None:
    with pytest.raises(
        ConfigError, match="demo-1 cannot go on: nobody here has a checkpoint of the head, block"
    ) as caught:
        take_up(folders[2], (), lambda swarm, _: swarm, None, ("pipeline.stages=0",))
    assert "copy the folders stage-*" in caught.value.hint
    for number in (0, 1):
        (folders[number] / f"stage-{number}").rename(folders[2] / f"stage-{number}")
    start = take_up(folders[2], (), lambda swarm, _: swarm, None, ("pipeline.stages=0",))
    assert start.swarm is not None
    assert (start.swarm.pipeline.stages, start.swarm.pipeline.microbatches) == (0, 8)
    assert start.resumption is not None
    assert start.resumption.step == 20


def test_stages_come_out_of_a_whole_of_one_worker(folders: list[Path], tmp_path: Path) -> None:
    """Workers of one anchor have each its own work: by the name, head and blocks come from the same of them."""
    put_together(folders, ID, before(), WorkerConfig(), "")
    _, state = newest(folders[0], ID)
    whole = tmp_path / "whole"
    Checkpoints(whole, ABOUT, 3, lambda: 1.0).save(state)
    found = store(whole)
    found.verify()
    head, rest = found.stored()
    assert (head.span, rest.span, head.digest) == (HEAD, (0, NUM_BLOCKS), rest.digest)
    assert head.digest != store(folders[0]).stored()[0].digest
    both = [found.load(one).anchors for one in (head, rest)]
    assert {name for each in both for name in each} == state.anchors.keys()
    assert both[0].keys() == HeadCompute(lm_blocks()).parameters().keys()
