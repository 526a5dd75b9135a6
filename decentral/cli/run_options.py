"""From the configuration to the engine's options. What is heavy (torch) is imported inside, as in ``compose``."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from decentral.cli.config import SwarmConfig
from decentral.cli.method import MethodSection

if TYPE_CHECKING:
    from decentral.codecs.feedback import Feedback
    from decentral.engine.options import RunOptions
    from decentral.exchange.pairing import Pairing
    from decentral.outer.rule import OuterRule


def run_options(swarm: SwarmConfig, run_id: str) -> "RunOptions":
    """The engine's options from the configuration."""
    from decentral.codecs.codec import make_codec
    from decentral.engine.options import RunOptions
    from decentral.schedule.plan import SyncPlan
    from decentral.swarm.timing import Timing

    method, timing = swarm.method, swarm.timing
    codec = make_codec(method.codec)
    return RunOptions(
        run_id=run_id,
        config=swarm.to_json().encode(),
        rounds=swarm.run.rounds,
        min_workers=swarm.run.min_workers,
        plan=SyncPlan(method.inner_steps, method.fragments, method.delay_steps),
        rule=_rule(method),
        codec=codec,
        mean_codec=make_codec(method.mean_codec),
        feedback=_feedback(method, lossless=codec.lossless),
        keep_rest=method.feedback != "none",
        over_senders=method.mean_over == "senders",
        pairing=_pairing(method),
        mix_alpha=method.alpha,
        eval_every_rounds=swarm.eval_every_rounds,
        timing=Timing(**timing.model_dump()),
    )


def _rule(method: MethodSection) -> "OuterRule":
    """The outer rule."""
    from decentral.outer.diloco import DiLoCo
    from decentral.outer.ef21 import Ef21
    from decentral.outer.noloco import NoLoCo
    from decentral.outer.sparseloco import SparseLoCo

    if method.name == "noloco" and method.schedule == "poisson":  # the pull is no part of a step
        return DiLoCo(method.outer_lr, method.outer_momentum, nesterov=False)
    if method.name == "noloco":
        return NoLoCo(method.outer_lr, method.outer_momentum, method.gamma, method.group_size)
    if method.name == "sparseloco":
        return SparseLoCo(method.outer_lr)
    rule = DiLoCo(method.outer_lr, method.outer_momentum, method.nesterov)
    return Ef21(rule) if method.feedback == "ef21" else rule


def _pairing(method: MethodSection) -> "Pairing | None":
    """How workers gossip, if they do."""
    from decentral.codecs.codec import make_codec
    from decentral.exchange.pairing import Pairing

    if method.name != "noloco":
        return None
    return Pairing(
        anchor_codec=make_codec(method.anchor_codec),
        pull_codec=make_codec(method.pull_codec),
        group_size=method.group_size,
        events_per_round=method.events_per_round if method.schedule == "poisson" else None,
        gamma=method.gamma,
    )


def _feedback(method: MethodSection, *, lossless: bool) -> "Callable[[int], Feedback]":
    """What remembers the codec's errors, for so many fragments."""
    from decentral.codecs.feedback import Ef21, ErrorFeedback, Feedback

    if method.feedback == "ef21":
        return Ef21
    if method.feedback == "none" or lossless:
        return Feedback
    return functools.partial(ErrorFeedback, decay=method.feedback_decay)
