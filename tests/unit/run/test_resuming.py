"""What a folder gives to go on from, and what is wrong with one that gives nothing."""

from pathlib import Path
from typing import Any

import pytest

from decentral.cli.worker import settled
from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load
from decentral.errors import ConfigError, DecentralError, ExitCode, UsageError
from decentral.run.book import Book, read_book
from decentral.run.connection import Start
from decentral.run.folder import CONFIG, RUN, save_config
from decentral.run.resuming import take_up
from tests.unit.run.test_book import at
from tests.unit.state.test_checkpoints import RUN as ID
from tests.unit.state.test_checkpoints import keeper, state

TOY = ["task.factory=decentral.workers.toy:build", "method.name=diloco", "method.inner_steps=100", "run.rounds=10"]


def filled(folder: Path, *settings: str, steps: tuple[int, ...] = (500,), stage: str = "") -> Path:
    """A folder as a worker leaves it."""
    swarm = resolve(load(None, [*TOY, *settings]).swarm)
    save_config(folder, ID, swarm, WorkerConfig(threads=3, data=("/mnt/a",), out="elsewhere", stage=stage))
    book = Book(ID, 31337)
    book.heard([at(1)])
    book.save(folder)
    for step in steps:
        keeper(folder).save(state(step))
    return folder


def taken(folder: Path, *assignments: str, **flags: Any) -> Start:
    return take_up(folder, (), lambda swarm, _: resolve(swarm), None, assignments, flags)


def test_it_is_the_folders_run_with_the_folders_settings_and_its_newest_state(tmp_path: Path) -> None:
    start = taken(filled(tmp_path, steps=(300, 500, 400)), "worker.threads=2")
    assert start.swarm == load(tmp_path / CONFIG).swarm
    assert start.own == WorkerConfig(threads=2, data=("/mnt/a",), out=str(tmp_path))
    assert start.explicit == {}
    found = start.resumption
    assert found is not None
    assert (found.book, found.step, found.changes, found.any_port) == (read_book(tmp_path), 400, (), True)


def test_a_port_that_is_asked_for_now_is_that_one_or_none(tmp_path: Path) -> None:
    filled(tmp_path)
    for start in (taken(tmp_path, "worker.port=7"), taken(tmp_path, **{"worker.port": 7})):
        assert start.resumption is not None
        assert (start.own.port, start.resumption.any_port) == (7, False)


def test_a_task_that_only_the_founder_named_is_not_imported(tmp_path: Path) -> None:
    """A worker that joined with a task of its own goes on with that, as it joined."""
    theirs = load(None, [*TOY, "task.factory=nobody_has:this"]).swarm
    found = settled(theirs, WorkerConfig(task="decentral.workers.toy:build"))
    assert found.task == theirs.task
    with pytest.raises(ConfigError, match=r"nobody_has:this'\. It is not imported"):
        settled(theirs, WorkerConfig())


class TestReshape:
    def change(self, folder: Path, *assignments: str) -> tuple[SwarmConfig, set[str]]:
        start = taken(folder, *assignments)
        assert start.resumption is not None
        assert start.swarm is not None
        return start.swarm, set(start.resumption.changes)

    def test_what_is_stated_is_told_and_so_is_what_goes_with_it(self, tmp_path: Path) -> None:
        swarm, told = self.change(filled(tmp_path), "method.codec=int4-b128")
        assert told == {
            'method.codec: "int4-b128", was "int8-b128"',
            f'method.mean_codec: "{swarm.method.mean_codec}", was "int8-b128"',
            'method.feedback: "ef14", was "none"',
        }
        assert resolve(load(None, [*TOY, "method.codec=int4-b128"]).swarm) == swarm

    def test_what_was_stated_of_old_stays(self, tmp_path: Path) -> None:
        filled(tmp_path, "method.mix_alpha=0.25", "method.outer_lr=0.3", "method.fragments=4")
        swarm, told = self.change(tmp_path, "method.fragments=2")
        assert told == {"method.fragments: 2, was 4"}
        assert (swarm.method.mix_alpha, swarm.method.outer_lr) == (0.25, 0.3)

    def test_another_method_brings_its_own_values(self, tmp_path: Path) -> None:
        swarm, told = self.change(filled(tmp_path, "method.outer_lr=0.3"), "method.name=noloco")
        assert swarm.method == resolve(load(None, ["method.name=noloco"]).swarm).method
        assert 'method.name: "noloco", was "diloco"' in told

    def test_rounds_of_another_length_make_a_run_as_long_as_before(self, tmp_path: Path) -> None:
        filled(tmp_path)
        assert self.change(tmp_path, "method.inner_steps=30")[0].run.rounds == 34
        assert self.change(tmp_path, "method.inner_steps=30", "run.rounds=50")[0].run.rounds == 50

    def test_what_is_stated_and_not_new_is_no_change(self, tmp_path: Path) -> None:
        filled(tmp_path, "method.mean_codec=int4-b128")
        swarm, told = self.change(tmp_path, "method.codec=int8-b128")
        assert told == set()
        assert swarm.method.mean_codec == "int4-b128"


