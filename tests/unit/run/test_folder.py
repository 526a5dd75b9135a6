"""The configuration in a worker's folder: read back as it was, and nothing of somebody else's lost."""

import logging
from pathlib import Path

import pytest

from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig, WorkerConfig, diff
from decentral.config.settings import load, with_values
from decentral.errors import ConfigError, ExitCode
from decentral.run.folder import CONFIG, clear_run, folders_of, has_run, run_of, save_config

TOY = "task.factory=decentral.workers.toy:build"
SWARM = resolve(load(None, [TOY, "method.name=streaming", "method.inner_steps=40"]).swarm)
OWN = WorkerConfig(port=31337, threads=2, data=("/mnt/a",), out="there")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_what_config_reads_back(tmp_path: Path) -> None:
    save_config(tmp_path, "demo-1", SWARM, OWN)
    read = load(tmp_path / CONFIG)
    assert read.swarm == resolve(read.swarm) == SWARM
    assert read.worker == OWN.model_copy(update={"out": ""})
    assert diff(read.explicit, SWARM) == []
    assert names(tmp_path) == [CONFIG]


def test_that_of_the_same_run_is_replaced(tmp_path: Path) -> None:
    save_config(tmp_path, "demo-1", SWARM, OWN)
    save_config(tmp_path, "demo-1", SWARM, WorkerConfig(port=4))
    assert load(tmp_path / CONFIG).worker.port == 4
    assert names(tmp_path) == [CONFIG]


@pytest.mark.parametrize("run", ["demo-2", None])
def test_that_of_another_run_is_kept_beside_it_unless_it_says_the_same(
    tmp_path: Path, run: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    save_config(tmp_path, "demo-1", SWARM, OWN)
    save_config(tmp_path, run, SWARM, OWN)
    assert names(tmp_path) == [CONFIG]
    for seed in (1, 2):
        with caplog.at_level(logging.WARNING):
            save_config(tmp_path, None if run is None else f"demo-{3 + seed}", seeded(seed), OWN)
    assert load(tmp_path / "config-before-1.toml").swarm == SWARM
    assert load(tmp_path / "config-before-2.toml").swarm == seeded(1)
    assert load(tmp_path / CONFIG).swarm == seeded(2)
    assert "is kept as config-before-2.toml" in caplog.messages[-1]


def seeded(seed: int) -> SwarmConfig:
    return with_values(SWARM, {"run.seed": seed})


def test_a_file_of_the_users_own_is_kept(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("# mine\n[run]\nseed = 3\n")
    save_config(tmp_path, "demo-1", SWARM, OWN)
    assert (tmp_path / "config-before-1.toml").read_text() == "# mine\n[run]\nseed = 3\n"
    assert load(tmp_path / CONFIG).swarm == SWARM


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot write .*config\.toml: .*No such file") as caught:
        save_config(tmp_path / "gone", "demo-1", SWARM, OWN)
    assert caught.value.exit_code == ExitCode.CONFIG
    (tmp_path / CONFIG).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="Cannot write"):
        save_config(tmp_path, "demo-1", SWARM, OWN)
    assert (tmp_path / CONFIG).read_bytes() == b"\xff\xfe"


class TestARun:
    def test_it_is_what_weights_and_checkpoints_make(self, tmp_path: Path) -> None:
        assert not has_run(tmp_path / "nothing")
        for number, path in enumerate(
            ["model.safetensors", "stage-2.safetensors", "checkpoints/step_000500/manifest.json"]
        ):
            folder = tmp_path / str(number)
            (folder / path).parent.mkdir(parents=True)
            (folder / "checkpoints").mkdir(exist_ok=True)
            for harmless in (CONFIG, "identity.key", "journal.jsonl", "run.json"):
                (folder / harmless).touch()
            if not path.startswith("checkpoints"):
                assert not has_run(folder)
            (folder / path).touch()
            assert has_run(folder)

    def test_clearing_leaves_identity_configuration_and_what_is_no_runs(self, tmp_path: Path) -> None:
        gone = ["model.safetensors", "stage-2.safetensors", "run.json", "journal.jsonl", "journal.1.jsonl"]
        for name in (*gone, CONFIG, "identity.key", "notes.txt"):
            (tmp_path / name).touch()
        (tmp_path / "checkpoints/step_000500").mkdir(parents=True)
        clear_run(tmp_path)
        assert names(tmp_path) == [CONFIG, "identity.key", "notes.txt"]
        assert not has_run(tmp_path)

    def test_a_link_to_checkpoints_elsewhere_is_cut_and_not_followed(self, tmp_path: Path) -> None:
        there = tmp_path / "there/step_000500"
        there.mkdir(parents=True)
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / "checkpoints").symlink_to(there.parent)
        clear_run(folder)
        assert there.exists()
        assert names(folder) == []

    def test_its_id_is_in_its_configuration(self, tmp_path: Path) -> None:
        assert run_of(tmp_path) == ""
        save_config(tmp_path, "demo-1", SWARM, OWN)
        assert run_of(tmp_path) == "demo-1"
        (tmp_path / CONFIG).write_bytes(b"\xff\xfe")
        assert run_of(tmp_path) == ""

    def test_the_workers_of_a_local_run_are_in_order(self, tmp_path: Path) -> None:
        for name in ("10", "2", "notes"):
            (tmp_path / "workers" / name).mkdir(parents=True)
        assert folders_of(tmp_path) == [tmp_path, tmp_path / "workers/2", tmp_path / "workers/10"]
