from dataclasses import dataclass, field

import pytest

from decentral.errors import ConfigError
from decentral.workers import lm, toy
from decentral.workers.lm.settings import LmSettings, read_settings
from decentral.workers.settings import read, write


def test_what_is_not_given_keeps_its_default() -> None:
    settings = read_settings({"model": {"d_model": 64}, "optimizer": {"betas": [0.8, 0.9], "learning_rate": 1}})
    assert settings.model.d_model == 64
    assert settings.model.num_layers == LmSettings().model.num_layers
    assert settings.optimizer.betas == (0.8, 0.9)
    assert settings.optimizer.learning_rate == 1.0


@pytest.mark.parametrize("task", [lm, toy])
def test_resolved_settings_are_complete_and_read_back(task) -> None:
    complete = task.defaults()
    assert task.resolve(complete) == complete
    assert read(LmSettings, write(read_settings({"batch_sequences": 3}))).batch_sequences == 3


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"modle": {}}, "'modle'", "'model'"),
        ({"model": {"num_layer": 3}}, "'model.num_layer'", "'num_layers'"),
        ({"zzz": 1}, "'zzz'", "batch_sequences"),
        ({"model": 3}, "model is 3", "a table"),
        ({"batch_sequences": 2.5}, "batch_sequences is 2.5", "a whole number"),
        ({"batch_sequences": True}, "batch_sequences is True", "a whole number"),
        ({"batch_sequences": 0}, "batch_sequences is 0", "at least 1"),
        ({"precision": "fp8"}, "precision is fp8", "fp32 or bf16"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas is [0.9]", "a list of 2 numbers"),
        ({"optimizer": {"learning_rate": "fast"}}, "'fast'", "a number"),
        ({"optimizer": {"learning_rate": float("nan")}}, "nan", "above 0"),
        ({"model": {"d_model": 100, "num_heads": 8}}, "100 with 8 heads", "2 * num_heads"),
        ({"model": {"context": 0}}, "model.context is 0", "at least 1"),
    ],
)
def test_a_wrong_setting_is_named_with_a_way_out(given, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lm.resolve(given)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_table_keeps_what_its_field_has_by_default() -> None:
    @dataclass(frozen=True)
    class Inner:
        a: int = 1
        b: int = 2

    @dataclass(frozen=True)
    class Outer:
        inner: Inner = field(default_factory=lambda: Inner(a=7))

    assert read(Outer, {"inner": {"b": 3}}).inner == Inner(7, 3)
