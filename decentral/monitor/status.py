"""From presence records to an answer to "is my machine helping?". Pure; must not import torch.

Every number comes from a record that a stranger may have written, so what is not finite or below zero counts as
absent, and no record can make the summary fail.
What the fields of a report mean is in ``monitor.report``.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from decentral.monitor.report import LOST, Health, LinkRow, RunFacts, StatusReport, Totals, WorkerRow
from decentral.monitor.stages import is_spare, name_of, stage_numbers, stage_rows
from decentral.swarm.presence import ACTIVE, Metrics, Presence, State
from decentral.swarm.timing import lifetime_s
from decentral.types import PeerId, short_id

#: Whoever said so last has gone in order.
_FAREWELLS = (State.LEAVING, State.DONE)
#: A worker may be in the round before the newest without being late: records travel slowly.
_MAX_ROUNDS_BEHIND = 1

#: Fields of a row that are those of the worker's metrics.
_AS_TOLD = (
    *("step", "loss", "tokens", "sent_bytes", "received_bytes", "rounds_in", "rounds_out", "delay_steps", "num_groups"),
    *("rounds_alone", "one_sided", "queue", "activation_bytes", "resent", "recoveries", "recovery"),
    *("saved_step", "device", "version"),
)


def summarize(
    run: RunFacts,
    rows: Sequence[tuple[Presence, float]],
    *,
    ttl_s: float,
    ended: Mapping[PeerId, str] = {},
    banned: tuple[PeerId, ...] = (),
) -> StatusReport:
    """Sum up what is known of the workers.

    Args:
        run: of the run; records of other runs are ignored.
        rows: records with the seconds since each was last seen; of several by one peer the newest counts.
        ttl_s: a worker not seen for longer than this does not count as present, as long as there are few
            (see ``lifetime_s``).
        ended: workers that are known to be gone, however new their records are, and what is known of their end.
        banned: peers that have been put out.

    Returns:
        One row a worker, sorted by peer id, and the whole.
    """
    newest: dict[PeerId, tuple[Presence, float]] = {}
    for presence, age_s in rows:
        known = newest.get(presence.peer)
        if presence.run == run.run_id and (known is None or presence.seq > known[0].seq):
            newest[presence.peer] = presence, max(age_s, 0.0)
    records = [newest[peer] for peer in sorted(newest)]
    ttl_s = lifetime_s(ttl_s, len(records))
    lost = {
        presence.peer: ended.get(presence.peer, f"not seen for {age_s:.0f} s")
        for presence, age_s in records
        if (age_s > ttl_s or presence.peer in ended) and presence.state not in _FAREWELLS
    }
    seen = [presence for presence, age_s in records if age_s <= ttl_s and presence.peer not in lost]
    present = [presence for presence in seen if presence.state is not State.LEAVING]
    active = [presence for presence in present if presence.state in ACTIVE]
    front = max((presence.round for presence in active or present or [p for p, _ in records]), default=0)
    strays = _out_of_sync(active)
    fronts = _fronts(run, active)
    workers = tuple(
        _row(
            presence,
            age_s,
            run.num_stages,
            lost.get(presence.peer, ""),
            _trouble(presence, _front(run, presence, front, fronts), presence.peer in strays),
        )
        for presence, age_s in records
    )
    stages = stage_rows(run.num_stages, records, workers, ttl_s=ttl_s)
    troubled = any(not row.healthy for row in workers) or any(stage.reason for stage in stages)
    health = Health.DEGRADED if troubled else Health.HEALTHY
    if not present:
        health = Health.EMPTY
    totals = _totals(run, front, [p for p, _ in records], active, workers)
    return StatusReport(health, run, totals, workers, stages, banned)


def _fronts(run: RunFacts, active: Iterable[Presence]) -> dict[int, int]:
    """The newest round of each stage's replicas."""
    fronts: dict[int, int] = {}
    for presence in active:
        for stage in stage_numbers(presence.holds, run.num_stages):
            fronts[stage] = max(fronts.get(stage, 0), presence.round)
    return fronts


