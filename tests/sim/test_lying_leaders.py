"""What a member that leads rounds can do to the others, and what becomes of it; and replays."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from decentral.engine.worker import Worker
from decentral.errors import TransportError
from decentral.exchange.allreduce.leader import CONVENE
from decentral.exchange.allreduce.messages import Answer, Convene, ConveneReply
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.allreduce.reducer import SHARD
from decentral.monitor.events import RoundAborted, RoundMixed
from decentral.ports.transport import Handler
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.world import SimPeer, peer_id
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId
from scripts.benches.lib.deceits import lead

WORKERS, LIAR, ROUNDS = 4, 1, 20
#: A stalled round costs no more than this.
PATIENT = Timing(max_patience_s=10.0)
#: Makes another handler of one.
Lie = Callable[[Handler, PeerId], Handler]


def played(method: str, lie: Lie, **settings: Any) -> tuple[Scenario, Record]:
    """A swarm in which one member answers a method in another way."""

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        serve = peer.transport.serve

        async def serving(name: str, handler: Handler, **limits: Any) -> None:
            await serve(name, lie(handler, peer.peer_id) if name == method else handler, **limits)

        if number == LIAR:
            peer.transport.serve = serving  # type: ignore[method-assign]

    usual = {"together": True, "min_workers": WORKERS, "timing": PATIENT, "num_values": 600, "meddle": meddle}
    scenario = Scenario(1, WORKERS, **{"rounds": ROUNDS, **usual, **settings})
    return scenario, simulate(scenario)


def told(record: Record, peer: PeerId, kind: type[Any]) -> list[Any]:
    return [event for life in record.journals[peer] for event in life.events if isinstance(event, kind)]


def honest(scenario: Scenario) -> list[PeerId]:
    return [peer for number, peer in enumerate(scenario.peers) if number != LIAR]


@pytest.mark.parametrize("kind", [Answer.WAIT, Answer.REDIRECT])
def test_a_leader_that_stalls_is_passed_over_after_one_round(kind: Answer) -> None:
    """Or sends others round in a circle, here to itself."""

    def stall(handler: Handler, me: PeerId) -> Handler:
        async def wait(sender: PeerId, request: bytes) -> bytes:
            await asyncio.sleep(PATIENT.hold_s if kind is Answer.WAIT else 0.0)
            return to_wire(ConveneReply(kind, source=me if kind is Answer.REDIRECT else None))

        return wait

    scenario, record = played(CONVENE, stall)
    for peer in honest(scenario):
        aborted = [event for event in told(record, peer, RoundAborted) if event.reason == "deadline"]
        # It would have led five rounds of twenty.
        assert len(aborted) == 1
        assert len(told(record, peer, RoundMixed)) >= ROUNDS - 2
    assert len({record.outcomes[peer].digest for peer in honest(scenario)}) == 1


def test_who_is_left_out_by_a_leader_gets_the_mean_and_its_work_counts_in_the_next_round() -> None:
    victim = PeerId("sim-0000")

    def exclude(handler: Handler, me: PeerId) -> Handler:
        async def name_others(sender: PeerId, request: bytes) -> bytes:
            reply = from_wire(ConveneReply, await handler(sender, request))
            if reply.kind is not Answer.PARTICIPANTS:
                return to_wire(reply)
            named = from_wire(Participants, reply.participants)
            members = tuple(peer for peer in named.members if peer != victim)
            listed = Participants(named.key, named.leader, named.serial, named.base, members, ((victim, "late"),))
            if sender == victim:
                return to_wire(ConveneReply(Answer.BEHIND, to_wire(listed), me))
            return to_wire(ConveneReply(Answer.PARTICIPANTS, to_wire(listed)))

        return name_others

    scenario, record = played(CONVENE, exclude)
    assert len({record.outcomes[peer].digest for peer in scenario.peers}) == 1
    left_out = [event.round for event in told(record, PeerId("sim-0002"), RoundMixed) if victim not in event.members]
    mixed = told(record, victim, RoundMixed)
    assert left_out
    assert len(mixed) == ROUNDS
    assert {event.round for event in mixed if victim not in event.members} == set(left_out)


def test_a_leader_that_names_two_more_than_its_like_is_joined_by_neither() -> None:
    """They would take for the mean of a round what two liars of four make of it."""
    workers, liars = 8, (3, 6)
    named = [peer_id(number) for number in (*liars, 0, 1)]

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        if number in liars:
            lead(worker, peer, named)

    scenario = Scenario(
        1, workers, rounds=8, together=True, min_workers=workers, timing=PATIENT, num_values=600, meddle=meddle
    )
    record = simulate(scenario)
    honest = [peer for number, peer in enumerate(scenario.peers) if number not in liars]
    for peer in honest:
        mixed = told(record, peer, RoundMixed)
        assert len(mixed) == 8
        assert all(set(honest) <= set(event.members) for event in mixed)


def test_a_leader_that_answers_with_anything_leads_no_more_after_one_round() -> None:
    asked: list[int] = []

    def refuse(handler: Handler, me: PeerId) -> Handler:
        async def anything(sender: PeerId, request: bytes) -> bytes:
            if sender != me:
                asked.append(from_wire(Convene, request).key.round)
            return to_wire(ConveneReply(Answer.PARTICIPANTS, b"anything"))

        return anything

    scenario, record = played(CONVENE, refuse)
    assert len(set(asked)) == 1
    for peer in honest(scenario):
        assert len(told(record, peer, RoundMixed)) == ROUNDS
        assert not told(record, peer, RoundAborted)


def test_contributions_that_are_sent_again_in_later_rounds_change_no_bit() -> None:
    """A contribution names the participants of its round, which has an answer already, or is refused."""
    sent: list[tuple[PeerId, bytes]] = []
    again: list[bytes | None] = []

    def replay(number: int, worker: Worker, peer: SimPeer) -> None:
        call = peer.transport.call

        async def calling(to: PeerId, method: str, request: bytes, **limits: Any) -> bytes:
            if method == SHARD:
                sent.append((to, request))
                for old, recorded in sent[:-1]:
                    for reducer in (old, to):
                        try:
                            again.append(await call(reducer, SHARD, recorded, timeout_s=5.0, max_reply_bytes=1 << 20))
                        except TransportError:
                            again.append(None)
            return await call(to, method, request, **limits)

        if number == LIAR:
            peer.transport.call = calling  # type: ignore[method-assign]

    scenario, record = played("", unchanged, meddle=replay, rounds=6, num_values=20_000)
    _, quiet = played("", unchanged, rounds=6, num_values=20_000)
    assert again
    assert {record.outcomes[peer].digest for peer in scenario.peers} == {quiet.outcomes[scenario.peers[0]].digest}


def unchanged(handler: Handler, me: PeerId) -> Handler:
    return handler