class TestRefusals:
    def refused(self, folder: Path, *assignments: str) -> DecentralError:
        with pytest.raises(DecentralError) as caught:
            taken(folder, *assignments)
        return caught.value

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        error = self.refused(tmp_path)
        assert error.message == f"There is no run to resume in {tmp_path}: it has no run.json."
        assert f"--join ADDR --out {tmp_path}" in error.hint
        assert error.exit_code == ExitCode.CONFIG

    @pytest.mark.parametrize(
        ("text", "says"),
        [("[run", "is not valid TOML"), ("[run]\nround = 3\n", "unknown key 'run.round'"), (None, "Cannot read")],
    )
    def test_a_broken_configuration(self, tmp_path: Path, text: str | None, says: str) -> None:
        (filled(tmp_path) / CONFIG).unlink()
        if text is not None:
            (tmp_path / CONFIG).write_text(text)
        error = self.refused(tmp_path)
        assert says in error.message
        assert str(tmp_path / CONFIG) in error.message
        assert error.exit_code == ExitCode.CONFIG

    def test_a_damaged_address_book(self, tmp_path: Path) -> None:
        (filled(tmp_path) / RUN).write_text("{")
        assert "run.json is damaged" in self.refused(tmp_path).message

    def test_checkpoints_of_which_none_is_whole(self, tmp_path: Path) -> None:
        for file in filled(tmp_path, steps=(400, 500)).glob("checkpoints/*/model.safetensors"):
            file.write_bytes(file.read_bytes()[:-1])
        error = self.refused(tmp_path)
        assert isinstance(error, ConfigError)
        assert "There is no checkpoint of demo-1" in error.message
        assert "step_000400: model.safetensors" in error.message
        assert "step_000500: model.safetensors" in error.message

    def test_none_at_all(self, tmp_path: Path) -> None:
        assert "There is no checkpoint of demo-1" in self.refused(filled(tmp_path, steps=())).message

    def test_a_run_that_is_over_unless_it_is_made_longer(self, tmp_path: Path) -> None:
        error = self.refused(filled(tmp_path, steps=(1000,)))
        assert isinstance(error, UsageError)
        assert error.message == "demo-1 is over: all of its 10 rounds are done."
        assert "run.rounds=20" in error.hint
        assert taken(tmp_path, "run.rounds=20").swarm is not None
        assert "is over" in self.refused(tmp_path, "method.inner_steps=50").message

    def test_one_torn_costs_only_itself(self, tmp_path: Path) -> None:
        filled(tmp_path, steps=(400, 500))
        (tmp_path / "checkpoints/step_000500/manifest.json").unlink()
        start = taken(tmp_path)
        assert start.resumption is not None
        assert start.resumption.step == 400


def test_a_whole_model_goes_on_in_stages_with_whoever_takes_them(tmp_path: Path) -> None:
    start = taken(filled(tmp_path, "run.min_workers=2"), "pipeline.stages=2")
    assert start.swarm is not None
    assert start.swarm.run.min_workers == 1
    assert start.resumption is not None
    assert start.resumption.step is None
    assert "pipeline.stages: 2, was 0" in start.resumption.changes


def test_another_number_of_stages_brings_its_own_recovery_and_nobody_insists_on_one_of_before(tmp_path: Path) -> None:
    filled(tmp_path, "pipeline.stages=4", "pipeline.recovery=checkfree+", stage="3")
    start = taken(tmp_path, "pipeline.stages=2")
    assert start.swarm is not None
    assert start.resumption is not None
    assert (start.swarm.pipeline.stages, start.swarm.pipeline.recovery, start.own.stage) == (2, "auto", "")
    assert "pipeline.stages: 2, was 4" in start.resumption.changes
    assert taken(tmp_path, "pipeline.stages=2", "worker.stage=1").own.stage == "1"
    assert taken(tmp_path).own.stage == "3"


def test_other_replicas_are_no_other_cut(tmp_path: Path) -> None:
    filled(tmp_path, "pipeline.stages=4")
    start = taken(tmp_path, "pipeline.replicas=3")
    assert start.resumption is not None
    assert start.resumption.step is None
