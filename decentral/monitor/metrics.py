"""The figures of a report that others' tools keep: which there are, what they are called there, what they mean. Pure.

A metric is a field of the JSON schema (docs/status-schema.md) that is a number; docs/metrics.md lists all.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    """One field of a section of the schema."""

    field: str
    help: str
    counts: bool = False
    """Whether it only grows as long as its worker lives. Sums over workers shrink when one is forgotten."""


RUN = (
    Metric("rounds", "Planned rounds of the run."),
    Metric("num_stages", "Stages of the pipeline beside the head, 0 without one."),
)
TOTALS = (
    Metric("round", "Newest round that a worker is in."),
    Metric("tokens", "Tokens trained on by the workers listed, since each started."),
    Metric("loss", "Training loss in nats per token, weighted by tokens."),
    Metric("val_loss", "Validation loss in nats per token of the newest anchor that a worker validated."),
    Metric("tokens_per_s", "Tokens a second of the active workers together."),
    Metric("sent_bytes", "Bytes sent between workers."),
    Metric("dp_bytes", "Bytes that data-parallel training would have sent for the same steps."),
    Metric("dp_ratio", "Bytes of data-parallel training over bytes sent."),
    Metric("contributing", "Workers that take part in rounds."),
    Metric("spread", "Gossip: median of the active workers' spread."),
    Metric("activation_bytes", "Pipeline: bytes of activations and their gradients."),
    Metric("resent", "Pipeline: micro-batches that heads had to send again."),
)
WORKER = (
    Metric("contributes", "1 if the worker takes part in rounds, else 0."),
    Metric("healthy", "0 if there is something to look into, else 1."),
    Metric("round", "Next round that it takes part in."),
    Metric("step", "Global inner step."),
    Metric("loss", "Training loss of its last stretch of inner steps, nats per token."),
    Metric("tokens", "Tokens trained on.", counts=True),
    Metric("tokens_per_s", "Tokens a second over its last round."),
    Metric("compute_share", "Share of its time in inner steps."),
    Metric("data_share", "Share of its time in which it waited for data."),
    Metric("waiting_share", "Share of its time for which training stood still for others."),
    Metric("transfer_share", "Share of its time for which training stood still while values were moved."),
    Metric("wall_s", "Seconds since its training began."),
    Metric("sent_bytes", "Bytes sent to other workers.", counts=True),
    Metric("received_bytes", "Bytes received from other workers.", counts=True),
    Metric("sent_bytes_per_s", "Mean bytes sent a second since its training began."),
    Metric("received_bytes_per_s", "Mean bytes received a second since its training began."),
    Metric("peak_sent_bytes_per_s", "Most bytes sent in any second or two."),
    Metric("peak_received_bytes_per_s", "Most bytes received in any second or two."),
    Metric("rounds_in", "Rounds whose mean included it.", counts=True),
    Metric("rounds_out", "Rounds that ended without it.", counts=True),
    Metric("delay_steps", "Inner steps between the launch of an exchange and its application."),
    Metric("num_groups", "Launches a round that its link would allow."),
    Metric("spread", "Gossip: how far its anchor was from a partner's at its last swap, over the anchor's RMS."),
    Metric("rounds_alone", "Gossip: rounds in which no partner came in time.", counts=True),
    Metric("one_sided", "Gossip: swaps that the other side did not confirm.", counts=True),
    Metric("queue", "Pipeline: micro-batches that wait for it."),
    Metric("microbatch_s", "Pipeline: seconds that a micro-batch takes, 0 if unknown."),
    Metric("activation_bytes", "Pipeline: bytes of activations and their gradients that it sent.", counts=True),
    Metric("resent", "Pipeline: micro-batches that it had to send again, as a head.", counts=True),
    Metric("recoveries", "Pipeline: lost stages that it brought back.", counts=True),
    Metric("saved_step", "Global inner step of the newest checkpoint on its disk, 0 before the first."),
    Metric("age_s", "Seconds since it was last seen."),
)
STAGE = (
    Metric("load", "Mean of its holders' shares of time in computing."),
    Metric("queue", "Micro-batches that wait for its holders."),
    Metric("microbatch_s", "Seconds that a micro-batch takes, mean over its holders."),
    Metric("failures", "Holders that were lost."),
    Metric("recoveries", "Times that a worker brought it back."),
)


def name(section: str, metric: Metric) -> str:
    """What a metric is called in OpenMetrics, without the ``_total`` of one that counts: units are written out there.

    Args:
        section: ``run``, ``totals``, ``worker`` or ``stage``.
        metric: of that section.
    """
    return f"decentral_{section}_" + re.sub(r"_s$", "_seconds", metric.field.replace("_per_s", "_per_second"))


def known(of: object, metrics: Sequence[Metric]) -> Iterator[tuple[Metric, float]]:
    """The metrics of a part of a report with their values; those that are not known are left out."""
    for metric in metrics:
        value = float(getattr(of, metric.field))
        if math.isfinite(value):
            yield metric, value
