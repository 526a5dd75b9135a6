"""Whether every micro-batch was counted once at every stage: what the journals of all workers that ever lived say.

A worker that was struck takes what it learned last with it, and this is the rule that follows from it:

    once too often   is right where all but one of those who counted it were struck while it was committed: their
                     stage was brought back without what they had learned from it
    not at all       is right where a replica was struck while it was committed whose stage had others: they had
                     stepped, and its share dies with it, as all that it learned since the last round

Anything else is a token lost or counted twice.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]
#: (slot, batch, index) of a micro-batch.
Key = tuple[int, int, int]


@dataclass(frozen=True)
class Strike:
    """A worker that was killed or stopped.

    Args:
        worker: its name.
        at: Unix time.
        stages: that it held.
        replicated: those of them that others held as well.
    """

    worker: str
    at: float
    stages: frozenset[int]
    replicated: frozenset[int] = frozenset()


@dataclass
class Account:
    """What became of the micro-batches of a run."""

    tokens: dict[int, int] = field(default_factory=dict)
    """Counted at every stage."""
    batches: int = 0
    """Of all slots, which all stages have counted."""
    died: list[str] = field(default_factory=list)
    """Counts that were right to be lost or repeated, in words."""
    wrong: list[str] = field(default_factory=list)
    """Those that were not."""


def fronts(journals: Iterable[Sequence[Event]], until: float = math.inf) -> dict[int, int]:
    """The newest batch of every slot that anybody had counted by a time."""
    found: dict[int, int] = {}
    for event in _counts(journals):
        if event["time"] <= until:
            found[event["slot"]] = max(found.get(event["slot"], -1), event["batch"])
    return found


def account(journals: Mapping[str, Sequence[Event]], strikes: Sequence[Strike], num_stages: int) -> Account:
    """Hold the journals of all workers, by name, against the rule.

    Batches after the last one that all stages have counted were under way when the run ended and are left out.
    """
    made = Account()
    counters: dict[tuple[int, Key], list[str]] = defaultdict(list)
    last: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], int] = defaultdict(int)
    for name, journal in journals.items():
        for event in _counts([journal]):
            stage, slot, batch = event["stage"], event["slot"], event["batch"]
            made.tokens[stage] = made.tokens.get(stage, 0) + event["tokens"]
            last[stage, slot] = max(last.get((stage, slot), -1), batch)
            sizes[slot, batch] = max([sizes[slot, batch], *(index + 1 for index in event["indices"])])
            for index in event["indices"]:
                counters[stage, (slot, batch, index)].append(name)
    stages = range(num_stages + 1)
    hits = [(strike, fronts(journals.values(), strike.at)) for strike in strikes]
    for slot in sorted({slot for _, slot in last}):
        end = min(last.get((stage, slot), -1) for stage in stages)
        made.batches += end + 1
        for key in ((slot, batch, index) for batch in range(end + 1) for index in range(sizes[slot, batch])):
            for stage in stages:
                _judge(made, stage, key, counters[stage, key], hits)
    return made


def _judge(
    made: Account, stage: int, key: Key, names: Sequence[str], hits: Sequence[tuple[Strike, Mapping[int, int]]]
) -> None:
    if len(names) == 1:
        return
    slot, batch, index = key
    # A head counts a batch before the stages do, and the next one only after all of them have.
    here = [
        hit for hit, front in hits if stage in hit.stages and front.get(slot, -1) <= batch <= front.get(slot, -1) + 1
    ]
    struck = {strike.worker for strike in here}
    if names:
        right = sum(name not in struck for name in names) <= 1 and len(set(names)) == len(names)
    else:
        right = any(stage in strike.replicated for strike in here)
    words = f"stage {stage}, slot {slot}, batch {batch}, micro-batch {index}: counted by {list(names) or 'nobody'}"
    (made.died if right else made.wrong).append(words)


def _counts(journals: Iterable[Sequence[Event]]) -> Iterable[Event]:
    return (event for journal in journals for event in journal if event["event"] == "batch_counted")
