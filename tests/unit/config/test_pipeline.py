"""The configuration of a pipeline: what it may say, who may insist on what, and what an old one means."""

import json

import pytest

from decentral.config.file import to_toml
from decentral.config.pipeline import check_founder, check_joiner, stages_asked
from decentral.config.resolve import resolve_method
from decentral.config.schema import SwarmConfig, diff
from decentral.config.settings import load
from decentral.errors import ConfigError, MismatchError

FOUR = "pipeline.stages=4"


@pytest.mark.parametrize(
    ("assignments", "match"),
    [
        (["pipeline.stages=-1"], "pipeline.stages = -1: must be a whole number, at least 0 and at most 256, or auto"),
        (["pipeline.replicas=2"], r"replicas is 2, but pipeline.stages is 0, .* set pipeline.stages \(or --stages\)"),
        (["pipeline.routing=speed"], "pipeline.routing is speed, but pipeline.stages is 0"),
        (["pipeline.stages=3", "pipeline.recovery=checkfree+"], r"checkfree\+, which needs at least 4 stages, .* is 3"),
        (["pipeline.stages=2", "pipeline.recovery=checkfree"], "checkfree, which needs at least 3 stages, .* is 2"),
        ([FOUR, "pipeline.recovery=none"], r"must be one of auto, checkfree\+, checkfree, checkpoint"),
        ([FOUR, "pipeline.in_flight=9"], r"in_flight is 9, which must be at most pipeline.microbatches \(8\)"),
        ([FOUR, "pipeline.codec=topk6-4bit"], "topk6-4bit, which is for changes of parameters"),
        ([FOUR, "pipeline.codec=sign-b1024"], "sign-b1024, which is for changes of parameters"),
        ([FOUR, "pipeline.codec=int2-b128"], "int2-b128, which is for changes of parameters"),
        ([FOUR, "pipeline.codec=BF16"], "must be the name of a codec for values"),
        ([FOUR, "pipeline.lr_boost=0"], "pipeline.lr_boost = 0: must be a number, above 0"),
        ([FOUR, "pipeline.microbatches=0"], "pipeline.microbatches = 0"),
        ([FOUR, "run.on_ruin=rollback"], "run.on_ruin is rollback, but in a pipeline no worker has the whole model"),
        ([FOUR, "run.min_workers=5"], "run.min_workers is 5, but a pipeline begins when its stages have holders"),
        (["worker.stage=0-x"], 'worker.stage = "0-x": must be a stage such as 2, a range such as 1-3'),
        (["worker.stage=spar"], "or spare"),
        (["worker.stage=-1"], "worker.stage"),
    ],
)
def test_what_makes_no_pipeline_is_refused(assignments: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load(None, assignments)


@pytest.mark.parametrize(
    "assignments",
    [
        ["pipeline.stages=1"],
        ["pipeline.stages=1", "pipeline.recovery=checkpoint"],
        ["pipeline.stages=3", "pipeline.recovery=checkfree", "pipeline.norm=squared"],
        [FOUR, "pipeline.recovery=checkfree+", "pipeline.replicas=2", "pipeline.in_flight=8"],
        [FOUR, "pipeline.codec=int8-b128", "pipeline.routing=speed", "pipeline.lr_boost_steps=0"],
        [FOUR, "method.name=noloco"],
        ["run.min_workers=5"],
    ],
)
def test_what_makes_a_pipeline_is_taken_and_survives_its_file(assignments: list[str], tmp_path) -> None:
    swarm = load(None, assignments).swarm
    (tmp_path / "run.toml").write_text(to_toml(swarm))
    assert load(tmp_path / "run.toml").swarm == swarm
    assert SwarmConfig.from_json(swarm.to_json()) == swarm


@pytest.mark.parametrize(
    ("stage", "asked"),
    [
        ("", ()),
        ("spare", "spare"),
        ("0", (0,)),
        ("4", (4,)),
        ("02", (2,)),
        ("1-3", (1, 2, 3)),
        ("0-4", (0, 1, 2, 3, 4)),
        ("2-2", (2,)),
    ],
)
def test_a_worker_may_insist_on_stages(stage: str, asked: tuple[int, ...] | str) -> None:
    assert stages_asked(stage, 4) == asked


@pytest.mark.parametrize(
    ("stage", "match", "hint"),
    [
        ("9", r"worker.stage is 9, but the pipeline has the stages 0 \(the head\) to 4", "Leave --stage out"),
        ("3-5", "worker.stage is 3-5, but", "Leave --stage out"),
        ("3-1", "worker.stage is 3-1, which ends before it begins", "Write 1-3"),
    ],
)
def test_but_not_on_stages_that_do_not_exist(stage: str, match: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        stages_asked(stage, 4)
    assert hint in caught.value.hint


def test_a_stage_in_a_file_may_be_a_number() -> None:
    assert load(None, ["worker.stage=3"]).worker.stage == "3"
    assert load(None, ["worker.stage=1-3"]).worker.stage == "1-3"


def test_a_founder_must_hold_something_of_a_pipeline() -> None:
    check_founder("2", 4)
    with pytest.raises(ConfigError, match="somebody must have the head"):
        check_founder("spare", 4)
    with pytest.raises(ConfigError, match="the swarm has no pipeline") as caught:
        check_founder("2", 0)
    assert "--stages" in caught.value.hint


def test_a_joiner_can_have_a_stage_where_there_are_any() -> None:
    check_joiner("", 0)
    check_joiner("", 4)
    check_joiner("spare", 4)
    with pytest.raises(MismatchError, match=r"worker.stage is 2, but the swarm has no pipeline") as caught:
        check_joiner("2", 0)
    assert "--new --stages" in caught.value.hint
    with pytest.raises(ConfigError, match=r"worker.stage is 9"):
        check_joiner("9", 4)


def test_a_joiner_that_wants_other_stages_is_told_and_auto_wants_nothing() -> None:
    founded = load(None, [FOUR, "pipeline.recovery=checkpoint"]).swarm
    assert diff(load(None, [FOUR, "pipeline.recovery=auto"]).explicit, founded) == []
    assert diff(load(None, ["pipeline.stages=3"]).explicit, founded) == ["pipeline.stages: 3 here, 4 in the swarm"]
    assert diff(load(None, [FOUR]).explicit, load().swarm) == ["pipeline.stages: 4 here, 0 in the swarm"]


def test_a_configuration_from_before_pipelines_has_none() -> None:
    old = json.loads(load().swarm.to_json())
    del old["pipeline"]
    assert SwarmConfig.from_json(json.dumps(old)) == load().swarm


def test_the_codec_of_activations_must_exist_where_there_are_any() -> None:
    assert resolve_method(load(None, [FOUR, "pipeline.codec=int8-b128"]).swarm).pipeline.codec == "int8-b128"
    with pytest.raises(ConfigError, match="unknown codec 'bf17'") as caught:
        resolve_method(load(None, [FOUR, "pipeline.codec=bf17"]).swarm)
    assert "bf16" in caught.value.hint


def test_a_cut_that_changes_has_one_holder_a_stage_and_nobody_insists() -> None:
    auto = "pipeline.stages=auto"
    assert load(None, [auto, "run.min_workers=4", "pipeline.recovery=checkpoint"]).swarm.pipeline.stages == "auto"
    for wrong, what in [("pipeline.replicas=2", "one holder"), ("pipeline.recovery=checkfree", "equal stages")]:
        with pytest.raises(ConfigError, match=what):
            load(None, [auto, wrong])
    check_joiner("spare", "auto")
    for stage in ("0", "2"):
        with pytest.raises(ConfigError, match="which blocks a worker holds changes"):
            check_joiner(stage, "auto")
