"""Swarms without faults: nothing may go wrong by itself, and bytes are what the codec says."""

from collections import Counter

import pytest

from decentral.codecs.codec import make_codec
from decentral.codecs.defaults import default_mean_codec
from decentral.codecs.frame import framed_nbytes
from decentral.exchange.allreduce.reducer import SHARD
from decentral.exchange.wire import MIN_SHARD_VALUES
from decentral.monitor.events import Repaired, RoundAborted, RoundMixed
from decentral.schedule.plan import SyncPlan
from decentral.sim.network import Conditions
from decentral.sim.scenario import Record, Scenario, simulate
from decentral.sim.transport import MemoryTransport
from decentral.types import PeerId
from scripts.benches.lib.checkers import check


def kinds(record: Record) -> Counter[str]:
    journals = (journal for lives in record.journals.values() for journal in lives)
    return Counter(type(event).__name__ for journal in journals for event in journal.events)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_every_round_has_everybody(num_workers: int) -> None:
    scenario = Scenario(1, num_workers, rounds=12, conditions=Conditions(jitter=0.5))
    record = simulate(scenario)
    assert not check(scenario, record, tolerance=0.2)
    assert not {RoundAborted.__name__, Repaired.__name__} & set(kinds(record))
    everybody = [e for e in record.journals[scenario.peers[0]][0].events if isinstance(e, RoundMixed)][-1]
    assert everybody.members == scenario.peers


@pytest.mark.slow
def test_many_workers_join_at_once() -> None:
    scenario = Scenario(1, 64, rounds=15, step_s=0.05, conditions=Conditions(jitter=0.3))
    record = simulate(scenario)
    assert not check(scenario, record, tolerance=0.6)
    # Joiners may miss the round that was under way; after that nobody is left out.
    seen = kinds(record)
    assert seen["RoundAborted"] == seen["Repaired"] <= 16
    last = [e for e in record.journals[scenario.peers[-1]][0].events if isinstance(e, RoundMixed)][-1]
    assert last.members == scenario.peers


@pytest.mark.parametrize("pace", [1.5, 5.0])
def test_a_slow_worker_holds_nobody_for_long(pace: float) -> None:
    scenario = Scenario(2, 4, rounds=20, step_s=1.0, paces={3: pace})
    record = simulate(scenario)
    # The tolerated one is waited for in every round, the straggler never for longer than the rest takes anyway.
    assert record.ended_at_s < 20 * 10 * min(pace, 2.0) * 1.2 + 60
    mixed = [e for e in record.journals[scenario.peers[3]][0].events if isinstance(e, RoundMixed)]
    assert any(scenario.peers[3] in event.members for event in mixed), "its work never counted"


@pytest.mark.parametrize("codec", ["fp32", "int8-b128", "int4-b128", "sign-b1024"])
def test_bytes_are_what_the_codec_says(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contributions and means of full rounds are within 2 % of the framed payloads."""
    num_workers, rounds, num_values = 3, 3, 8 * MIN_SHARD_VALUES
    sizes: list[tuple[int, int]] = []
    original = MemoryTransport.call

    async def counted(self: MemoryTransport, peer: PeerId, method: str, request: bytes, **limits: float) -> bytes:
        reply = await original(self, peer, method, request, **limits)  # type: ignore[arg-type]
        if method == SHARD and peer != self.peer_id:
            sizes.append((len(request), len(reply)))
        return reply

    monkeypatch.setattr(MemoryTransport, "call", counted)
    record = simulate(Scenario(4, num_workers, rounds, codec=codec, num_values=num_values))
    full = [e for e in record.journals[PeerId("sim-0000")][0].events if isinstance(e, RoundMixed)]
    full = [event for event in full if len(event.members) == num_workers]
    up = make_codec(codec)
    assert full
    for codec_used, column in zip((up, default_mean_codec(up)), zip(*sizes, strict=True), strict=True):
        predicted = len(full) * (num_workers - 1) * framed_nbytes(codec_used, num_values)
        assert sum(column) == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize(("fragments", "delay", "alpha"), [(2, 0, 0.0), (3, 2, 0.5)])
def test_fragments_and_delay(fragments: int, delay: int, alpha: float) -> None:
    """The plan of the streaming variants runs on the same engine, joins included."""
    plan = SyncPlan(inner_steps=12, num_fragments=fragments, delay_steps=delay)
    scenario = Scenario(6, 3, rounds=12, plan=plan, mix_alpha=alpha, conditions=Conditions(jitter=0.3))
    record = simulate(scenario)
    assert not check(scenario, record, tolerance=0.3)
    events = [e for e in record.journals[scenario.peers[0]][0].events if isinstance(e, RoundMixed)]
    assert {event.fragment for event in events} == set(range(fragments))
    assert all(event.members == scenario.peers for event in events[-fragments:])
