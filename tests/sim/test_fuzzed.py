"""A member that sends the others a hundred thousand broken messages harms nobody but itself."""

import asyncio
from typing import Any

import pytest

from decentral.codecs.codec import make_codec
from decentral.engine.rows import _Claim
from decentral.engine.worker import Worker
from decentral.exchange.allreduce.audit import Wanted
from decentral.exchange.allreduce.leader import Leader
from decentral.exchange.allreduce.messages import Held, Result
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.gossip.messages import Visit
from decentral.exchange.gossip.options import GossipOptions, RandomSwaps
from decentral.exchange.server.messages import Question
from decentral.exchange.server.options import ServerOptions
from decentral.outer.diloco import DiLoCo
from decentral.outer.follow import Follow
from decentral.outer.noloco import NoLoCo
from decentral.schedule.every import Every
from decentral.sim.faults import Fault, Kind
from decentral.sim.scenario import Scenario, simulate
from decentral.sim.tape import FaultTape
from decentral.sim.world import SimPeer, peer_id
from decentral.state.download.pieces import AskValues, Positions
from decentral.state.guard import _Wanted
from decentral.swarm.message import to_wire
from decentral.types import SyncKey
from tests.sim.pipelines import PipelineScenario, simulate_pipeline, unfinished
from tests.support.fuzzing_member import FuzzingMember

INT8 = make_codec("int8-b8")
ALONE = DiLoCo(lr=0.7, momentum=0.5, nesterov=False)
METHODS: dict[str, dict[str, Any]] = {
    "all-reduce": {"protect": 1, "save_every": Every(seconds=2.0), "momentum": 0.5, "codec": "int8-b8"},
    "gossip": {"rule": NoLoCo(), "mixing": GossipOptions(INT8, INT8), "codec": "int8-b8"},
    "random gossip": {"rule": ALONE, "mixing": GossipOptions(INT8, INT8, swaps=RandomSwaps(1.0)), "codec": "int8-b8"},
    "async": {"rule": Follow(), "mixing": ServerOptions(lr=0.7, momentum=0.5), "codec": "int8-b8"},
}
WORKERS, LIAR = 5, 2
#: When all stages of a pipeline have a holder, virtual seconds.
_PLACED_S = 2.0
LIST = to_wire(Participants(SyncKey(1, 0), peer_id(0), 0, "base", (peer_id(0), peer_id(2))))
#: Of what members of these swarms never call, or seldom.
EXAMPLES = {
    "rows": [to_wire(_Claim("data", 0, 1, (0, bytes(32))))],
    "gossip.poll": [to_wire(Visit(0, 8))],
    "guard.claim": [to_wire(_Wanted(peer_id(1), "d1gest", 0))],
    "guard.fetch": [to_wire(_Wanted(peer_id(1), "d1gest", 0))],
    "server.fetch": [to_wire(Question(0))],
    "held": [to_wire(Held(3, 0))],
    "audit.account": [to_wire(Result(LIST, 0))],
    "audit.exhibit": [to_wire(Wanted(LIST, 0, 1))],
    "audit.accuse": [to_wire(Result(LIST, 0))],
    "doubted": [LIST],
    "state.values": [to_wire(AskValues((Positions("d1gest", (0, 5)),)))],
}
PIPELINE = "pipeline"
#: What is held after all mutants may be so much more than what is after half of them: gatherings, means and claims are
#: remembered for some rounds, within bounds.
GROWTH_BYTES = 1 << 18


def fuzzed(method: str, count: int) -> FuzzingMember:
    """Play a swarm in which one member sends mutants; the others end with all rounds, and finite values."""
    member = FuzzingMember(peer_id(LIAR), 1, count, EXAMPLES)

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        if number == LIAR:
            tasks.append(asyncio.get_running_loop().create_task(member.run(peer.transport._network)))

    tasks: list[asyncio.Task[None]] = []
    settings = {"together": True, "latest": 1, "min_workers": WORKERS - 1, **METHODS[method]}
    scenario = Scenario(1, WORKERS, 8 + count // 250, meddle=meddle, **settings)
    record = simulate(scenario, FaultTape([Fault(Kind.START, 2.0, (WORKERS - 1,))]))
    honest = [record.outcomes[peer] for number, peer in enumerate(scenario.peers) if number != LIAR]
    assert all(outcome.done for outcome in honest)
    assert all(bool(values.isfinite().all()) for outcome in honest for values in outcome.anchors.values())
    return member


def fuzzed_pipeline(count: int) -> FuzzingMember:
    """The same of a pipeline, in which a holder of a stage does it."""
    member = FuzzingMember(peer_id(1), 1, count, EXAMPLES)

    async def begin(peer: SimPeer) -> None:
        await asyncio.sleep(_PLACED_S)
        await member.run(peer.transport._network)

    scenario = PipelineScenario(num_stages=2, num_microbatches=2, rounds=4 + count // 250, intruder=begin)
    record = simulate_pipeline(scenario)
    assert unfinished(scenario, record) == []
    return member


_SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("method", "count"),
    [
        *[pytest.param(method, 400, id=method) for method in METHODS],
        *[pytest.param(method, 20_000, marks=_SLOW, id=f"{method}, many") for method in (*METHODS, PIPELINE)],
    ],
)
def test_mutants_of_a_member_are_refused_or_answered_and_nothing_is_kept_of_them(method: str, count: int) -> None:
    member = fuzzed_pipeline(count) if method == PIPELINE else fuzzed(method, count)
    assert member.tried.total() == count
    assert not member.faults
    half, whole = member.held_bytes
    assert whole < half + GROWTH_BYTES
    # Else the mutants were so broken, or the methods so busy, that nothing was tried.
    assert member.answered.total() > count / 10
    assert len(member.tried) >= 10


def test_a_handler_that_raises_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Leader, sender: str, request: bytes) -> bytes:
        return request[1 << 20 :] or bytes([request[1 << 20]])

    monkeypatch.setattr(Leader, "_pong", broken)
    member = fuzzed("all-reduce", 300)
    assert any("ping: IndexError" in fault for fault in member.faults)
