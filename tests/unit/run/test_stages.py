"""From the configuration of a pipeline to what the engine is given, and what the task's model is cut into."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from decentral.config.resolve import resolve
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.config.settings import load
from decentral.errors import ConfigError
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.run.options import pipeline_options, run_options, stage_options
from decentral.run.stages import blocks_of, cut_of, parts_of, settled
from decentral.run.tasks import build_trainer

SMALL = ["task.settings.model.d_model=16", "task.settings.model.num_heads=2", "task.settings.model.context=8"]
HERE = WorkerConfig()
MODEL: Mapping[str, Tensor] = {f"blocks.{layer}.w": torch.zeros(1) for layer in range(4)}


def swarm(*assignments: str) -> SwarmConfig:
    return resolve(load(None, [*SMALL, "task.settings.model.num_layers=4", *assignments]).swarm)


def test_every_setting_of_a_pipeline_arrives() -> None:
    made = pipeline_options(
        swarm(
            "pipeline.stages=4",
            "pipeline.replicas=3",
            "pipeline.microbatches=4",
            "pipeline.in_flight=2",
            "pipeline.codec=int8-b64",
            "pipeline.routing=speed",
            "pipeline.recovery=checkfree",
            "pipeline.norm=squared",
            "pipeline.lr_boost=1.5",
            "pipeline.lr_boost_steps=7",
            "run.seed=11",
            "method.inner_steps=5",
            "eval_every_rounds=6",
        ),
        num_blocks=8,
    )
    assert (made.spans, made.healing) == (((0, 2), (2, 4), (4, 6), (6, 8)), "checkfree")
    assert (made.num_replicas, made.num_microbatches, made.window) == (3, 4, 2)
    assert (made.codec.name, made.routing, made.norm, made.seed) == ("int8-b64", "speed", "squared", 11)
    assert (made.lr_boost, made.lr_boost_steps) == (1.5, 7)
    assert (made.inner_steps, made.eval_every_rounds) == (5, 6)


def test_a_stage_is_a_swarm_of_its_own_by_the_method_of_the_run() -> None:
    configured = swarm("pipeline.stages=4", "pipeline.replicas=3", "method.name=noloco", "run.rounds=9")
    made, whole = stage_options(configured, "demo-1", 2, MODEL), run_options(configured, "demo-1", MODEL)
    assert (made.run_id, whole.run_id) == ("demo-1/2", "demo-1")
    assert (made.min_workers, made.eval_every_rounds) == (3, 0)
    assert (made.rule, made.plan, made.rounds, made.config) == (
        whole.rule,
        whole.plan,
        9,
        configured.to_json().encode(),
    )
    assert stage_options(swarm("pipeline.stages=4"), "demo-1", 0, MODEL).min_workers == 1


@pytest.mark.parametrize(
    ("stages", "healing"), [(1, "checkpoint"), (2, "checkpoint"), (3, "checkpoint"), (4, "checkfree+")]
)
def test_the_recovery_is_chosen_when_a_run_is_founded(stages: int, healing: str) -> None:
    assert settled(swarm(f"pipeline.stages={stages}"), HERE) == {"pipeline.recovery": healing}


def test_what_was_asked_for_stays_and_without_a_pipeline_there_is_nothing_to_choose() -> None:
    asked = swarm("pipeline.stages=4", "pipeline.recovery=checkpoint")
    assert settled(asked, HERE) == {"pipeline.recovery": "checkpoint"}
    assert settled(load(None, ["task.factory=decentral.workers.toy:build"]).swarm, HERE) == {}


def test_stages_that_differ_do_not_heal_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(
        blocks_of(swarm("pipeline.stages=4"), HERE), block=lambda number: torch.nn.Linear(2, 2 + number // 3)
    )
    monkeypatch.setattr("decentral.run.stages.blocks_of", lambda swarm, own, **given: made)
    assert settled(swarm("pipeline.stages=4"), HERE) == {"pipeline.recovery": "checkpoint"}
    with pytest.raises(ConfigError, match=r"stage 4 has a parameter of shape \(3, 2\) where stage 1 has \(2, 2\)"):
        settled(swarm("pipeline.stages=4", "pipeline.recovery=checkfree"), HERE)


def test_to_choose_it_nothing_is_built_and_no_text_is_read() -> None:
    settled(swarm("pipeline.stages=4"), WorkerConfig(device="cuda:7", data=("no-such-text",)))


def test_the_parts_of_the_whole_model_are_what_its_stages_hold() -> None:
    configured = swarm("pipeline.stages=3")
    blocks = blocks_of(configured, HERE)
    held = [HeadCompute(blocks, "cpu"), *(StageCompute(blocks, *span) for span in cut_of(configured, 4).spans)]
    parts = parts_of(configured, HERE, build_trainer(configured, HERE, 0).parameters())
    assert [{name: value.shape for name, value in part.items()} for part in parts] == [
        {name: value.shape for name, value in one.parameters().items()} for one in held
    ]


def test_without_a_pipeline_the_whole_model_is_one_part() -> None:
    assert parts_of(swarm(), HERE, MODEL) == [MODEL]


def test_more_fragments_than_a_stage_has_layers_are_refused() -> None:
    from decentral.cli.local.command import check_cut

    configured = swarm("pipeline.stages=4", "method.fragments=3")
    parameters = build_trainer(configured, HERE, 0).parameters()
    check_cut(configured, [parameters])
    with pytest.raises(ConfigError, match="3 fragments asked for"):
        check_cut(configured, parts_of(configured, HERE, parameters))
