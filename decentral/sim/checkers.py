"""What must hold of every swarm, whatever happened to it. Each checker returns violations in words; none is good."""

from collections import defaultdict
from collections.abc import Iterable

import torch

from decentral.monitor.events import RoundMixed
from decentral.sim.scenario import Record, Scenario
from decentral.types import PeerId, SyncKey


def check(scenario: Scenario, record: Record, *, tolerance: float) -> list[str]:
    """All checkers.

    Args:
        scenario: what was simulated.
        record: what became of it.
        tolerance: how far from the goal the final anchors may be, RMS.
    """
    return [*agreement(record), *reunion(scenario, record), *progress(scenario, record, tolerance)]


def agreement(record: Record) -> Iterable[str]:
    """Workers that name each other as members of a round hold the same anchor after it, bit for bit."""
    mixed: dict[SyncKey, dict[PeerId, list[RoundMixed]]] = defaultdict(lambda: defaultdict(list))
    for peer, lives in record.journals.items():
        for event in (event for journal in lives for event in journal.events if isinstance(event, RoundMixed)):
            mixed[SyncKey(event.round, event.fragment)][peer].append(event)
    for key, by_peer in mixed.items():
        digests: dict[tuple[PeerId, ...], str] = {}
        for peer, events in by_peer.items():
            if len(events) > 1:
                yield f"{peer} mixed {key} {len(events)} times"
            for event in events:
                if peer in event.members and digests.setdefault(event.members, event.digest) != event.digest:
                    yield f"{peer} differs from another member of {key}, {event.members}"


def reunion(scenario: Scenario, record: Record) -> Iterable[str]:
    """Everybody alive at the end has finished the run with the same anchor."""
    for peer in scenario.peers:
        outcome = record.outcomes.get(peer)
        if peer in record.journals and (outcome is None or not outcome.done):
            yield f"{peer} did not finish the run"
    digests = {peer: outcome.digest for peer, outcome in record.outcomes.items()}
    if len(set(digests.values())) > 1:
        yield f"final anchors differ: {digests}"


def progress(scenario: Scenario, record: Record, tolerance: float) -> Iterable[str]:
    """The swarm has learned what it was there to learn."""
    goal_N = torch.from_numpy(scenario.problem.goal)
    for peer, outcome in record.outcomes.items():
        anchor_N = torch.cat([value.flatten() for value in outcome.anchors.values()])
        distance = float((anchor_N - goal_N).square().mean().sqrt())
        if not distance <= tolerance:
            yield f"{peer} ended {distance:.3f} from the goal, allowed are {tolerance}"
