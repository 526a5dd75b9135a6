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
    """Members of one roll hold the same anchor after it, bit for bit.

    A roll is known by its key and members. A worker that was cut off and brought back may go through a round twice,
    once on its own and once with the others; only if it did so with the same members are there two digests to accept.
    """
    digests: dict[tuple[SyncKey, tuple[PeerId, ...]], dict[PeerId, set[str]]] = defaultdict(lambda: defaultdict(set))
    for peer, lives in record.journals.items():
        for event in (event for journal in lives for event in journal.events if isinstance(event, RoundMixed)):
            if peer in event.members:
                digests[SyncKey(event.round, event.fragment), event.members][peer].add(event.digest)
    for (key, members), by_peer in digests.items():
        if not set.intersection(*by_peer.values()):
            yield f"members {members} of {key} differ: {dict(by_peer)}"


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
        anchor_N = torch.cat([outcome.anchors[name].flatten() for name in sorted(outcome.anchors)])
        distance = float((anchor_N - goal_N).square().mean().sqrt())
        if not distance <= tolerance:
            yield f"{peer} ended {distance:.3f} from the goal, allowed are {tolerance}"
