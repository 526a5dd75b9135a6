"""``kill -9`` at exact moments of a round. Whatever the moment, the survivors end it with one verdict."""

from dataclasses import replace

from decentral.exchange.allreduce.leader import CONVENE
from decentral.exchange.allreduce.reducer import RESULT, SHARD
from decentral.monitor.events import RoundAborted
from decentral.sim.faults import Fault, Kind
from decentral.sim.network import Line
from decentral.sim.world import Machine
from decentral.types import PeerId
from tests.unit.engine.swarm import PEERS, STEP_S, Plan, Seen, simulate
from tests.unit.engine.test_rounds import check_agreement, check_weights

ROUNDS = 6
Message = tuple[float, str, str, str]


def round_by_round(plan: Plan) -> list[list[Message]]:
    """The messages of each round of a plan, each list up to the last contribution; nobody may be missing."""
    rounds: list[list[Message]] = [[]]
    for message in simulate(plan).messages:
        rounds[-1].append(message)
        if sum(what == SHARD for _, _, _, what in rounds[-1]) == len(PEERS) - 1:
            rounds.append([])
    assert len(rounds) == ROUNDS + 1
    return rounds


def called(messages: list[Message], method: str) -> PeerId:
    """Whom the others called."""
    (callee,) = {PeerId(receiver) for _, _, receiver, what in messages if what == method}
    return callee


def cast() -> tuple[int, PeerId, PeerId]:
    """A round, not among the first, that one peer leads and another one reduces; both of them."""
    for number, messages in list(enumerate(round_by_round(Plan(rounds=ROUNDS))))[2 : ROUNDS - 1]:
        leader, reducer = called(messages, CONVENE), called(messages, SHARD)
        if leader != reducer:
            return number, leader, reducer
    raise AssertionError("the leader is always the reducer")


ROUND, LEADER, REDUCER = cast()
# The lines of those that will be killed are slow, so that their replies leave one after the other.
PLAN = Plan(rounds=ROUNDS, machines={peer: Machine(Line(up_bytes_per_s=5000.0)) for peer in (LEADER, REDUCER)})


def span(plan: Plan, method: str) -> tuple[float, float]:
    """From the first message of a kind in the round to the last one's reply, in a run where nobody is killed."""
    times = [at_s for at_s, _, _, what in round_by_round(plan)[ROUND] if what == method]
    return times[0], times[-1] + 0.4


def moments(begin_s: float, end_s: float, count: int) -> list[float]:
    return [begin_s + (end_s - begin_s) * number / (count - 1) + 0.0005 for number in range(count)]


def check(seen: Seen, victim: PeerId) -> list[PeerId]:
    """What holds after every crash; returns the survivors."""
    assert seen.unfired == ()
    assert not seen.errors
    survivors = [peer for peer in PEERS if peer != victim]
    assert all(seen.outcomes[peer].done for peer in survivors)
    assert len({seen.outcomes[peer].digest for peer in survivors}) == 1
    check_weights(seen)
    assert seen.mixed(survivors[0])[ROUNDS - 1].members == tuple(survivors)
    return survivors


def test_crash_of_the_reducer_in_the_data_phase() -> None:
    kinds = set()
    for at_s in moments(*span(PLAN, SHARD), count=16):
        seen = simulate(replace(PLAN, faults=(Fault(Kind.KILL, at_s, (PEERS.index(REDUCER),)),)))
        survivors = check(seen, REDUCER)
        check_agreement(seen, *survivors)
        assert len({ROUND in seen.mixed(peer) for peer in survivors}) == 1, "one verdict for the survivors"
        asked = any(what == RESULT for _, _, _, what in seen.messages)
        kinds.add((ROUND in seen.mixed(survivors[0]), asked))
        for peer in survivors:
            reasons = {event.reason for event in seen.of(RoundAborted, peer) if event.round == ROUND}
            assert reasons <= {"deadline"}
            assert (ROUND in seen.mixed(peer)) != bool(reasons)
    # Lost with the reducer; saved by a member that had the answer; over before the crash.
    assert kinds == {(False, True), (True, True), (True, False)}


def test_crash_of_the_leader() -> None:
    # One member is a little late, so that the leader has to wait before it names the participants.
    late = next(peer for peer in PEERS if peer != LEADER)
    plan = replace(PLAN, step_s={late: 1.05 * STEP_S})
    with_participants = set()
    for at_s in moments(*span(plan, CONVENE), count=12):
        seen = simulate(replace(plan, faults=(Fault(Kind.KILL, at_s, (PEERS.index(LEADER),)),)))
        survivors = check(seen, LEADER)
        check_agreement(seen, *survivors)
        mixed = seen.mixed(survivors[0])[ROUND]
        with_participants.add(LEADER in mixed.members or any(who == LEADER for who, _ in mixed.absent))
    assert with_participants == {True, False}, "both sides of the naming of the participants were hit"
