"""What is written as TOML is read back as it was."""

import sys
from typing import Any

import pytest

from decentral.config.file import to_toml
from decentral.config.resolve import resolve_task
from decentral.config.schema import SwarmConfig, TaskSection, WorkerConfig
from decentral.config.settings import load, with_values
from decentral.errors import ConfigError

AWKWARD: dict[str, Any] = {
    "text": 'a "b" \\ \x7f ü\n',
    "list": [1, 2.5, True, "x", [], [1, 2]],
    "tables": [{"a": 1, "ü": "x"}, {}],
    "empty": {},
    "none": [],
    "deep": {"empty": {}, "value": -1e-9, "large": 10**30},
}


def with_settings(settings: dict[str, Any]) -> SwarmConfig:
    return SwarmConfig(task=TaskSection(settings=settings))


@pytest.mark.parametrize(
    "swarm",
    [
        SwarmConfig(),
        with_settings(AWKWARD),
        with_values(SwarmConfig(), {"data.paths": ("a b", "#c", 'd"'), "run.name": "x.y", "task.factory": ""}),
        with_values(with_settings(AWKWARD), {"task.settings.empty.not_any_more": 1}),
    ],
    ids=["defaults", "awkward settings", "texts", "replaced"],
)
def test_every_value_comes_back(tmp_path, swarm):
    file = tmp_path / "run.toml"
    own = WorkerConfig(port=1, announce="a:1", task="mine:build", data=("x",), max_upload=100_000.5, stage="0-2")
    file.write_text(to_toml(swarm, own), encoding="utf-8")
    assert (load(file).swarm, load(file).worker) == (swarm, own)
    assert SwarmConfig.from_json(swarm.to_json()) == swarm
    assert with_values(swarm, {}) == swarm


def test_the_folder_that_a_file_lies_in_is_not_in_it(tmp_path):
    (tmp_path / "run.toml").write_text(to_toml(SwarmConfig(), WorkerConfig(out="there", port=2)))
    assert load(tmp_path / "run.toml").worker == WorkerConfig(port=2)


def test_a_heading_alone_states_nothing(tmp_path):
    (tmp_path / "run.toml").write_text("[run]\n[method]\n[task.settings]\n[worker]\n")
    read = load(tmp_path / "run.toml", ["task.settings.a=1"])
    assert read.explicit == {"task.settings.a": 1}
    assert read.swarm.task.settings == {"a": 1}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"a": None}, "task.settings.a = None: must be text, a finite number, true or false, or a list or table of"),
        ({"deep": {"a": float("nan")}}, "task.settings.deep.a = nan: must be"),
        ({"a": [object]}, "task.settings.a = <class 'object'>: must be"),
        ({"d-model": 1}, 'task.settings has the key "d-model": must be letters, digits and underscores'),
        ({"a": {"b.c": 1}}, 'task.settings.a has the key "b.c"'),
        ({"a": [{"": 1}]}, 'task.settings.a has the key ""'),
        ({"a": {1: 1}}, "task.settings.a has the key 1"),
    ],
)
def test_settings_that_no_file_can_hold_are_refused(monkeypatch, settings, says):
    class Task:
        @staticmethod
        def resolve(given):
            return settings

        @staticmethod
        def build(given, seat):
            pass

    monkeypatch.setitem(sys.modules, "a_task", Task)
    with pytest.raises(ConfigError) as caught:
        resolve_task(load(None, ["task.factory=a_task:build"]).swarm)
    assert says in caught.value.message


def test_the_order_of_settings_makes_no_difference():
    one, two = with_settings({"a": 1, "b": {"c": 1, "d": 2}}), with_settings({"b": {"d": 2, "c": 1}, "a": 1})
    assert to_toml(one) == to_toml(two)


def test_a_date_is_no_setting():
    with pytest.raises(ConfigError, match=r"task\.settings\.when = 2026-01-01: must be text"):
        load(None, ["task.settings.when=2026-01-01"])
