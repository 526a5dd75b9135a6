"""Presets of a method, what of it goes together, and what is chosen where nothing is said."""

from pathlib import Path

import pytest

from decentral.cli.config import diff, to_toml
from decentral.cli.method import METHODS, MethodSection
from decentral.cli.presets import PRESETS
from decentral.cli.settings import load, resolve_method
from decentral.codecs.defaults import default_anchor_codec, default_pull_codec
from decentral.errors import ConfigError

NOLOCO = "method.name=noloco"
POISSON = "method.schedule=poisson"


def method(*assignments: str) -> MethodSection:
    return load(None, assignments).swarm.method


def test_nothing_stated_is_the_short_preset() -> None:
    assert method() == method("method.preset=short")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_preset_of_its_name_for_which_the_name_stands(name: str) -> None:
    by_name = load(None, [f"method.name={name}"])
    assert by_name == load(None, [f"method.preset={name}"])
    assert by_name.swarm.method.name == PRESETS[name]["name"] == name


@pytest.mark.parametrize("name", PRESETS)
def test_all_that_a_preset_stands_for_is_explicit(name: str) -> None:
    assert load(None, [f"method.preset={name}"]).explicit == {f"method.{k}": v for k, v in PRESETS[name].items()}


def test_noloco_is_that_of_the_paper_and_each_key_by_itself_wins() -> None:
    made = method(NOLOCO, "method.outer_lr=0.6")
    assert (made.inner_steps, made.outer_lr, made.outer_momentum) == (50, 0.6, 0.5)
    assert (made.gamma, made.group_size, made.schedule) == (0.7, 2, "rounds")


def test_a_name_that_is_the_presets_changes_nothing() -> None:
    assert method("method.name=diloco", "method.preset=short") == method()


def test_a_name_that_is_not_the_presets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[method]\nname = "noloco"\n')
    with pytest.raises(
        ConfigError, match=r'preset is short, which stands for .* = diloco, but .* is "noloco"'
    ) as caught:
        load(tmp_path / "run.toml", [], {"method.preset": "short"})
    assert "method.preset (or --method)" in caught.value.hint


@pytest.mark.parametrize(("wrong", "nearest"), [("nolco", "noloco"), ("DiLoCo", "diloco"), ("sparse", "sparseloco")])
def test_an_unknown_preset_is_named_with_its_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(
        ConfigError, match=f'"{wrong}": must be one of short, diloco, streaming, eager, sparseloco, noloco, async'
    ) as caught:
        load(None, [], {"method.preset": wrong})
    assert caught.value.hint == f"Did you mean {nearest!r}?"


def test_a_joiner_that_states_a_method_is_compared_in_all_that_it_stands_for() -> None:
    here = load(None, [], {"method.preset": "noloco"}).explicit
    assert diff(here, resolve_method(load(None, [NOLOCO, POISSON]).swarm)) == []
    assert diff(here, load(None, [NOLOCO, "method.inner_steps=40"]).swarm) == [
        "method.inner_steps: 50 here, 40 in the swarm"
    ]
    assert 'method.name: "noloco" here, "diloco" in the swarm' in diff(here, load().swarm)


