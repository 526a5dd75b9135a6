"""The stages of a pipeline as presence records tell them: who holds which, and what became of lost ones.

Pure, and as wary of strangers' records as ``status``, of which this is a part; must not import torch.
"""

import math
import re
import statistics
from collections.abc import Iterable, Sequence

from decentral.monitor.report import StageRow, WorkerRow
from decentral.swarm.presence import Presence, State, stages_of
from decentral.types import short_id

_NUMBER = re.compile(r"\d{1,6}", re.ASCII)
_NAMED = re.compile(r"\bstage (\d{1,6})\b|\bthe (head)\b", re.ASCII)


def stage_numbers(text: str, num_stages: int) -> tuple[int, ...]:
    """The stages of a list with commas, in order; what is none is left out."""
    return tuple(sorted(number for number in stages_of(text) if number <= num_stages))


def is_spare(presence: Presence) -> bool:
    """Of a pipeline: whether the worker holds nothing and is about to hold nothing."""
    return not presence.holds and not presence.takes


def is_holder(presence: Presence, age_s: float, ttl_s: float) -> bool:
    """Whether the stages that a record names can be counted on: who has finished the run needs not be seen any more."""
    return presence.state is State.DONE or (age_s <= ttl_s and presence.state is not State.LEAVING)


def stage_rows(
    num_stages: int, records: Sequence[tuple[Presence, float]], workers: Sequence[WorkerRow], *, ttl_s: float
) -> tuple[StageRow, ...]:
    """The head and every stage.

    Args:
        num_stages: beside the head; 0 without a pipeline.
        records: with the seconds since each was last seen, one a peer.
        workers: the row of each record, in the same order.
        ttl_s: after which a worker counts as gone.
    """
    if not num_stages:
        return ()
    live = [is_holder(presence, age_s, ttl_s) for presence, age_s in records]
    over = all(presence.state is State.DONE for (presence, _), there in zip(records, live, strict=True) if there)
    failures: dict[int, int] = {}
    healed: dict[int, list[WorkerRow]] = {}
    for (presence, _), worker in zip(records, workers, strict=True):
        for stage, count in _counts(presence.metrics.failures):
            failures[stage] = max(failures.get(stage, 0), count)
        if worker.recoveries:
            healed.setdefault(_named(worker), []).append(worker)
    rows = []
    for stage in range(num_stages + 1):
        holders = [worker for worker, there in zip(workers, live, strict=True) if there and stage in worker.holds]
        times_s = [worker.microbatch_s for worker in holders if worker.microbatch_s]
        brought = healed.get(stage, [])
        rows.append(
            StageRow(
                stage=stage,
                holders=tuple(worker.id for worker in holders),
                load=_mean([worker.compute_share for worker in holders]),
                queue=sum(worker.queue for worker in holders),
                microbatch_s=_mean(times_s),
                failures=failures.get(stage, 0),
                recoveries=sum(worker.recoveries for worker in brought),
                recovery=min(brought, key=lambda worker: worker.age_s).recovery if brought else "",
                reason="" if holders or over else _vacancy(stage, records, live, num_stages),
            )
        )
    return tuple(rows)


def _vacancy(stage: int, records: Sequence[tuple[Presence, float]], live: Sequence[bool], num_stages: int) -> str:
    """Why a stage has no holder, and who will be the next."""
    there = [presence for (presence, _), alive in zip(records, live, strict=True) if alive]
    gone = [
        (age_s, presence)
        for (presence, age_s), alive in zip(records, live, strict=True)
        if not alive and stage in stage_numbers(presence.holds, num_stages)
    ]
    takers = [presence.peer for presence in there if stage in stage_numbers(presence.takes, num_stages)]
    spares = sum(is_spare(presence) for presence in there)
    parts = []
    if gone:
        age_s, last = min(gone, key=lambda one: one[0])
        what = "has left" if last.state is State.LEAVING else f"was last seen {age_s:.0f} s ago"
        parts.append(f"{short_id(last.peer)}, its last, {what}")
    if takers:
        parts.append(f"{', '.join(short_id(peer) for peer in takers)} takes it")
    elif spares:
        parts.append(f"one of {spares} spares has to take it" if spares > 1 else "the spare has to take it")
    else:
        parts.append("it waits for a worker to take it")
    return f"{name_of(stage)} has no holder: {'; '.join(parts)}"


def name_of(stage: int) -> str:
    """What people call a stage."""
    return f"stage {stage}" if stage else "the head"


def _named(worker: WorkerRow) -> int:
    """The stage of which a worker's last recovery was: as its words say, else the first that it holds."""
    found = _NAMED.search(worker.recovery)
    if found:
        return 0 if found[2] else int(found[1])
    return worker.holds[0] if worker.holds else -1


def _counts(text: str) -> Iterable[tuple[int, int]]:
    """The pairs of a list such as ``2:1,4:1``; what is none is left out."""
    for part in text.split(","):
        stage, _, count = part.partition(":")
        if _NUMBER.fullmatch(stage) and _NUMBER.fullmatch(count):
            yield int(stage), int(count)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
