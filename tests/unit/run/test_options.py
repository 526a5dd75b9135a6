"""What becomes of a configuration, and of the folder of an earlier life."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from decentral.codecs.defaults import default_anchor_codec, default_pull_codec
from decentral.codecs.feedback import Ef21 as Ef21Feedback
from decentral.codecs.feedback import ErrorFeedback, Feedback
from decentral.config.resolve import resolve_method
from decentral.config.schema import SwarmConfig
from decentral.config.settings import load
from decentral.engine.hello import Hello
from decentral.engine.options import RunOptions
from decentral.errors import ConfigError, UnreachableError
from decentral.exchange.allreduce.options import AllReduceOptions, Merge
from decentral.exchange.allreduce.participants import Quorum
from decentral.exchange.gossip.options import GossipOptions
from decentral.monitor.report import StatusReport
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.ef21 import Ef21
from decentral.outer.noloco import NoLoCo
from decentral.outer.sparseloco import SparseLoCo
from decentral.run.asking import follow
from decentral.run.options import run_options
from decentral.schedule.plan import SyncPlan
from decentral.types import PeerId

MODEL = {"embedding": torch.zeros(2), **{f"layers.{number}": torch.zeros(3) for number in range(6)}}


def options(*assignments: str) -> RunOptions:
    return run_options(resolve_method(load(None, assignments).swarm), "run", MODEL)


def test_the_default_is_plain_averaging_in_eight_bits() -> None:
    made = options()
    assert (made.rule, made.codec.name, made.mean_codec.name) == (DiLoCo(1.0, 0.0), "int8-b128", "int8-b128")
    assert type(made.feedback(1)) is Feedback
    assert made.mixing == AllReduceOptions(keep_rest=False)


@pytest.mark.parametrize(
    ("assignments", "kind"),
    [
        (["method.codec=fp32"], Feedback),
        (["method.codec=bf16"], Feedback),
        (["method.codec=int8-b128"], Feedback),
        (["method.codec=int8-b128", "method.feedback=ef14"], ErrorFeedback),
        (["method.codec=int8-b128", "method.feedback_decay=0.9"], ErrorFeedback),
        (["method.codec=int8-b128", "method.mean_codec=int4-b128"], ErrorFeedback),
        (["method.codec=int4-b128", "method.mean_codec=int8-b128"], ErrorFeedback),
        (["method.codec=topk6-8bit"], ErrorFeedback),
        (["method.codec=int4-b128", "method.feedback=none"], Feedback),
        (["method.codec=int4-b128", "method.feedback=ef21"], Ef21Feedback),
    ],
)
def test_feedback_goes_by_the_codec_and_by_what_is_said(assignments: list[str], kind: type[Feedback]) -> None:
    assert type(options(*assignments).feedback(1)) is kind


def test_without_feedback_reducers_keep_nothing_either() -> None:
    assert options("method.feedback=none").mixing == AllReduceOptions(keep_rest=False)


def test_ef21_stands_in_front_of_the_rule() -> None:
    assert options("method.feedback=ef21", "method.name=diloco").rule == Ef21(DiLoCo(0.7, 0.9))


def test_sparseloco() -> None:
    made = options("method.name=sparseloco")
    assert (made.rule, made.codec.name, made.plan.inner_steps) == (SparseLoCo(1.0), "topk1.5-2bit", 30)
    feedback = made.feedback(1)
    feedback.bring(0, torch.ones(2))
    assert isinstance(feedback, ErrorFeedback)
    assert feedback._decay == 0.95
    assert made.mixing == AllReduceOptions(Merge.SENDERS)


def test_diloco_may_be_a_heavy_ball() -> None:
    assert options("method.name=diloco", "method.nesterov=false").rule == DiLoCo(0.7, 0.9, nesterov=False)


def gossip(made: RunOptions) -> tuple[str, str, int, float | None]:
    """What workers agree on about gossip."""
    mixing = made.mixing
    assert isinstance(mixing, GossipOptions)
    rate = None if mixing.swaps is None else mixing.swaps.events_per_round
    return mixing.anchor_codec.name, mixing.pull_codec.name, mixing.group_size, rate


def test_noloco() -> None:
    made = options("method.name=noloco")
    assert (made.rule, made.plan.inner_steps) == (NoLoCo(0.7, 0.5, gamma=0.7, group_size=2), 50)
    assert gossip(made) == (default_anchor_codec().name, default_pull_codec().name, 2, None)
    assert type(made.feedback(1)) is Feedback


def test_every_setting_of_gossip_arrives() -> None:
    own = ("method.gamma=0.6", "method.group_size=4", "method.anchor_codec=fp32", "method.pull_codec=bf16")
    made = options("method.name=noloco", *own)
    assert made.rule == NoLoCo(0.7, 0.5, gamma=0.6, group_size=4)
    assert gossip(made) == ("fp32", "bf16", 4, None)


def test_events_at_random_moments_have_a_rate() -> None:
    made = options("method.name=noloco", "method.schedule=poisson", "method.events_per_round=0.5")
    assert gossip(made)[2:] == (2, 0.5)


@pytest.mark.parametrize("name", ["local-sgd", "diloco", "sparseloco"])
def test_other_methods_do_not_gossip(name: str) -> None:
    assert isinstance(options(f"method.name={name}").mixing, AllReduceOptions)


def test_without_a_word_all_is_one_fragment_that_everybody_waits_for() -> None:
    made = options()
    assert made.plan == SyncPlan(3)
    assert (made.auto_delay, made.auto_groups, made.mix_alpha, made.eager) == (False, False, 0.0, None)
    assert (made.mixing, made.weight_by) == (AllReduceOptions(keep_rest=False), "tokens")


def test_streaming() -> None:
    made = options("method.name=streaming")
    assert made.plan == SyncPlan(100, num_fragments=3, delay_steps=1)
    assert (made.pattern, made.mix_alpha, made.auto_delay, made.auto_groups) == ("strided", 0.5, False, False)
    assert (made.rule, made.codec.name) == (DiLoCo(0.4, 0.9), "e3m0-b128")
    assert made.mixing == AllReduceOptions(keep_rest=False)


def test_eager() -> None:
    made = options("method.name=eager")
    assert made.plan == SyncPlan(30)
    assert (made.rule, made.eager, made.mix_alpha) == (DiLoCo(0.4, 0.9), Eager(0.4, 0.9), 0.0)


def test_what_is_measured_begins_with_what_the_model_allows() -> None:
    made = options("method.inner_steps=30", "method.fragments=auto", "method.delay_steps=auto")
    assert made.plan == SyncPlan(30, num_fragments=7, num_groups=3)
    assert (made.auto_groups, made.auto_delay, made.mix_alpha) == (True, True, 0.5)
    few = options("method.fragments=auto", "method.inner_steps=2", "method.delay_steps=1")
    assert (few.plan.num_fragments, few.plan.num_groups) == (2, 1)


def test_every_setting_of_a_sync_arrives() -> None:
    made = options("method.fragments=2", "method.fragment_pattern=sequential", "method.mix_alpha=0.25")
    assert (made.plan, made.pattern, made.mix_alpha) == (SyncPlan(3, 2), "sequential", 0.25)
    made = options("method.merge=rda", "method.weight_by=equal", "method.quorum=2", "method.quorum_grace=1.5")
    assert (made.mixing, made.weight_by) == (
        AllReduceOptions(Merge.RADIAL, quorum=Quorum(2, 1.5), keep_rest=False),
        "equal",
    )
    made = options("method.merge=trimmed", "method.liars=2", "method.bound=4", "run.min_workers=5")
    assert made.mixing == AllReduceOptions(Merge.TRIMMED, bound=4.0, num_liars=2, keep_rest=False)
    made = options("method.name=noloco", "method.bound=0")
    assert isinstance(made.mixing, GossipOptions)
    assert made.mixing.bound == 0


@pytest.mark.parametrize(("fragments", "most"), [("paper", 9), ("4", 7)])
def test_an_overlap_longer_than_the_model_allows_is_refused(fragments: str, most: int) -> None:
    assignments = ["method.inner_steps=29", f"method.fragments={fragments}"]
    assert options(*assignments, f"method.delay_steps={most - 1}").plan.delay_steps == most - 1
    with pytest.raises(ConfigError, match=f"method.delay_steps is {most}, "):
        options(*assignments, f"method.delay_steps={most}")


@pytest.mark.parametrize(
    ("codec", "mean_codec"),
    [
        ("fp32", "fp32"),
        ("int8-b256", "int8-b256"),
        ("int4-b128", "int4-b128"),
        ("e3m0-b128-sr", "e3m0-b128-sr"),
        ("int2-b128", "int2-b128"),
        ("sign-b1024", "int4-b128"),
        ("topk0.4-2bit", "topk1.5-8bit"),
        ("topk1.5-2bit", "topk6-8bit"),
        ("topk6-4bit", "topk6-8bit"),
    ],
)
def test_the_mean_travels_in_a_codec_that_suits(codec: str, mean_codec: str) -> None:
    assert options(f"method.codec={codec}").mean_codec.name == mean_codec
    assert options(f"method.codec={codec}", "method.mean_codec=bf16").mean_codec.name == "bf16"


@pytest.mark.parametrize("key", ["codec", "mean_codec"])
def test_an_unknown_codec_is_named_with_its_nearest(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown codec 'int4-128'") as caught:
        options(f"method.{key}=int4-128")
    assert "int4-b128" in caught.value.hint


@pytest.mark.parametrize(
    ("assignments", "match"),
    [
        (["method.feedback=ef21", "method.feedback_decay=0.9"], "feedback_decay is 0.9, which only"),
        (["method.name=sparseloco", "method.outer_momentum=0.5"], "outer_momentum is 0.5, which must be 0"),
        (["method.name=sparseloco", "method.feedback=none"], "sparseloco is made of ef14"),
        (["method.feedback=ef21", "method.mean_over=senders"], "mean over all members"),
        (["method.name=sparseloco", "method.codec=int4-b128"], "is for codecs that leave values out"),
        (["method.feedback_decay=0"], "feedback_decay = 0"),
        (["method.feedback=ef22"], "must be one of auto, ef14, ef21, none"),
        (["method.codec=INT4"], "must be the name of a codec"),
    ],
)
def test_what_does_not_go_together_is_refused(assignments: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load(None, assignments)


def test_a_swarm_is_followed_at_another_worker_when_the_first_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker answers twice; then the connection is gone, and all addresses are tried again, in order."""
    opened: list[list[str]] = []
    answers = iter("aabb")

    def hello(of: str) -> Hello:
        return Hello(PeerId(of), 5, "0.1.0", f"run-of-{of}", SwarmConfig().to_json().encode(), ())

    class Opened:
        class transport:  # noqa: N801
            pass

        class identity:  # noqa: N801
            verify = None

    @contextlib.asynccontextmanager
    async def asking(addresses: list[str], **_: Any) -> AsyncIterator[tuple[Any, Hello]]:
        opened.append(list(addresses))
        yield Opened, hello(next(answers))

    async def ask_hello(transport: Any, peer: PeerId, verify: Any, *, timeout_s: float) -> Hello:
        if told[-1:] == told[-2:-1]:
            raise UnreachableError("It is gone.")
        return hello(next(answers))

    monkeypatch.setattr("decentral.run.asking.asking", asking)
    monkeypatch.setattr("decentral.run.asking.ask_hello", ask_hello)
    addresses, told = ["a:1"], []

    async def scenario() -> None:
        async with contextlib.aclosing(follow(addresses, every_s=0.0)) as reports:
            async for report in reports:
                told.append(report.run.run_id if isinstance(report, StatusReport) else report.message)
                addresses[1:] = ["b:2"]
                if len(told) == 5:
                    return

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert told == ["run-of-a", "run-of-a", "It is gone.", "run-of-b", "run-of-b"]
    assert opened == [["a:1"], ["a:1", "b:2"]]