def _front(run: RunFacts, presence: Presence, front: int, fronts: Mapping[int, int]) -> int:
    """The round of those whom a worker has to keep up with.

    In gossip every worker has rounds of its own, and nobody waits for one that has fewer; and so has every stage.
    """
    if run.gossip:
        return presence.round
    if not run.num_stages:
        return front
    mine = stage_numbers(presence.holds, run.num_stages)
    return min((fronts[stage] for stage in mine if stage in fronts), default=presence.round)


def _out_of_sync(active: Iterable[Presence]) -> set[PeerId]:
    """Workers whose anchor differs from that of most workers in the same round; all of them if no anchor leads."""
    strays: set[PeerId] = set()
    rounds: dict[int, list[Presence]] = {}
    for presence in active:
        if presence.digest:
            rounds.setdefault(presence.round, []).append(presence)
    for peers in rounds.values():
        ranked = Counter(presence.digest for presence in peers).most_common(2)
        tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        strays |= {presence.peer for presence in peers if tie or presence.digest != ranked[0][0]}
    return strays


def _trouble(presence: Presence, front: int, stray: bool) -> str:
    """Why this worker, as long as it is there, does not contribute though it should; empty if all is well."""
    if presence.state in _FAREWELLS:
        return ""
    if presence.metrics.reason and presence.state is not State.JOINING:
        return presence.metrics.reason
    if presence.state is State.STALLED:
        return "takes no inner steps"
    if presence.state is State.REPAIRING:
        return "repairing: its weights differ from the swarm's"
    if stray:
        return f"out of sync: its weights differ from other workers' in round {presence.round}"
    if presence.state in ACTIVE and presence.round < front - _MAX_ROUNDS_BEHIND:
        return f"behind: in round {presence.round}, the swarm is in {front}"
    return ""


#: Reasons that need no look.
_CALM = {
    State.JOINING: "downloads the current weights",
    State.CATCHING_UP: "catches up with the rounds that it was not there for",
    State.LEAVING: "has left",
    State.DONE: "has finished the run",
}


def _calm(presence: Presence, num_stages: int) -> str:
    """Why this worker does not contribute and need not; empty if it does."""
    if num_stages and presence.state not in _FAREWELLS:
        if is_spare(presence):
            return "waits as a spare"
        if not presence.holds:
            return f"takes {' and '.join(name_of(stage) for stage in stage_numbers(presence.takes, num_stages))}"
    if presence.state is State.JOINING and presence.metrics.reason:
        return presence.metrics.reason
    return _CALM.get(presence.state, "")


def _row(presence: Presence, age_s: float, num_stages: int, lost: str, trouble: str) -> WorkerRow:
    """The row of one worker; ``lost`` says what is known of its end, if it is gone without a word."""
    metrics = presence.metrics
    wall_s = _amount(metrics.wall_s)
    peak_up, peak_down = _amount(metrics.peak_sent_bytes_per_s), _amount(metrics.peak_received_bytes_per_s)
    compute, waiting, transfer = _shares(wall_s, metrics.compute_s, metrics.waiting_s, metrics.transfer_s)
    trouble = lost or trouble
    reason = trouble or _calm(presence, num_stages)
    note = metrics.note if presence.state not in _FAREWELLS else ""
    return WorkerRow(
        id=short_id(presence.peer),
        peer=presence.peer,
        state=LOST if lost else presence.state.value,
        contributes=not reason,
        reason=reason,
        note=note,
        healthy=not trouble and not note,
        round=presence.round,
        tokens_per_s=_amount(metrics.tokens_per_s),
        compute_share=compute,
        data_share=compute * min(1.0, _amount(metrics.data_s) / (_amount(metrics.compute_s) or 1.0)),
        waiting_share=waiting,
        transfer_share=transfer,
        wall_s=wall_s,
        sent_bytes_per_s=_mean_rate(metrics.sent_bytes, wall_s, peak_up),
        received_bytes_per_s=_mean_rate(metrics.received_bytes, wall_s, peak_down),
        peak_sent_bytes_per_s=peak_up,
        peak_received_bytes_per_s=peak_down,
        partners=_ids(metrics.partners),
        spread=_share(metrics.spread),
        avoids=_ids(metrics.avoids),
        restrained=_ids(metrics.restrained),
        holds=stage_numbers(presence.holds, num_stages),
        takes=stage_numbers(presence.takes, num_stages),
        stored=stage_numbers(presence.stored, num_stages),
        slot=presence.slot,
        microbatch_s=_amount(metrics.microbatch_s),
        links=tuple(
            LinkRow(link.id, _share(link.round_trip_s), link.sent_bytes, link.received_bytes) for link in metrics.links
        ),
        age_s=round(age_s, 3),
        **{name: getattr(metrics, name) for name in _AS_TOLD},
    )


