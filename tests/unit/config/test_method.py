"""What the name of a method stands for, what goes together, and what is chosen where nothing is said."""

import json
from pathlib import Path
from typing import get_args

import pytest

from decentral.codecs.defaults import default_anchor_codec, default_pull_codec
from decentral.config.file import to_toml
from decentral.config.method import MethodSection
from decentral.config.names import ALL_REDUCE, METHODS, MethodName
from decentral.config.resolve import resolve_method
from decentral.config.schema import SwarmConfig, diff
from decentral.config.settings import load
from decentral.errors import ConfigError

NOLOCO = "method.name=noloco"
POISSON = "method.schedule=poisson"


def method(*assignments: str) -> MethodSection:
    return load(None, assignments).swarm.method


def test_nothing_stated_is_local_sgd() -> None:
    assert method() == method("method.name=local-sgd") == MethodSection()
    assert (method().inner_steps, method().outer_lr, method().outer_momentum) == (3, 1.0, 0.0)


def test_the_names_that_are_checked_are_those_of_the_table() -> None:
    assert get_args(MethodName) == tuple(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_name_gives_the_defaults_wherever_it_stands(name: MethodName, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'[method]\nouter_lr = 0.9\nname = "{name}"\n')
    in_file = load(tmp_path / "run.toml")
    on_line = load(None, ["method.outer_lr=0.9", f"method.name={name}"])
    as_flag = load(None, ["method.outer_lr=0.9"], {"method.name": name})
    made = MethodSection(name=name, outer_lr=0.9)
    assert in_file.swarm.method == on_line.swarm.method == as_flag.swarm.method == made
    values = made.model_dump()
    assert values == MethodSection().model_dump() | dict(METHODS[name].defaults) | {"name": name, "outer_lr": 0.9}
    assert in_file.explicit == on_line.explicit == as_flag.explicit == {"method.name": name, "method.outer_lr": 0.9}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("override", ["", "inner_steps=77", "codec=topk1.5-2bit", "fragments=2", "pull_codec=auto"])
def test_a_configuration_survives_json_and_its_file(tmp_path: Path, name: str, override: str) -> None:
    overrides = [f"method.{override}"] if override else []
    stated = load(None, [f"method.name={name}", *overrides, "worker.max_upload=20mbit", "worker.device=cuda:1"])
    for swarm in (stated.swarm, resolve_method(stated.swarm)):
        assert SwarmConfig.from_json(swarm.to_json()) == swarm
        (tmp_path / "run.toml").write_text(to_toml(swarm, stated.worker))
        again = load(tmp_path / "run.toml")
        assert (again.swarm, again.worker) == (swarm, stated.worker)
        assert resolve_method(again.swarm) == resolve_method(swarm)
        assert diff(again.explicit, resolve_method(swarm)) == []


def test_noloco_is_that_of_the_paper_and_each_key_by_itself_wins() -> None:
    made = method(NOLOCO, "method.outer_lr=0.6")
    assert (made.inner_steps, made.outer_lr, made.outer_momentum) == (50, 0.6, 0.5)
    assert (made.gamma, made.group_size, made.schedule) == (0.7, 2, "rounds")


def test_keys_of_earlier_releases_are_refused_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[method]\nname = "diloco"\npreset = "short"\n')
    with pytest.raises(ConfigError, match=r"run.toml: there is no method.preset any more") as caught:
        load(tmp_path / "run.toml")
    assert 'Write method.name = "local-sgd" (or --method local-sgd)' in caught.value.hint
    with pytest.raises(ConfigError, match=r"--set: there is no method.preset any more") as caught:
        load(None, ["method.preset=streaming"])
    assert 'Write method.name = "streaming" (or --method streaming)' in caught.value.hint
    with pytest.raises(ConfigError, match=r"there is no method\.eager any more") as caught:
        load(None, ["method.eager=true"])
    assert caught.value.hint == 'Write method.name = "eager" in its place.'


def test_a_joiner_that_states_a_name_is_compared_in_that() -> None:
    here = load(None, [], {"method.name": "noloco"}).explicit
    assert diff(here, load(None, [NOLOCO, "method.inner_steps=40"]).swarm) == []
    assert diff(here, load().swarm) == ['method.name: "noloco" here, "local-sgd" in the swarm']


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("nolco", "noloco"), ("DiLoCo", "diloco"), ("sparse", "sparseloco"), ("short", "local-sgd")]
)
def test_an_unknown_name_is_named_with_its_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f'"{wrong}": must be one of local-sgd, diloco, muloco, streaming, eager, sparseloco, noloco, async',
    ) as caught:
        load(None, [], {"method.name": wrong})
    assert caught.value.hint == f"Did you mean {nearest!r}?"


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
        (["method.anchor_codec=int2-b128"], "anchor_codec is int2-b128"),
        (["method.pull_codec=BF16"], 'pull_codec = "BF16": must be auto, or the name of a codec'),
        (
            ["method.nesterov=false"],
            "nesterov is false, which only method.name = local-sgd or diloco or muloco or streaming has .*, not noloco",
        ),
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


@pytest.mark.parametrize("name", ["local-sgd", "diloco", "sparseloco"])
@pytest.mark.parametrize(
    "assignment",
    ["gamma=0.8", "group_size=4", "schedule=poisson", "events_per_round=2.5", "anchor_codec=bf16", "pull_codec=bf16"],
)
def test_settings_of_gossip_are_refused_where_they_have_no_effect(name: str, assignment: str) -> None:
    key, _, value = assignment.partition("=")
    with pytest.raises(ConfigError, match=f"{key} is {value}, which only method.name = noloco .*, not {name}"):
        method(f"method.name={name}", f"method.{assignment}")


