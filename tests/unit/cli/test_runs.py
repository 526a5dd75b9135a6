"""``decentral runs``, and ``export`` of the checkpoints that it lists."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from decentral.adapters.identity import IdentityFile
from decentral.cli.app import app
from decentral.errors import ExitCode
from decentral.run.folder import IDENTITY
from decentral.state.checkpoints.manifest import BEST, CHECKPOINTS, LATEST, MANIFEST, MODEL, TRAINER
from decentral.state.files import save_weights
from tests.unit.state.test_checkpoints import keeper, state


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def rows(found: Result) -> list[list[str]]:
    return [line.split() for line in found.stdout.splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Many runs: a worker's, a local one of two workers, one that is finished, one without a checkpoint, and no run."""
    runs = tmp_path / "runs"
    for name, steps in (("a", (100, 200)), ("local/workers/0", (100,)), ("local/workers/1", (200,))):
        (runs / name).mkdir(parents=True)
        for step in steps:
            keeper(runs / name).save(state(step, float(step), val_loss=step / 100))
    (runs / "my finished").mkdir()
    keeper(runs / "my finished").save(state(7, round=2000))
    for name in ("old", "something else"):
        (runs / name).mkdir()
    save_weights(runs / "old" / MODEL, {"a": torch.ones(1)}, {})
    return runs


def test_the_runs_in_a_folder_and_how_to_go_on(folder: Path) -> None:
    found = ran("runs", folder)
    assert found.exit_code == ExitCode.OK, found.output
    text = "\n".join(" ".join(row) for row in rows(found))
    assert f"{folder}/a demo-1 diloco\ncheckpoint step round val loss size age\n" in text
    assert "step_000200 200 2 of 2000 2.000" in text
    assert "latest\nstep_000100 100 1 of 2000 1.000" in text
    assert f"best\nresume: decentral worker --resume {folder}/a\n" in text
    assert f"{folder}/local/workers/1 demo-1" in text
    assert text.count("--resume") == 2
    assert f"resume: decentral local --resume {folder}/local\n" in text
    assert f"{folder}/my finished demo-1 diloco\n" in text
    assert "finished: nothing is left to resume" in text
    assert f"{folder}/old of an unknown run no checkpoint, weights alone\nnothing to resume from" in text
    assert "something else" not in text


def test_a_folder_with_spaces_can_be_pasted(folder: Path) -> None:
    with_space = folder / "a b"
    (folder / "a").rename(with_space)
    assert f"decentral worker --resume '{with_space}'" in ran("runs", with_space).stdout


def test_the_same_as_json(folder: Path) -> None:
    found = json.loads(ran("runs", folder, "--format", "json").stdout)
    assert (found["schema"], len(found["runs"])) == (1, 4)
    worker, local = found["runs"][:2]
    assert (worker["local"], worker["resume"]) == (False, f"decentral worker --resume {folder}/a")
    assert (local["local"], len(local["workers"])) == (True, 2)
    newest = worker["workers"][0]["checkpoints"][0]
    assert newest["size_bytes"] > 1000
    assert {key: newest[key] for key in newest if key != "size_bytes"} == {
        "name": "step_000200",
        "run": "demo-1",
        "step": 200,
        "round": 2,
        "rounds": 2000,
        "val_loss": 2.0,
        "time": 1000.0,
        "latest": True,
        "best": False,
        "problem": "",
    }


def test_damage_is_named_as_deep_as_one_looks(folder: Path) -> None:
    newest = folder / "a" / CHECKPOINTS / "step_000200"
    data = bytearray((newest / TRAINER).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / TRAINER).write_bytes(data)
    assert ran("runs", folder / "a").exit_code == ExitCode.OK
    found = ran("runs", folder / "a", "--verify")
    assert found.exit_code == ExitCode.DEGRADED
    assert f"cannot be used: {TRAINER} is damaged" in found.stdout
    (newest / TRAINER).write_bytes(data[:-1])
    assert ran("runs", folder / "a").exit_code == ExitCode.DEGRADED
    (newest.with_name("step_000100") / MANIFEST).write_text('{"\x1b[31m": 1}')
    found = ran("runs", folder / "a")
    assert "nothing to resume from" in found.stdout
    assert "\x1b" not in found.stdout


def test_nothing_there(tmp_path: Path) -> None:
    found = ran("runs", tmp_path)
    assert (found.exit_code, found.stdout, found.stderr) == (ExitCode.EMPTY, "", f"no run in {tmp_path}\n")
    assert json.loads(ran("runs", tmp_path, "--format", "json").stdout) == {"schema": 1, "runs": []}
    assert ran("runs", tmp_path / "gone").exit_code == ExitCode.USAGE