def _mean_rate(num_bytes: int, wall_s: float, peak_bytes_per_s: float) -> float:
    """Bytes over the time, at most the peak if one is known."""
    rate = _amount(num_bytes / wall_s) if wall_s else 0.0
    return min(rate, peak_bytes_per_s or rate)


def _shares(wall_s: float, *spent_s: float) -> list[float]:
    """Of the whole, each of the times in it; the whole is their sum if that is more."""
    times_s = [_amount(s) for s in spent_s]
    # max first: finite times may add up to infinity.
    unit_s = max(wall_s, *times_s) or 1.0
    parts = [s / unit_s for s in times_s]
    whole = max(wall_s / unit_s, sum(parts)) or 1.0
    return [part / whole for part in parts]


def _totals(
    run: RunFacts,
    front: int,
    everybody: Sequence[Presence],
    active: Sequence[Presence],
    workers: Sequence[WorkerRow],
) -> Totals:
    """Counters over everybody listed, speed and loss over those who are active; tokens and losses over the heads."""
    sent_bytes = sum(presence.metrics.sent_bytes for presence in everybody)
    dp_bytes = sum(presence.metrics.dp_bytes for presence in everybody)
    heads, busy = everybody, active
    if run.num_stages:
        heads = [presence for presence in everybody if _is_head(presence, run)]
        busy = [presence for presence in active if _is_head(presence, run)]
    return Totals(
        round=front,
        tokens=sum(presence.metrics.tokens for presence in heads),
        loss=_mean_loss([presence.metrics for presence in busy or heads]),
        val_loss=_last_val_loss(everybody),
        tokens_per_s=sum(_amount(presence.metrics.tokens_per_s) for presence in busy),
        sent_bytes=sent_bytes,
        dp_bytes=dp_bytes,
        dp_ratio=dp_bytes / sent_bytes if sent_bytes else math.nan,
        contributing=sum(row.contributes for row in workers),
        spread=_median([_share(presence.metrics.spread) for presence in active]),
        activation_bytes=sum(presence.metrics.activation_bytes for presence in everybody),
        resent=sum(presence.metrics.resent for presence in everybody),
    )


def _is_head(presence: Presence, run: RunFacts) -> bool:
    return 0 in stage_numbers(presence.holds, run.num_stages)


def _mean_loss(metrics: Iterable[Metrics]) -> float:
    """Mean of the finite losses. Over one round, tokens are in proportion to tokens per second."""
    known = [m for m in metrics if math.isfinite(m.loss)]
    if not known:
        return math.nan
    weights = [_amount(m.tokens_per_s) for m in known]
    if not 0 < sum(weights) < math.inf:
        weights = [1.0] * len(known)
    return sum(m.loss * weight for m, weight in zip(known, weights, strict=True)) / sum(weights)


def _last_val_loss(records: Iterable[Presence]) -> float:
    """The validation loss of the newest anchor that anybody validated."""
    known = [presence.metrics for presence in records if math.isfinite(presence.metrics.val_loss)]
    return max(known, key=lambda metrics: metrics.val_round).val_loss if known else math.nan


def _amount(value: float) -> float:
    """``value`` if it is a plausible amount, else 0."""
    return value if math.isfinite(value) and value > 0 else 0.0


def _share(value: float) -> float:
    """``value`` if it may be a share of something, else NaN."""
    return value if math.isfinite(value) and value >= 0 else math.nan


def _median(values: Iterable[float]) -> float:
    """Median of the numbers that are known; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _ids(text: str) -> tuple[str, ...]:
    """The ids of a list with commas."""
    return tuple(id for id in text.split(",") if id)