@pytest.mark.parametrize(
    ("assignments", "match"),
    [
        (["method.gamma=0.5"], r"gamma is 0\.5, .* above 0\.5 and below 1\.5 for groups of n = 2 .* alpha = 0\.5"),
        (["method.gamma=1.5"], r"gamma is 1\.5, .* above 0\.5 and below 1\.5"),
        (["method.gamma=-1"], r"gamma is -1, .* above 0\.5 and below 1\.5"),
        (["method.outer_momentum=0.7"], r"gamma is 0\.7, .* above 0\.7 and below 1\.02 for groups of n = 2 .* = 0\.7"),
        (["method.group_size=4", "method.gamma=0.4"], r"above 0\.4082 and below 1\.225 for groups of n = 4"),
        (
            ["method.outer_momentum=0.9"],
            r"outer_momentum is 0\.9, with which no method\.gamma keeps .* paper's is 0\.5",
        ),
        (["method.group_size=1"], "group_size = 1: must be a whole number, at least 2 and at most 64"),
        (["method.group_size=65"], "group_size = 65: must be"),
        (["method.schedule=never"], 'schedule = "never": must be one of rounds, poisson'),
        (["method.events_per_round=2"], "events_per_round is 2, which only method.schedule = poisson has a use for"),
        ([POISSON, "method.events_per_round=0"], "events_per_round = 0: must be a number, above 0 and at most 100"),
        ([POISSON, "method.codec=int4-b128"], "codec is int4-b128, which method.schedule = poisson has no use for"),
        ([POISSON, "method.group_size=3"], "group_size is 3, which must be 2 with method.schedule = poisson"),
        ([POISSON, "method.gamma=1.1"], "gamma is 1.1, which must be at most 1 with method.schedule = poisson"),
        (["method.feedback=ef21"], "feedback is ef21, which noloco has no use for"),
        (["method.mean_over=senders"], "is for codecs that leave values out"),
        (["method.anchor_codec=topk1.5-8bit"], "anchor_codec is topk1.5-8bit, .* an anchor would be lost"),
        (["method.anchor_codec=sign-b1024"], "anchor_codec is sign-b1024"),
        (["method.pull_codec=BF16"], 'pull_codec = "BF16": must be auto, or the name of a codec'),
        (["method.nesterov=false"], "nesterov is false, which only method.name = diloco has a use for, not noloco"),
    ],
)
def test_what_makes_no_good_gossip_is_refused(assignments: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        method(NOLOCO, *assignments)


@pytest.mark.parametrize(
    "assignments",
    [
        ["method.gamma=0.51"],
        ["method.gamma=1.49"],
        ["method.outer_momentum=0", "method.gamma=0.01"],
        ["method.group_size=8", "method.gamma=0.38"],
        [POISSON, "method.events_per_round=0.5", "method.fragments=4", "method.gamma=1"],
        [POISSON, "method.outer_momentum=0.9", "method.gamma=0.3"],
        ["method.fragments=4", "method.delay_steps=5"],
        ["method.codec=topk1.5-2bit", "method.mean_over=senders"],
        ["method.pull_codec=sign-b1024", "method.anchor_codec=bf16"],
    ],
)
def test_what_makes_good_gossip_is_taken(assignments: list[str]) -> None:
    assert method(NOLOCO, *assignments).name == "noloco"


@pytest.mark.parametrize("name", ["short", "diloco", "sparseloco"])
@pytest.mark.parametrize(
    "assignment",
    ["gamma=0.8", "group_size=4", "schedule=poisson", "events_per_round=2.5", "anchor_codec=bf16", "pull_codec=bf16"],
)
def test_settings_of_gossip_are_refused_where_they_have_no_effect(name: str, assignment: str) -> None:
    key, _, value = assignment.partition("=")
    made = PRESETS[name]["name"]
    with pytest.raises(ConfigError, match=f"{key} is {value}, which only method.name = noloco .*, not {made}"):
        method(f"method.preset={name}", f"method.{assignment}")


def test_the_defaults_of_gossip_may_be_stated_for_any_method() -> None:
    assert method("method.preset=sparseloco", "method.gamma=0.7", "method.anchor_codec=auto").name == "sparseloco"


def test_only_diloco_has_two_forms_of_momentum() -> None:
    assert not method("method.name=diloco", "method.nesterov=false").nesterov
    with pytest.raises(ConfigError, match=r"nesterov is false, .* not sparseloco"):
        method("method.name=sparseloco", "method.nesterov=false")


def test_codecs_of_gossip_are_chosen_only_where_they_have_an_effect() -> None:
    chosen = resolve_method(load(None, [NOLOCO]).swarm).method
    assert chosen.anchor_codec == default_anchor_codec().name
    assert chosen.pull_codec == default_pull_codec().name
    unused = resolve_method(load().swarm).method
    assert (unused.anchor_codec, unused.pull_codec) == ("auto", "auto")
    assert "auto" not in (chosen.mean_codec, unused.mean_codec)


@pytest.mark.parametrize("key", ["anchor_codec", "pull_codec"])
def test_a_codec_of_gossip_that_is_stated_stays_if_it_exists(key: str) -> None:
    assert getattr(resolve_method(load(None, [NOLOCO, f"method.{key}=bf16"]).swarm).method, key) == "bf16"
    with pytest.raises(ConfigError, match="unknown codec 'int4-128'") as caught:
        resolve_method(load(None, [NOLOCO, f"method.{key}=int4-128"]).swarm)
    assert "int4-b128" in caught.value.hint


def test_auto_states_nothing_of_gossip_either() -> None:
    explicit = load(None, [NOLOCO, "method.anchor_codec=auto", "method.pull_codec=fp32"]).explicit
    assert "method.anchor_codec" not in explicit
    assert explicit["method.pull_codec"] == "fp32"


@pytest.mark.parametrize("name", METHODS)
def test_a_resolved_configuration_survives_its_file(tmp_path: Path, name: str) -> None:
    swarm = resolve_method(load(None, [f"method.name={name}"]).swarm)
    (tmp_path / "run.toml").write_text(to_toml(swarm))
    again = load(tmp_path / "run.toml")
    assert resolve_method(again.swarm) == swarm
    assert diff(again.explicit, swarm) == []