@pytest.mark.parametrize(("source", "value"), [("latest", 200.0), ("best", 100.0), ("step_000100", 100.0)])
def test_a_checkpoint_is_exported(folder: Path, tmp_path: Path, source: str, value: float) -> None:
    out = tmp_path / "out.safetensors"
    found = ran("export", folder / "a" / CHECKPOINTS / source, "--no-loss", "--out", out)
    assert found.exit_code == ExitCode.OK, found.output
    assert load_file(out)["b.c"].tolist() == [-value]


def test_a_checkpoint_that_is_damaged_or_missing_is_not_exported(folder: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "out.safetensors", folder / "a" / CHECKPOINTS
    best = kept / "step_000100"
    (best / TRAINER).unlink()
    assert ran("export", kept / "best", "--no-loss", "--out", out).exit_code == ExitCode.OK  # its weights are whole
    data = bytearray((best / MODEL).read_bytes())
    data[-1] ^= 1
    (best / MODEL).write_bytes(data)
    found = ran("export", kept / "best", "--no-loss", "--out", out)
    assert found.exit_code == ExitCode.CONFIG
    assert "model.safetensors is damaged: its digest is not the manifest's" in found.stderr
    (kept / BEST).unlink()
    found = ran("export", kept / "best", "--no-loss", "--out", out)
    assert (found.exit_code, "There is no best checkpoint in" in found.stderr) == (ExitCode.CONFIG, True)


def test_a_run_that_went_wrong_goes_back_to_its_best_checkpoint(folder: Path) -> None:
    local = folder / "local"
    keeper(local / "workers/1").save(state(300, 3.0, val_loss=9.0))
    keeper(local / "workers/0").save(state(300, 3.0))
    found = ran("rewind", local)
    assert found.exit_code == ExitCode.OK, found.output
    # The lowest loss is that of worker 0 at step 100; worker 1 had nothing then.
    assert "back to step 100\n" in found.stdout
    assert f"{local}/workers/0: goes on from step 100; step_000300 now in {local}/workers/0/set-aside\n" in found.stdout
    assert f"{local}/workers/1: nothing is left; step_000300, step_000200 now" in found.stdout
    assert f"resume: decentral local --resume {local}\n" in found.stdout
    assert (local / "workers/0" / CHECKPOINTS / LATEST).read_text() == "step_000100\n"
    assert load_file(local / "workers/0" / MODEL)["a"].flatten()[0] == 100.0
    assert (local / "workers/0/set-aside/step_000300" / MANIFEST).exists()
    assert not (local / "workers/1" / MODEL).exists()


def test_a_run_goes_back_to_a_step_as_often_as_one_likes(folder: Path) -> None:
    for again in ("", "-again-1"):
        keeper(folder / "a").save(state(200, 2.0, val_loss=0.5))
        found = ran("rewind", folder / "a", "--to", 150)
        assert found.exit_code == ExitCode.OK, found.output
        assert f"{folder}/a: goes on from step 100; step_000200" in found.stdout
        assert (folder / "a/set-aside" / f"step_000200{again}" / MANIFEST).exists()
        keeper(folder / "a").save(state(200, 2.0))
        best = (folder / "a" / CHECKPOINTS / BEST).exists()
        assert not best, "one of the same step whose loss nobody knows is not the best"
    assert ran("rewind", folder / "a", "--to", 150).exit_code == ExitCode.OK, "it is there already"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a", "--to", "50"), "no checkpoint at step 50"),
        (("a", "--to", "-5"), "neither best nor a step"),
        (("my finished",), "has a validation loss"),
        (("something else",), "no run"),
        (("none",), "no run"),
        ((".",), "4 runs"),
    ],
)
def test_what_cannot_be_taken_back_is_left_as_it_is(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    before = sorted(path for path in folder.rglob("*"))
    name, *rest = arguments
    found = ran("rewind", folder / name, *rest)
    assert found.exit_code != ExitCode.OK
    assert says in found.stderr
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_run_at_work_is_not_taken_back(folder: Path) -> None:
    holder = IdentityFile(folder / "a" / IDENTITY)
    try:
        found = ran("rewind", folder / "a", "--to", "100")
    finally:
        holder.close()
    assert "may be at work" in found.stderr
    assert (folder / "a" / CHECKPOINTS / "step_000200").exists()
