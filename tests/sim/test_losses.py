"""What the loss of a member costs those who go on: a moment, not the time for which it might have been alive."""

import pytest

from decentral.monitor.events import RoundAborted, RoundMixed
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind
from decentral.sim.network import Conditions
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.world import peer_id
from decentral.swarm.matching import reducers
from decentral.swarm.timing import Timing
from decentral.types import SyncKey

WORKERS, STEPS = 4, 10
PEERS = tuple(peer_id(number) for number in range(WORKERS))
#: A round's inner steps take ten seconds, and an exchange 0.2: a call and its answer half of it.
SWARM = Scenario(
    5,
    WORKERS,
    rounds=5,
    plan=SyncPlan(STEPS),
    step_s=1.0,
    min_workers=WORKERS,
    together=True,
    conditions=Conditions(latency_s=0.05),
    timing=Timing(min_patience_s=8.0, beat_s=3.0, ttl_s=12.0),
)
ROUND = 3
#: When its members call for the participants, and when they have them.
CALL_S, CALLED_S = 41.3, 41.42


def held_s(*faults: Fault) -> dict[int, float]:
    """By round how long training stood still for it, of the one among those who live to the end for whom most."""
    record = simulate(SWARM, FaultTape(faults))
    held: dict[int, float] = {}
    for peer in record.outcomes:
        for event in record.journals[peer][0].events:
            if isinstance(event, RoundMixed | RoundAborted):
                held[event.round] = max(held.get(event.round, 0.0), event.held_s)
    assert len(record.outcomes) == WORKERS - len(faults)
    return held


def test_an_exchange_takes_a_moment() -> None:
    assert max(held_s().values()) < 0.4


@pytest.mark.parametrize("after_s", [0.0, 0.04, 0.07])
def test_a_reducer_that_died_in_the_round_is_dialled_until_it_is_sure(after_s: float) -> None:
    victim = PEERS.index(reducers(PEERS, SyncKey(ROUND, 0), 1)[0])
    held = held_s(Fault(Kind.KILL, CALLED_S + after_s, (victim,)))
    assert 1.0 < held.pop(ROUND) < 4.0
    assert max(held.values()) < 2.0


@pytest.mark.parametrize("victim", range(WORKERS))
def test_who_died_before_the_round_is_asked_for_once(victim: int) -> None:
    held = held_s(Fault(Kind.KILL, CALL_S - 0.5, (victim,)))
    assert max(held.values()) < 2.0