def test_the_defaults_of_gossip_may_be_stated_for_any_method() -> None:
    assert method("method.name=sparseloco", "method.gamma=0.7", "method.anchor_codec=auto").name == "sparseloco"


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
        (["name=eager", "delay_steps=1"], "delay_steps is 1, which must be 0 for eager: .* leave it out"),
        (["name=eager", "delay_steps=auto"], "delay_steps is auto, which must be 0 for eager"),
        (["name=eager", "mix_alpha=0.5"], "mix_alpha is 0.5, which must be 0 for eager"),
        (
            ["name=eager", "nesterov=false"],
            "nesterov is false, which only method.name = local-sgd or diloco or muloco or streaming has",
        ),
        (["name=eager", "feedback=ef21"], "feedback is ef21, which eager has no use for: .*; set method.feedback=ef14"),
        (["merge=mode"], "must be one of mean, rda, median, trimmed, centred, nearest"),
        (
            ["merge=median", "codec=topk1.5-2bit", "mean_over=senders"],
            "merge is median, but method.mean_over is sender",
        ),
        (["merge=trimmed"], "merge is trimmed, but method.liars is 0, .*: set method.liars to how many"),
        (["merge=nearest"], "merge is nearest, but method.liars is 0"),
        (
            ["liars=1"],
            "liars is 1, which only method.merge = median, trimmed, centred, nearest has a use for, not mean",
        ),
        (
            ["merge=median", "liars=2"],
            "takes rounds of at least 5 workers .*, but run.min_workers is 1: set it to that",
        ),
        (["merge=centred", "liars=2", "quorum=4"], "at least 5 workers .*, but method.quorum is 4"),
        (["bound=0.5"], "bound is 0.5, which must be at least 1, or 0 for no bounds"),
        (["weight_by=size"], "must be one of tokens, token-rate, equal"),
        (["quorum=-1"], "method.quorum = -1: must be a whole number, at least 0 and at most 4096"),
        (["quorum_grace=2"], "quorum_grace is 2, but method.quorum is 0, .* set method.quorum"),
        (["quorum=2", "quorum_grace=-1"], "method.quorum_grace = -1: must be a number, at least 0 and at most 3600"),
        (["merge=rda", "feedback=ef21"], "merge is rda, but method.feedback is ef21, .*: set method.feedback=ef14"),
        (
            ["merge=rda", "name=eager"],
            "merge is rda, which only method.name = local-sgd or diloco or muloco or .* has .* not eager",
        ),
        (["merge=rda", "name=sparseloco"], "merge is rda, but method.mean_over is senders"),
        (["name=async", "nesterov=false"], "nesterov is false, which only method.name = local-sgd"),
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
        (["name=sparseloco", "feedback=none"], "feedback is none, but sparseloco is made of ef14: leave it out"),
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
        ["name=sparseloco", "fragments=4", "delay_steps=auto", "mix_alpha=1"],
        ["name=noloco", "fragments=auto", "delay_steps=2", "mix_alpha=0.3", "fragment_pattern=sequential"],
        ["name=eager", "mix_alpha=0", "fragments=paper", "quorum=2", "weight_by=token-rate"],
        ["name=eager", "mix_alpha=auto", "delay_steps=0"],
        ["name=sparseloco", "quorum=2", "quorum_grace=0.5", "weight_by=equal"],
        ["name=sparseloco", "mean_over=members", "merge=rda"],
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
        ("nesterov=false", ("local-sgd", "diloco", "muloco", "streaming")),
        ("merge=rda", ("local-sgd", "diloco", "muloco", "streaming", "sparseloco")),
        ("weight_by=equal", ("local-sgd", "diloco", "muloco", "streaming", "eager", "sparseloco")),
        ("quorum=2", ("local-sgd", "diloco", "muloco", "streaming", "eager", "sparseloco")),
        ("gamma=0.6", ("noloco",)),
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


def test_a_run_rolls_back_where_all_have_one_anchor_and_nowhere_else() -> None:
    for name, made in METHODS.items():
        chosen = [f"method.name={name}", "run.on_ruin=rollback"]
        if made.family in ALL_REDUCE:
            assert load(None, chosen).swarm.run.on_ruin == "rollback"
        else:
            with pytest.raises(ConfigError, match=f"on_ruin is rollback, .* with {name} each has its own: set run.on"):
                load(None, chosen)


def test_a_value_of_two_kinds_that_is_of_neither_is_named_once() -> None:
    with pytest.raises(ConfigError) as caught:
        method("method.fragments=many", "method.delay_steps=-1")
    assert len(caught.value.message.splitlines()) == 2


def test_streaming_is_that_of_the_paper() -> None:
    made = method("method.name=streaming")
    assert (made.name, made.inner_steps, made.fragments, made.fragment_pattern) == (
        "streaming",
        100,
        "paper",
        "strided",
    )
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
        (["method.name=eager"], 0.0),
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
    added = {"fragment_pattern", "merge", "weight_by", "quorum", "quorum_grace"}
    added |= {"momentum_every", "momentum_share", "dylu"}
    founded = resolve_method(load(None, ["method.name=diloco"]).swarm)
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
