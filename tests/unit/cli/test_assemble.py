"""One model out of a pipeline's stages: what is found on disk, and what is made of it."""

from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from decentral.cli.app import app
from decentral.cli.assemble import assemble, told
from decentral.cli.sources import parts_from_paths
from decentral.config.file import to_toml
from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig
from decentral.config.settings import load
from decentral.errors import ConfigError, ExitCode, MismatchError, UsageError
from decentral.run.folder import CONFIG, MODEL, WORKERS, stage_folder
from decentral.state.files import save_weights


def save(worker: Path, stage: int, value: float, round: int = 40, stages: int = 2, run: str = "demo-1") -> Path:
    """A worker's part of a toy of three layers, the head's being the first."""
    worker.mkdir(parents=True, exist_ok=True)
    hidden = torch.randn(6, generator=torch.Generator().manual_seed(0)).chunk(3)[stage]
    about = {"run": run, "round": str(round), "stage": str(stage), "stages": str(stages), "digest": "d"}
    folder = worker / stage_folder(stage)
    folder.mkdir()
    save_weights(folder / MODEL, {f"layers.{stage}.weight": hidden + value}, about)
    return folder / MODEL


def made(folder: Path, *parts: tuple[int, int, float, int]) -> Path:
    """A run of two stages: worker, stage, distance from the hidden vector, round."""
    swarm = configured()
    for worker, stage, value, round_ in parts:
        save(folder / WORKERS / str(worker), stage, value, round_)
        (folder / WORKERS / str(worker) / CONFIG).write_text(to_toml(swarm))
    (folder / CONFIG).write_text(to_toml(swarm))
    return folder


def configured(method: str = "diloco") -> SwarmConfig:
    toy = ["task.factory=decentral.workers.toy:build", "task.settings.numel=6", "task.settings.num_layers=3"]
    return resolve(load(None, [*toy, f"method.name={method}", "pipeline.stages=2"]).swarm)


def values(weights) -> list[float]:
    hidden = torch.randn(6, generator=torch.Generator().manual_seed(0)).chunk(3)
    return [round(float((weights[f"layers.{s}.weight"] - hidden[s]).mean()), 4) for s in range(3)]


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


WHOLE = [(0, 0, 1.0, 40), (1, 1, 2.0, 40), (2, 2, 3.0, 40)]


def test_of_each_stage_the_newest_is_taken(tmp_path):
    run = made(tmp_path, *WHOLE, (3, 1, 5.0, 41), (4, 2, 9.0, 7))
    parts, others, broken = parts_from_paths([str(run)])
    assert (len(parts), others, broken) == (5, [], [])
    whole, chosen = assemble(parts, "newest")
    assert values(whole.load()) == [1.0, 5.0, 3.0]
    assert (whole.run, whole.round) == ("demo-1", 40)
    assert told(chosen) == "2 stages and the head, of rounds 40 (the head), 41 (stage 1), 40 (stage 2)"


def test_or_the_average_of_those_that_are_not_far_behind(tmp_path):
    run = made(tmp_path, *WHOLE, (3, 1, 4.0, 40), (4, 2, 9.0, 7))
    whole, chosen = assemble(parts_from_paths([str(run)])[0], "average")
    assert values(whole.load()) == [1.0, 3.0, 3.0]
    assert told(chosen) == "2 stages and the head, averages of replicas"


def test_a_worker_may_have_held_several_stages_and_files_count_once(tmp_path):
    run = made(tmp_path, (0, 0, 1.0, 40), (0, 1, 2.0, 40), (1, 2, 3.0, 40))
    one = run / WORKERS / "0"
    parts, _, _ = parts_from_paths([str(run), str(one), str(one / stage_folder(1) / MODEL)])
    assert sorted(part.stage for part in parts) == [0, 1, 2]


def test_without_all_stages_there_is_no_model(tmp_path):
    parts, _, _ = parts_from_paths([str(made(tmp_path, (1, 1, 2.0, 40)))])
    with pytest.raises(ConfigError, match="nobody has saved the head nor stage 2"):
        assemble(parts, "newest")


def test_stages_of_different_runs_do_not_go_together_and_of_several_cuts_the_newest_counts(tmp_path):
    files = [str(save(tmp_path / "a", stage, 0.0)) for stage in range(3)]
    other = str(save(tmp_path / "b", 1, 0.0, run="demo-2"))
    with pytest.raises(MismatchError, match="different runs"):
        assemble(parts_from_paths([*files, other])[0], "newest")
    older, newer = (str(save(tmp_path / name, 1, 0.0, round_, stages=4)) for name, round_ in (("c", 39), ("d", 41)))
    assert assemble(parts_from_paths([*files, older])[0], "newest")[1].keys() == {0, 1, 2}
    with pytest.raises(ConfigError, match="nobody has saved the head nor stage 2 nor stage 3 nor stage 4"):
        assemble(parts_from_paths([*files, newer])[0], "newest")


@pytest.mark.parametrize("take", ["best", "0"])
def test_nobody_has_a_whole_model_to_be_taken(tmp_path, take):
    with pytest.raises(UsageError, match=f"Of a pipeline {take} cannot be taken") as caught:
        assemble(parts_from_paths([str(made(tmp_path, *WHOLE))])[0], take)
    assert "newest or average" in caught.value.hint


def test_a_file_that_is_cut_off_is_left_out_and_one_that_was_named_is_refused(tmp_path):
    run = made(tmp_path, *WHOLE)
    torn = run / WORKERS / "1" / stage_folder(2) / MODEL
    torn.parent.mkdir()
    torn.write_bytes(b"half")
    parts, others, broken = parts_from_paths([str(run)])
    assert (len(parts), others) == (3, [])
    assert str(torn) in broken[0]
    with pytest.raises(ConfigError, match="not a whole file of weights"):
        parts_from_paths([str(torn)])


def test_what_is_no_pipeline_is_left_to_others(tmp_path):
    model = tmp_path / MODEL
    save_weights(model, {"w": torch.ones(1)}, {"round": "3"})
    assert parts_from_paths([str(tmp_path), str(model)]) == ([], [str(tmp_path), str(model)], [])


def test_export_writes_one_model_with_its_loss(tmp_path):
    out = tmp_path / "out.safetensors"
    found = export(made(tmp_path / "run", (0, 0, 1.0, 40), (1, 1, 1.0, 40), (2, 2, 1.0, 40)), "--out", out)
    assert found.exit_code == 0, found.output
    assert "put together of 2 stages and the head\n" in found.stderr
    assert found.stdout.splitlines()[-1] == f"wrote {out}: replica stages, round 40, loss 0.500"
    assert values(load_file(out)) == [1.0, 1.0, 1.0]


def test_export_of_folders_and_files_of_several_machines(tmp_path):
    out = tmp_path / "out.safetensors"
    sources = [save(tmp_path / str(stage), stage, 2.0) for stage in range(3)]
    found = export(sources[0], sources[1].parent.parent, sources[2], "--out", out, "--no-loss")
    assert found.exit_code == 0, found.output
    assert values(load_file(out)) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--take", "best"], ExitCode.USAGE, "Of a pipeline best cannot be taken"),
        ([], ExitCode.CONFIG, "nobody has saved stage 2"),
    ],
)
def test_export_says_why_it_cannot(tmp_path, arguments, code, message):
    found = export(made(tmp_path, *WHOLE[:2]), "--out", tmp_path / "x", *arguments)
    assert found.exit_code == code
    assert message in found.stderr
    assert not (tmp_path / "x").exists()
