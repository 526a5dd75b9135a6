"""From the configuration to the engine's options. What is heavy (torch) is imported inside."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from decentral.config.method import MethodSection
from decentral.config.names import Family
from decentral.config.schema import SwarmConfig, WorkerConfig
from decentral.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from decentral.codecs.feedback import Feedback
    from decentral.engine.options import Mixing, RunOptions
    from decentral.outer.eager import Eager
    from decentral.outer.rule import OuterRule
    from decentral.pipeline.options import PipelineOptions
    from decentral.ports.trainer import Seat
    from decentral.schedule.plan import SyncPlan


def run_options(swarm: SwarmConfig, run_id: str, parameters: "Mapping[str, Tensor]") -> "RunOptions":
    """The engine's options from the configuration.

    Args:
        swarm: resolved.
        run_id: of the run.
        parameters: of the model, whose layers decide how it can be cut.

    Raises:
        ConfigError: launches do not fit into a round.
    """
    from decentral.codecs.codec import make_codec
    from decentral.engine.options import RunOptions
    from decentral.swarm.timing import Timing

    method, timing = swarm.method, swarm.timing
    codec = make_codec(method.codec)
    return RunOptions(
        run_id=run_id,
        config=swarm.to_json().encode(),
        rounds=swarm.run.rounds,
        min_workers=swarm.run.min_workers,
        plan=_plan(method, parameters),
        pattern=method.fragment_pattern,
        auto_delay=method.delay_steps == "auto",
        auto_groups=method.fragments == "auto",
        eager=_eager(method),
        rule=rule_of(method),
        codec=codec,
        mean_codec=make_codec(method.mean_codec),
        feedback=_feedback(method, lossless=codec.lossless),
        weight_by=method.weight_by,
        mixing=_mixing(method),
        mix_alpha=method.alpha,
        eval_every_rounds=swarm.eval_every_rounds,
        rolls_back=swarm.run.on_ruin == "rollback",
        timing=Timing(**timing.model_dump()),
    )


def stage_options(swarm: SwarmConfig, run_id: str, stage: int, parameters: "Mapping[str, Tensor]") -> "RunOptions":
    """The engine's options for the swarm of a stage's replicas.

    Args:
        swarm: resolved, with a pipeline.
        run_id: of the whole run.
        stage: 0 is the head.
        parameters: of the stage alone, whose layers decide how it can be cut into fragments.

    Raises:
        ConfigError: launches do not fit into a round.
    """
    return replace(
        run_options(swarm, f"{run_id}/{stage}", parameters),
        min_workers=max(1, swarm.pipeline.replicas),
        eval_every_rounds=0,  # a stage alone has no loss
    )


def pipeline_options(swarm: SwarmConfig, num_blocks: int) -> "PipelineOptions":
    """What is the same for all who take part in a pipeline.

    Args:
        swarm: resolved, with a pipeline.
        num_blocks: of the task's model.

    Raises:
        ConfigError: so many blocks cannot be cut like that.
    """
    from decentral.codecs.codec import make_codec
    from decentral.pipeline.cut import Cut, cut
    from decentral.pipeline.options import PipelineOptions

    pipeline = swarm.pipeline
    changes = pipeline.stages == "auto"
    made = Cut((), "checkpoint") if pipeline.stages == "auto" else cut(num_blocks, pipeline.stages, pipeline.recovery)
    return PipelineOptions(
        spans=made.spans,
        healing=made.healing,
        codec=make_codec(pipeline.codec),
        seed=swarm.run.seed,
        num_microbatches=pipeline.microbatches,
        in_flight=pipeline.in_flight,
        routing=pipeline.routing,
        norm=pipeline.norm,
        num_replicas=1 if changes else pipeline.replicas,
        lr_boost=pipeline.lr_boost,
        lr_boost_steps=pipeline.lr_boost_steps,
        inner_steps=swarm.method.inner_steps,
        eval_every_rounds=swarm.eval_every_rounds,
        min_machines=swarm.run.min_workers - 1 if changes else 0,
    )


def seat_of(swarm: SwarmConfig, own: WorkerConfig, stream_seed: int, *, founding: bool = False) -> "Seat":
    """A worker's place in the run.

    Args:
        swarm: with the length of the run.
        own: what this machine has of its own: its device, its data.
        stream_seed: of this worker's own stream of data.
        founding: see ``Seat``.
    """
    from decentral.ports.trainer import Seat

    return Seat(
        run_seed=swarm.run.seed,
        stream_seed=stream_seed,
        total_steps=swarm.run.rounds * swarm.method.inner_steps,
        device=own.device,
        data=own.data or swarm.data.paths,
        model=own.model,
        tokenizer=own.tokenizer,
        dataset=own.dataset,
        allow_download=own.allow_download,
        founding=founding,
        num_heads=max(1, swarm.pipeline.replicas),
    )


def _plan(method: MethodSection, parameters: "Mapping[str, Tensor]") -> "SyncPlan":
    """When fragments are launched; with ``auto``, as at the start of the run."""
    from decentral.schedule.plan import SyncPlan
    from decentral.tensors.layout import num_fragments_of
    from decentral.tensors.partition import paper_fragments

    num_fragments = num_fragments_of(parameters, method.fragments, method.inner_steps)
    delay_steps = 0 if method.delay_steps == "auto" else method.delay_steps
    most = max(1, method.inner_steps // (delay_steps + 1))
    num_groups = min(paper_fragments(parameters), most, num_fragments) if method.fragments == "auto" else 0
    try:
        return SyncPlan(method.inner_steps, num_fragments, delay_steps, num_groups)
    except ValueError as err:
        raise ConfigError(
            f"method.delay_steps is {delay_steps}, but with {num_fragments} fragments one is launched every "
            f"{method.inner_steps // num_fragments} inner steps (method.inner_steps = {method.inner_steps})",
            hint="A result must be in use before the next launch: set fewer method.fragments, a shorter "
            "method.delay_steps, or auto.",
        ) from err


def _eager(method: MethodSection) -> "Eager | None":
    """How workers go ahead of the anchor, if they do."""
    from decentral.outer.eager import Eager

    return Eager(method.outer_lr, method.outer_momentum) if method.family is Family.EAGER else None


def rule_of(method: MethodSection) -> "OuterRule":
    """The outer rule of a method."""
    from decentral.outer.diloco import DiLoCo
    from decentral.outer.ef21 import Ef21
    from decentral.outer.follow import Follow
    from decentral.outer.noloco import NoLoCo
    from decentral.outer.sparseloco import SparseLoCo

    if method.family is Family.GOSSIP and method.schedule == "poisson":  # the pull is no part of a step
        return DiLoCo(method.outer_lr, method.outer_momentum, nesterov=False)
    if method.family is Family.GOSSIP:
        return NoLoCo(method.outer_lr, method.outer_momentum, method.gamma, method.group_size)
    if method.family is Family.SERVER:
        return Follow()
    if method.family is Family.SPARSELOCO:
        return SparseLoCo(method.outer_lr)
    rule = DiLoCo(method.outer_lr, method.outer_momentum, method.nesterov)
    return Ef21(rule) if method.feedback == "ef21" else rule


def _mixing(method: MethodSection) -> "Mixing":
    """How workers mix, and what that way of mixing needs."""
    from decentral.codecs.codec import make_codec
    from decentral.exchange.allreduce.options import AllReduceOptions, Merge
    from decentral.exchange.allreduce.participants import Quorum
    from decentral.exchange.gossip.options import GossipOptions, RandomSwaps
    from decentral.exchange.server.options import ServerOptions

    keep_rest, over_senders = method.feedback != "none", method.mean_over == "senders"
    if method.family is Family.SERVER:
        return ServerOptions(
            lr=method.outer_lr,
            momentum=method.outer_momentum,
            every=method.momentum_every,
            share=method.momentum_share,
            dylu=method.dylu,
            bound=method.bound,
        )
    if method.family is Family.GOSSIP:
        poisson = method.schedule == "poisson"
        return GossipOptions(
            anchor_codec=make_codec(method.anchor_codec),
            pull_codec=make_codec(method.pull_codec),
            group_size=method.group_size,
            swaps=RandomSwaps(method.events_per_round, method.gamma) if poisson else None,
            over_senders=over_senders,
            keep_rest=keep_rest,
            bound=method.bound,
        )
    plain = Merge.SENDERS if over_senders else Merge.MEMBERS
    return AllReduceOptions(
        merge=plain if method.merge == "mean" else Merge(method.merge),
        bound=method.bound,
        audits=method.audits,
        num_liars=method.liars,
        keep_rest=keep_rest,
        quorum=Quorum(method.quorum, method.quorum_grace) if method.quorum else None,
    )


def _feedback(method: MethodSection, *, lossless: bool) -> "Callable[[int], Feedback]":
    """What remembers the codec's errors, for so many fragments."""
    from decentral.codecs.feedback import Ef21, ErrorFeedback, Feedback

    if method.feedback == "ef21":
        return Ef21
    if method.feedback == "none" or lossless:
        return Feedback
    return functools.partial(ErrorFeedback, decay=method.feedback_decay)
