"""Who reads which rows, in swarms of production workers: never two the same in an epoch, and none is left out."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from decentral.codecs.codec import make_codec
from decentral.engine.worker import Worker
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.server.options import ServerOptions
from decentral.outer.follow import Follow
from decentral.outer.noloco import NoLoCo
from decentral.sim.faults import Fault, Kind
from decentral.sim.world import peer_id
from decentral.swarm.rows import num_chunks_of, rows_of
from decentral.types import Grant, PeerId
from tests.unit.engine.swarm import FOUNDER, PROBLEM, SECOND, STEP_S, THIRD, Plan, simulate

NUM_ROWS, SEED = 400, 3
NUM_CHUNKS = num_chunks_of(NUM_ROWS)
FOURTH = peer_id(3)
ROW_S = {FOUNDER: 0.02, SECOND: 0.05, THIRD: 0.03, FOURTH: 0.02}
"""A slow reader and quick ones."""
INT8 = make_codec("int8-b128")
METHODS: Mapping[str, Mapping[str, Any]] = {
    "all-reduce": {},
    "gossip": {"mixing": GossipOptions(INT8, INT8), "rule": NoLoCo()},
    "async": {"mixing": ServerOptions(lr=0.7, momentum=0.5), "rule": Follow()},
}


@dataclass
class Reading:
    """What was read: each worker has a chunk and claims the next one meanwhile, as ``run.rows`` does."""

    rows: list[tuple[int, int, PeerId]] = field(default_factory=list)
    claimed: dict[PeerId, list[Grant]] = field(default_factory=dict)
    ended: set[Grant] = field(default_factory=set)

    async def __call__(self, worker: Worker) -> None:
        me = worker.membership.own.peer
        coming = asyncio.create_task(self._claim(worker))
        while True:
            grant = await coming
            coming = asyncio.create_task(self._claim(worker))
            for row in rows_of(grant, NUM_ROWS, SEED).tolist():
                await asyncio.sleep(ROW_S[me])
                self.rows.append((grant.epoch, row, me))
            self.ended.add(grant)

    async def _claim(self, worker: Worker) -> Grant:
        grant = await worker.rows.take("rows", NUM_CHUNKS)
        self.claimed.setdefault(worker.membership.own.peer, []).append(grant)
        return grant

    def of(self, epoch: int) -> Counter[int]:
        """How often each row was read in an epoch."""
        return Counter(row for of, row, _ in self.rows if of == epoch)

    def lost(self, epoch: int, peers: tuple[PeerId, ...]) -> set[int]:
        """Rows that those who have gone had claimed and not read."""
        taken = {
            row
            for peer in peers
            for grant in self.claimed[peer]
            if grant.epoch == epoch
            for row in rows_of(grant, NUM_ROWS, SEED).tolist()
        }
        return taken - set(self.of(epoch))

    @property
    def num_whole(self) -> int:
        """Epochs of which nothing is being read any more, as each reader is two epochs further at the most."""
        return max(epoch for epoch, _, _ in self.rows) - 1


def _play(reading: Reading, **plan: Any) -> None:
    trainers = {FOURTH: lambda peer: PROBLEM.trainer(0, peer.clock.charge, step_s=STEP_S)}
    starts = {FOUNDER: 0.0, SECOND: 0.3, THIRD: 0.4, FOURTH: 6.0}
    simulate(Plan(**{"rounds": 30, "starts": starts, "trainers": trainers, "beside": reading, **plan}))


@pytest.mark.parametrize(
    "method",
    ["all-reduce", pytest.param("gossip", marks=pytest.mark.slow), pytest.param("async", marks=pytest.mark.slow)],
)
def test_one_dies_and_one_joins(method: str) -> None:
    reading = Reading()
    _play(reading, options=METHODS[method], faults=(Fault(Kind.KILL, 3.0, (2,)),))

    died = max(epoch for epoch, _, peer in reading.rows if peer == THIRD)
    assert reading.num_whole > died + 2
    assert {peer for _, _, peer in reading.rows} == set(ROW_S)
    for epoch in range(reading.num_whole):
        read, lost = reading.of(epoch), reading.lost(epoch, (THIRD,))
        assert set(read.values()) == {1}, "twice"
        assert set(read) | lost == set(range(NUM_ROWS))
        assert bool(lost) <= (epoch <= died + 1)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.CUT, 4.0, (1,), 15.0),
        pytest.param(Fault(Kind.PAUSE, 4.0, (0,), 9.0), marks=pytest.mark.slow),
        pytest.param(Fault(Kind.LOSS, 2.0, (), 20.0, 0.2), marks=pytest.mark.slow),
        pytest.param(Fault(Kind.MUTE, 4.0, (0,), 12.0), marks=pytest.mark.slow),
    ],
    ids=lambda fault: fault.kind.value,
)
def test_no_row_is_read_twice_whatever_the_network_does(fault: Fault) -> None:
    reading = Reading()
    _play(reading, faults=(fault,))

    assert reading.num_whole > 3
    for epoch in range(reading.num_whole):
        assert max(reading.of(epoch).values()) == 1


def test_what_a_leaver_had_not_read_is_read_in_the_next_epoch() -> None:
    reading = Reading()
    _play(reading, stops={SECOND: 4.0})

    left = max(grant.epoch for grant in reading.claimed[SECOND])
    lost = set().union(*(reading.lost(epoch, (SECOND,)) for epoch in range(left + 1)))
    assert lost
    assert set(reading.of(left + 1)) == set(range(NUM_ROWS))
