"""What must hold of every swarm, whatever happened to it. Each checker returns violations in words; none is good.

Legend: N = values, K = workers that finished; T, W and S as in ``counting``.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import Tensor

from decentral.engine.options import Outcome
from decentral.monitor.events import Event, RoundMixed
from decentral.sim.scenario import Record, Scenario
from decentral.types import PeerId, SyncKey
from scripts.benches.lib.counting import Counting

#: How often a step was counted is a sum of quotients, which are off by less.
_ROUNDING = 1e-3
#: Sums of virtual times are off by less.
_ROUNDING_S = 1e-6


def check(scenario: Scenario, record: Record, *, tolerance: float) -> list[str]:
    """All checkers for the all-reduce.

    Args:
        scenario: what was simulated.
        record: what became of it.
        tolerance: how far from the goal the final anchors may be, RMS.
    """
    return [*agreement(record), *reunion(scenario, record), *progress(scenario, record, tolerance)]


def check_gossip(
    scenario: Scenario, record: Record, *, tolerance: float, max_spread: float, paused: Collection[PeerId] = ()
) -> list[str]:
    """All checkers for gossip.

    Args:
        scenario: what was simulated.
        record: what became of it.
        tolerance: how far from the goal the mean of the final anchors may be, RMS.
        max_spread: how far from their mean the final anchors may be, RMS over all of them.
        paused: workers that were stopped for a while: their clocks went on while they could not.
    """
    return [*finish(scenario, record), *patience(record, paused), *closeness(scenario, record, tolerance, max_spread)]


def check_async(scenario: Scenario, record: Record, *, tolerance: float, max_spread: float) -> list[str]:
    """All checkers for runs with servers; see ``check_gossip``. Final anchors are of different age."""
    return [*finish(scenario, record), *closeness(scenario, record, tolerance, max_spread)]


def agreement(record: Record) -> Iterable[str]:
    """Members of one round hold the same anchor after it, bit for bit.

    A round is known by its key and members. A worker that was cut off and brought back may go through a
    round twice, once on its own and once with the others; only if it did so with the same members are there two digests
    to accept.
    """
    digests: dict[tuple[SyncKey, tuple[PeerId, ...]], dict[PeerId, set[str]]] = defaultdict(lambda: defaultdict(set))
    for peer, event in events(record):
        if isinstance(event, RoundMixed) and peer in event.members:
            digests[SyncKey(event.round, event.fragment), event.members][peer].add(event.digest)
    for (key, members), by_peer in digests.items():
        if not set.intersection(*by_peer.values()):
            yield f"members {members} of {key} differ: {dict(by_peer)}"


def finish(scenario: Scenario, record: Record) -> Iterable[str]:
    """Everybody alive at the end has finished the run, and there is somebody; who has no outcome died for good."""
    if not record.outcomes:
        yield "nobody is left"
    for peer, outcome in record.outcomes.items():
        if not outcome.done:
            yield f"{peer} did not finish the run"


def reunion(scenario: Scenario, record: Record) -> Iterable[str]:
    """Everybody alive at the end has finished the run with the same anchor."""
    yield from finish(scenario, record)
    digests = {peer: outcome.digest for peer, outcome in record.outcomes.items()}
    if len(set(digests.values())) > 1:
        yield f"final anchors differ: {digests}"


def progress(scenario: Scenario, record: Record, tolerance: float) -> Iterable[str]:
    """The swarm has learned what it was there to learn."""
    goal_N = torch.from_numpy(scenario.problem.goal)
    for peer, outcome in record.outcomes.items():
        distance = _rms(_anchor(outcome) - goal_N)
        if not distance <= tolerance:
            yield f"{peer} ended {distance:.3f} from the goal, allowed are {tolerance}"


def patience(record: Record, paused: Collection[PeerId] = ()) -> Iterable[str]:
    """In gossip nobody waits for others beyond the deadline that it has set itself; those ``paused`` could not tell."""
    for peer, event in events(record):
        if not isinstance(event, RoundMixed) or peer in paused:
            continue
        if event.waiting_s > event.deadline_s + _ROUNDING_S:
            yield f"{peer} waited {event.waiting_s:.3f} s in {event.round}, beyond its {event.deadline_s:.3f} s"


def closeness(scenario: Scenario, record: Record, tolerance: float, max_spread: float) -> Iterable[str]:
    """Replicas of a gossip differ, but their mean is near the goal and they are near their mean."""
    goal_N = torch.from_numpy(scenario.problem.goal)
    distance, spread = _rms(_anchors(record).mean(0) - goal_N), spread_of(record)
    if not distance <= tolerance:
        yield f"the mean of all ended {distance:.3f} from the goal, allowed are {tolerance}"
    if not spread <= max_spread:
        yield f"all ended {spread:.3f} from their mean, allowed are {max_spread}"


def counted_once(scenario: Counting, record: Record) -> Iterable[str]:
    """No inner step is in a final anchor more often than once, nor in part, nor without having been taken."""
    for peer, outcome in record.outcomes.items():
        places_TWS = scenario.places(outcome.anchors)
        times_TWS = places_TWS.round()
        wrong_TWS = (places_TWS - times_TWS).abs().gt(_ROUNDING) | times_TWS.gt(1) | times_TWS.lt(0)
        for worker, taken in enumerate(scenario.taken.values()):
            wrong_TWS[:, worker, taken:] |= places_TWS[:, worker, taken:] != 0
        if wrong_TWS.any():
            tensor, worker, step = wrong_TWS.nonzero()[0].tolist()
            times = float(places_TWS[tensor, worker, step])
            yield (
                f"{peer} counts {int(wrong_TWS.sum())} steps wrongly; step {step} of worker {worker}, which took "
                f"{scenario.taken[worker]}, {times:.4g} times"
            )


def most_counted(scenario: Counting, record: Record) -> Tensor:
    """Steps of each worker in the final anchor that has most [T, W]."""
    found = [scenario.counted(outcome.anchors) for outcome in record.outcomes.values()]
    return max(found, key=lambda steps_TW: float(steps_TW.sum()))


def spread_of(record: Record) -> float:
    """RMS distance of all final anchors from their mean."""
    anchors_KN = _anchors(record)
    return _rms(anchors_KN - anchors_KN.mean(0))


def events(record: Record) -> Iterator[tuple[PeerId, Event]]:
    """Of all lives of all workers."""
    for peer, lives in record.journals.items():
        for journal in lives:
            for event in journal.events:
                yield peer, event


def _anchor(outcome: Outcome) -> Tensor:
    return torch.cat([outcome.anchors[name].flatten() for name in sorted(outcome.anchors)])


def _anchors(record: Record) -> Tensor:
    """Of all who finished [K, N]."""
    return torch.stack([_anchor(outcome) for outcome in record.outcomes.values()])


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
