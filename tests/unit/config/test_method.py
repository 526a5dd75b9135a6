"""Presets of a method, what of it goes together, and what is chosen where nothing is said."""

import json
from pathlib import Path

import pytest

from decentral.codecs.defaults import default_anchor_codec, default_pull_codec
from decentral.config.method import METHODS, MethodSection
from decentral.config.presets import PRESETS
from decentral.config.schema import SwarmConfig, diff, to_toml
from decentral.config.settings import load, resolve_method
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


@pytest.mark.parametrize(
    ("assignments", "match"),
    [
        (
            ["inner_steps=100", "fragments=8", "delay_steps=12"],
            r"delay_steps is 12, .* 100 / 8, rounded down 12: .* fewer",
        ),
        (
            ["inner_steps=100", "fragments=paper", "delay_steps=100"],
            r"delay_steps is 100, .* below method.inner_steps \(100\)",
        ),
        (["inner_steps=100", "fragments=auto", "delay_steps=100"], "delay_steps is 100, .* lower it"),
        (["fragments=4"], r"fragments is 4, which must be at most method.inner_steps \(3\): .* take fewer"),
        (
            ["fragments=0"],
            "method.fragments = 0: must be a whole number, at least 1 and at most 1024, or auto, or paper",
        ),
        (["fragments=2000"], "method.fragments = 2000: must be a whole number"),
        (["fragments=2.0"], "method.fragments = 2.0: must be a whole number"),
        (["fragments=true"], "method.fragments = true: must be a whole number"),
        (["fragments=many"], 'method.fragments = "many": must be a whole number'),
        (["fragment_pattern=random"], "must be one of strided, sequential"),
        (
            ["delay_steps=-1"],
            "method.delay_steps = -1: must be a whole number, at least 0 and at most 1000000, or auto",
        ),
        (["delay_steps=soon"], 'method.delay_steps = "soon": must be'),
        (["mix_alpha=1.1"], "method.mix_alpha = 1.1: must be a number, at least 0 and at most 1, or auto"),
        (["mix_alpha=-0.1"], "method.mix_alpha = -0.1: must be"),
        (["mix_alpha=half"], 'method.mix_alpha = "half": must be'),
        (["mix_alpha=nan"], "method.mix_alpha = nan: must be"),
        (["preset=eager", "delay_steps=1"], "delay_steps is 1, which must be 0 with method.eager: .* leave it out"),
        (["preset=eager", "delay_steps=auto"], "delay_steps is auto, which must be 0 with method.eager"),
        (["preset=eager", "mix_alpha=0.5"], "mix_alpha is 0.5, which must be 0 with method.eager"),
        (["preset=eager", "nesterov=false"], "nesterov is false, but method.eager .* set method.nesterov=true"),
        (["preset=eager", "feedback=ef21"], "feedback is ef21, which method.eager has no use for"),
        (["merge=median"], "must be one of mean, rda"),
        (["weight_by=size"], "must be one of tokens, token-rate, equal"),
        (["quorum=-1"], "method.quorum = -1: must be a whole number, at least 0 and at most 4096"),
        (["quorum_grace=2"], "quorum_grace is 2, but method.quorum is 0, .* set method.quorum"),
        (["quorum=2", "quorum_grace=-1"], "method.quorum_grace = -1: must be a number, at least 0 and at most 3600"),
        (["merge=rda", "feedback=ef21"], "merge is rda, but method.feedback is ef21, .*: set method.feedback=ef14"),
        (["merge=rda", "preset=eager"], "merge is rda, but method.eager is true, .*: leave one of them out"),
        (["merge=rda", "preset=sparseloco"], "merge is rda, but method.mean_over is senders"),
        (["name=async", "nesterov=false"], "nesterov is false, which only method.name = diloco"),
        (["name=async", "gamma=0.5"], "gamma is 0.5, which only method.name = noloco"),
        (["name=async", "feedback=ef21"], "feedback is ef21, which async has no use for"),
        (["name=async", "codec=topk1.5-2bit", "mean_over=senders"], "mean_over is senders, but async takes"),
        (
            ["name=async", "momentum_share=1.5"],
            "method.momentum_share = 1.5: must be a number, at least 0 and at most 1",
        ),
        (
            ["name=async", "momentum_every=4", "momentum_share=0.3"],
            "momentum_share is 0.3, .* 1 / method.momentum_every = 1 / 4",
        ),
        (["name=async", "momentum_every=-1"], "method.momentum_every = -1: must be a whole number"),
        (["name=streaming"], "must be one of diloco, sparseloco, noloco, async"),
    ],
)
def test_what_makes_no_good_sync_is_refused(assignments: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        method(*(f"method.{assignment}" for assignment in assignments))


@pytest.mark.parametrize(
    "assignments",
    [
        ["inner_steps=100", "fragments=8", "delay_steps=11"],
        ["inner_steps=100", "fragments=paper", "delay_steps=99"],
        ["inner_steps=1", "fragments=auto", "delay_steps=auto"],
        ["preset=sparseloco", "fragments=4", "delay_steps=auto", "mix_alpha=1"],
        ["preset=noloco", "fragments=auto", "delay_steps=2", "mix_alpha=0.3", "fragment_pattern=sequential"],
        ["preset=eager", "mix_alpha=0", "fragments=paper", "quorum=2", "weight_by=token-rate"],
        ["preset=eager", "mix_alpha=auto", "delay_steps=0"],
        ["preset=sparseloco", "quorum=2", "quorum_grace=0.5", "weight_by=equal"],
        ["preset=sparseloco", "mean_over=members", "merge=rda"],
        ["merge=rda", "weight_by=token-rate", "quorum=4096", "quorum_grace=3600"],
        ["name=async", "fragments=paper", "delay_steps=1", "momentum_every=4", "momentum_share=0.25", "dylu=false"],
        ["name=async", "momentum_share=1", "feedback=none"],
    ],
)
def test_what_makes_a_good_sync_is_taken(assignments: list[str]) -> None:
    chosen = resolve_method(load(None, [f"method.{assignment}" for assignment in assignments]).swarm).method
    assert isinstance(chosen.mix_alpha, float)


@pytest.mark.parametrize(
    ("assignment", "names"),
    [
        ("eager=true", ("diloco",)),
        ("merge=rda", ("diloco", "sparseloco")),
        ("weight_by=equal", ("diloco", "sparseloco")),
        ("quorum=2", ("diloco", "sparseloco")),
        ("momentum_every=2", ("async",)),
        ("momentum_share=0.1", ("async",)),
        ("dylu=true", ("async",)),
    ],
)
def test_settings_are_refused_where_they_have_no_effect(assignment: str, names: tuple[str, ...]) -> None:
    only = f"{assignment.replace('=', ' is ')}, which only method.name = {' or '.join(names)} has a use for, not"
    for name in set(METHODS) - set(names):
        with pytest.raises(ConfigError, match=f"{only} {name}: leave it out"):
            method(f"method.name={name}", f"method.{assignment}")


def test_a_value_of_two_kinds_that_is_of_neither_is_named_once() -> None:
    with pytest.raises(ConfigError) as caught:
        method("method.fragments=many", "method.delay_steps=-1")
    assert len(caught.value.message.splitlines()) == 2


def test_the_preset_of_streaming_is_that_of_the_paper() -> None:
    made = method("method.preset=streaming")
    assert (made.name, made.inner_steps, made.fragments, made.fragment_pattern) == ("diloco", 100, "paper", "strided")
    assert (made.delay_steps, made.mix_alpha, made.outer_lr, made.codec) == (1, 0.5, 0.4, "e3m0-b128")


def test_overlap_by_itself_is_on_any_method() -> None:
    assert method(NOLOCO, "method.delay_steps=2").alpha == 0.5


@pytest.mark.parametrize(
    ("assignments", "alpha"),
    [
        ([], 0.0),
        (["method.fragments=3"], 0.0),
        (["method.delay_steps=1"], 0.5),
        (["method.delay_steps=auto"], 0.5),
        (["method.preset=eager"], 0.0),
        (["method.delay_steps=1", "method.mix_alpha=0"], 0.0),
        (["method.mix_alpha=0.25"], 0.25),
    ],
)
def test_what_is_kept_of_local_work_goes_by_the_overlap_if_it_is_not_said(assignments: list[str], alpha: float) -> None:
    founded = resolve_method(load(None, assignments).swarm)
    assert founded.method.mix_alpha == alpha
    assert diff(load(None, [*assignments, "method.mix_alpha=auto"]).explicit, founded) == []


def test_a_joiner_that_would_keep_another_share_is_told() -> None:
    founded = resolve_method(load(None, ["method.delay_steps=1"]).swarm)
    assert diff(load(None, ["method.mix_alpha=0.75"]).explicit, founded) == [
        "method.mix_alpha: 0.75 here, 0.5 in the swarm"
    ]


def test_auto_fragments_and_overlap_are_what_all_have_to_agree_on() -> None:
    stated = load(None, ["method.fragments=auto", "method.delay_steps=auto"])
    assert diff(stated.explicit, resolve_method(stated.swarm)) == []
    assert diff(stated.explicit, resolve_method(load().swarm)) == [
        'method.fragments: "auto" here, 1 in the swarm',
        'method.delay_steps: "auto" here, 0 in the swarm',
    ]


def test_a_configuration_from_before_these_keys_is_what_it_was() -> None:
    added = {"eager", "fragment_pattern", "merge", "weight_by", "quorum", "quorum_grace"}
    added |= {"momentum_every", "momentum_share", "dylu"}
    founded = resolve_method(load(None, ["method.preset=diloco"]).swarm)
    old = json.loads(founded.to_json())
    old["method"] = {key: value for key, value in old["method"].items() if key not in added}
    assert SwarmConfig.from_json(json.dumps(old)) == founded
    del old["method"]["mix_alpha"]
    assert SwarmConfig.from_json(json.dumps(old)).method.alpha == 0


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


@pytest.mark.parametrize("name", PRESETS)
def test_a_resolved_configuration_survives_its_file(tmp_path: Path, name: str) -> None:
    swarm = resolve_method(load(None, [f"method.preset={name}"]).swarm)
    (tmp_path / "run.toml").write_text(to_toml(swarm))
    again = load(tmp_path / "run.toml")
    assert resolve_method(again.swarm) == swarm
    assert diff(again.explicit, swarm) == []
