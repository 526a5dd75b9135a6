"""Reducers are checked by lottery: who lies is proven to, by its own signatures, and barred by all; nobody else is."""

from typing import Any

import pytest
import torch

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack, unpack
from decentral.engine.worker import Worker
from decentral.exchange.allreduce.account import MAX_ACCOUNT_BYTES, Account
from decentral.exchange.allreduce.audit import ACCOUNT, EXHIBIT, Wanted
from decentral.exchange.allreduce.exchange import AllReduce
from decentral.exchange.allreduce.messages import Result, Shard
from decentral.exchange.allreduce.options import AllReduceOptions
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.wire import Part
from decentral.monitor.events import PeerLost, Restrained, RoundMixed
from decentral.sim.network import Conditions
from decentral.sim.scenario import Meddle, Record, Scenario, all_honest, simulate
from decentral.sim.world import SimPeer
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId
from scripts.benches.lib.attacks import liars

WORKERS, LIAR, ROUNDS = 4, 2, 8
FP32 = make_codec("fp32")


def played(meddle: Meddle = all_honest, **settings: Any) -> tuple[Scenario, Record]:
    """A swarm that does a shard over in nearly every round."""
    usual = {
        "rounds": ROUNDS,
        "together": True,
        "min_workers": WORKERS,
        "num_values": 2_000,
        "mixing": AllReduceOptions(audits=4.0, bound=0.0),
        "meddle": meddle,
    }
    scenario = Scenario(5, WORKERS, **{**usual, **settings})
    return scenario, simulate(scenario)


def told(record: Record, peer: PeerId, kind: type[Any]) -> list[Any]:
    return [event for life in record.journals[peer] for event in life.events if isinstance(event, kind)]


def accused(scenario: Scenario, record: Record) -> dict[PeerId, set[tuple[PeerId, str]]]:
    """By honest worker, whom it found to lie or to be silent."""
    return {
        peer: {(e.peer, e.kind) for e in told(record, peer, Restrained) if e.kind in ("proven", "silent")}
        for number, peer in enumerate(scenario.peers)
        if number != LIAR
    }


def test_a_reducer_that_lies_is_proven_to_and_barred_by_all() -> None:
    """It scales means by 3, which no bound and no doubt tells from an honest one."""
    scenario, record = played(liars("reducer-3", (LIAR,)))
    liar = scenario.peers[LIAR]
    for peer, found in accused(scenario, record).items():
        assert found == {(liar, "proven")}
        assert "put out" in next(event.reason for event in told(record, peer, PeerLost) if event.peer == liar)
        assert liar not in told(record, peer, RoundMixed)[-1].members
    assert len({record.outcomes[peer].digest for n, peer in enumerate(scenario.peers) if n != LIAR}) == 1


def counts_other_parts(number: int, worker: Worker, peer: SimPeer) -> None:
    """A reducer that takes the mean over parts of its own making in place of others', and accounts for these."""
    if number != LIAR:
        return
    assert isinstance(worker._exchange, AllReduce)
    reducer = worker._exchange._reducer
    assert reducer._books is not None
    enter = reducer._enter

    async def forged(sender: PeerId, shard: Shard, reduction: Any) -> None:
        if shard.frame and sender != peer.peer_id:
            frame = pack(FP32, -unpack(shard.frame, FP32, reduction.part.numel))
            shard = Shard(shard.participants, shard.index, shard.weight, frame, shard.seal)
        await enter(sender, shard, reduction)

    reducer._enter = forged  # type: ignore[method-assign]
    reducer._books.check_shard = lambda sender, shard, digest: None  # type: ignore[method-assign]


def gives_no_account(number: int, worker: Worker, peer: SimPeer) -> None:
    if number == LIAR:
        liars("reducer-3", (LIAR,))(number, worker, peer)
        assert isinstance(worker._exchange, AllReduce)
        assert worker._exchange._books is not None
        worker._exchange._books.account = lambda participants, index: b""  # type: ignore[method-assign]


def slanders(forged: str) -> Meddle:
    """A member that accuses honest reducers, with account or parts of its own making, or as they are."""

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        if number != LIAR:
            return
        assert isinstance(worker._exchange, AllReduce)
        auditor, books = worker._exchange._auditor, worker._exchange._books
        assert auditor is not None
        assert books is not None
        ask, prove = auditor._ask, books.prove

        async def accuse(source: PeerId, packed: bytes, index: int) -> bool:
            account = await ask(source, ACCOUNT, Result(packed, index), MAX_ACCOUNT_BYTES)
            used = from_wire(Account, account).used
            parts = [await ask(source, EXHIBIT, Wanted(packed, index, n), 1 << 20) for n in range(len(used) + 1)]
            if forged == "parts":
                parts[0] = pack(FP32, torch.ones((len(parts[0]) - 40) // 4))
            if forged == "account":
                account = to_wire(Account(used[1:], 1.0))
            prove(packed, index, account, parts)
            return True

        auditor._look = accuse  # type: ignore[method-assign]

    return meddle


def test_a_reducer_that_counts_parts_which_nobody_signed_is_proven_to_lie() -> None:
    scenario, record = played(counts_other_parts)
    for found in accused(scenario, record).values():
        assert found == {(scenario.peers[LIAR], "proven")}


@pytest.mark.slow
def test_a_reducer_that_gives_no_account_is_doubted_and_not_barred() -> None:
    scenario, record = played(gives_no_account, rounds=16)
    found = accused(scenario, record)
    assert set().union(*found.values()) == {(scenario.peers[LIAR], "silent")}


@pytest.mark.parametrize(
    "forged", ["parts", *(pytest.param(other, marks=pytest.mark.slow) for other in ("account", "nothing"))]
)
def test_nobody_is_barred_on_anybodys_word(forged: str) -> None:
    workers: list[Worker] = []

    def meddle(number: int, worker: Worker, peer: SimPeer) -> None:
        slanders(forged)(number, worker, peer)
        workers.append(worker)

    scenario, record = played(meddle)
    for number, worker in enumerate(workers):
        assert isinstance(worker._exchange, AllReduce)
        assert worker._exchange._auditor is not None
        idle = worker._exchange._auditor._idle[scenario.peers[LIAR]]
        assert number == LIAR or 0 < idle <= 4, "accusations are looked at, and not without end"
    assert not any(accused(scenario, record).values())
    mixed = told(record, scenario.peers[0], RoundMixed)
    assert set(mixed[-1].members) == set(scenario.peers)


@pytest.mark.parametrize("codec", ["int8-b128", pytest.param("int4-b128", marks=pytest.mark.slow)])
def test_honest_members_whose_messages_are_lost_are_never_accused(codec: str) -> None:
    """Parts come late or never, twice or in another order, and rests of means are added."""
    found: list[str] = []

    def note(number: int, worker: Worker, peer: SimPeer) -> None:
        assert isinstance(worker._exchange, AllReduce)
        auditor = worker._exchange._auditor
        assert auditor is not None
        examine = auditor._examine

        async def noted(source: PeerId, packed: bytes, participants: Participants, part: Part) -> str:
            found.append(await examine(source, packed, participants, part))
            return found[-1]

        auditor._examine = noted  # type: ignore[method-assign]

    scenario, record = played(
        note,
        conditions=Conditions(loss=0.03, duplicate=0.05, reorder=0.1),
        codec=codec,
        mixing=AllReduceOptions(audits=4.0),
        num_values=8_000,
        rounds=12,
    )
    assert len(found) > ROUNDS
    assert set(found) == {""}
    assert not any(e.kind == "proven" for peer in scenario.peers for e in told(record, peer, Restrained))
