"""Simulated pipelines whose cut changes while they run: blocks move to who is fast, has room, comes or stays."""

import asyncio
import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from decentral.engine.move_lead import MoveLead
from decentral.errors import CallTimeout
from decentral.monitor.events import BatchCounted, Recut, StretchDone
from decentral.pipeline.moves import FOLLOW, PREPARE, Prepared
from decentral.pipeline.parcels import HEAD, PIECE
from decentral.sim.faults import Fault, Kind
from decentral.sim.tape import FaultTape
from decentral.sim.transport import MemoryTransport
from decentral.sim.world import peer_id
from tests.sim import pipelines
from tests.sim.pipelines import (
    PipelineRecord,
    PipelineScenario,
    Source,
    simulate_pipeline,
    tiny_blocks,
    unfinished,
)

BLOCKS, BLOCK_S, HOPS_S = 12, 0.02, 0.16
"""A hop takes 0.02 s, and there are eight with three stages."""


def play(*faults: Fault, **changes: Any) -> PipelineRecord:
    """Three machines beside the head, for twelve blocks; whatever happens, every micro-batch is counted once."""
    given = {"rounds": 9, "inner_steps": 2, "num_stages": 3, "blocks_per_stage": 4, "num_spares": 0, "moves": True}
    given |= {"pipeline": {"min_machines": 3}, "num_microbatches": 2, "until_s": 200.0}
    return pipelines.play(*faults, **{**given, **changes})[1]


def cuts(record: PipelineRecord) -> list[list[int]]:
    """Blocks of the stages of every cut."""
    return [[stop - first for first, stop in event.spans] for _, event in record.events(Recut) if not event.problem]


def batch_s(record: PipelineRecord) -> float:
    """What a batch took in the end."""
    return min(event.seconds / 2 for event in [e for peer, e in record.events(StretchDone) if peer == peer_id(0)][-4:])


def expected_s(*loads: float, num_microbatches: int = 2) -> float:
    """By the formula of docs/algorithms/pipeline.md, with so many times ``BLOCK_S`` at each stage."""
    return BLOCK_S * (sum(loads) + (num_microbatches - 1) * max(loads)) + HOPS_S


def test_a_machine_that_becomes_slow_gives_blocks_away() -> None:
    record = play(slower={2: (3.0, 5.0)})
    first, last = cuts(record)
    assert (first, sum(last)) == ([4, 4, 4], BLOCKS)
    loads = [count * pace for count, pace in zip(last, (1, 3, 1), strict=True)]
    assert max(loads) == 6
    assert batch_s(record) == pytest.approx(expected_s(*loads), rel=0.02)
    (stop,) = [event for _, event in record.events(Recut)][1:]
    assert stop.seconds < expected_s(4, 4, 4)


@pytest.mark.slow
def test_memory_bounds_what_a_machine_gets_and_one_with_more_room_takes_more() -> None:
    """Three machines with room for four each are full; one that comes has room for all and is twice as fast."""
    record = play(
        Fault(Kind.START, 4.0, (4,)),
        room={1: 4, 2: 4, 3: 4},
        slower={1: (2.0, 0.0), 2: (2.0, 0.0), 3: (2.0, 0.0)},
        num_spares=1,
        wanted={4: ()},
        late=frozenset({4}),
    )
    assert cuts(record)[0] == [4, 4, 4]
    assert sorted(cuts(record)[-1]) == [2, 2, 2, 6]


@pytest.mark.slow
def test_blocks_that_fit_nowhere_are_waited_for() -> None:
    record = play(
        Fault(Kind.START, 10.0, (4,)), room={1: 4, 2: 4, 3: 3}, num_spares=1, wanted={4: ()}, late=frozenset({4})
    )
    assert all(event.step == 0 for _, event in record.events(Recut)[:1])
    assert len(cuts(record)[0]) == 4
    assert min(event.seconds for _, event in record.events(StretchDone)) > 0


@pytest.mark.slow
def test_who_comes_gets_blocks_and_who_leaves_gives_them_back() -> None:
    record = play(
        Fault(Kind.START, 4.0, (4,)), num_spares=1, wanted={4: ()}, late=frozenset({4}), leaves={4: 9.0}, rounds=20
    )
    found = cuts(record)
    assert found[0] == [4, 4, 4]
    assert [3, 3, 3, 3] in found
    assert found[-1] == [4, 4, 4]
    assert record.ended_at_s < 60.0
    assert record.outcomes[peer_id(4)] == {}


def test_who_comes_gets_blocks_though_one_takes_longer_to_fetch_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, and so seldom that a twentieth of the time goes into it."""
    order, fetch_s = MoveLead._order, 2 * expected_s(4, 4, 4)

    async def slow(self: MoveLead, *given: Any) -> Prepared | None:
        answer = await order(self, *given)
        return msgspec.structs.replace(answer, seconds=fetch_s * answer.num_fetched) if answer is not None else None

    monkeypatch.setattr(MoveLead, "_order", slow)
    record = play(Fault(Kind.START, 4.0, (4,)), num_spares=1, wanted={4: ()}, late=frozenset({4}), rounds=100)
    steps = [event.step for _, event in record.events(Recut) if event.num_moved]
    assert cuts(record)[-1] == [3, 3, 3, 3]
    assert len(steps) > 1
    assert all(after - before >= 20 * fetch_s / 0.64 for before, after in pairwise(steps)), "a batch takes no longer"


# -- the same as without moves ----------------------------------------------------------------------------------------


class OneProcess:
    """The same model as one, with an AdamW of its own; gradients are not clipped."""

    def __init__(self, num_microbatches: int) -> None:
        blocks = tiny_blocks(BLOCKS)
        embedding = blocks.embedding()
        self._layers = [embedding, *map(blocks.block, range(BLOCKS))]
        self._output = blocks.output(embedding)
        self._source, self._num = Source(0), num_microbatches
        values = [value for layer in [*self._layers, self._output] for value in layer.parameters()]
        self._optimizer = torch.optim.AdamW(values, lr=0.01)

    def loss(self, batch: int) -> float:
        """Of a batch, on which a step is taken."""
        self._optimizer.zero_grad()
        losses = [self._one(*self._source.batch(0, batch, index)) for index in range(self._num)]
        torch.stack(losses).mean().backward()
        self._optimizer.step()
        return sum(loss.item() for loss in losses) / self._num

    def _one(self, x: Tensor, targets: Tensor) -> Tensor:
        for layer in self._layers:
            x = layer(x)
        return self._output(x, targets)


def test_a_run_with_moves_learns_what_one_process_learns() -> None:
    """In the middle of a round as well, at whose ends nothing else happens: the outer rule is the plain mean."""
    record = play(
        Fault(Kind.START, 4.0, (4,)),
        slower={2: (3.0, 7.0)},
        num_spares=1,
        wanted={4: ()},
        late=frozenset({4}),
        inner_steps=3,
        rounds=8,
        clip_norm=math.inf,
    )
    assert len(cuts(record)) >= 2
    alone = OneProcess(2)
    expected = [alone.loss(batch) for batch in range(24)]
    found = [event.loss for peer, event in record.events(StretchDone) if peer == peer_id(0)]
    means = [sum(expected[first : first + 3]) / 3 for first in range(0, 24, 3)]
    assert found == pytest.approx(means, rel=0, abs=1e-5)


# -- what goes wrong --------------------------------------------------------------------------------------------------


class Lossy:
    """Loses the first request of a method that is sent to a machine once the run is under way, or its answer."""

    def __init__(self, method: str, *, answer: bool, skip: int = 0) -> None:
        self.lost = 0
        self._method = method
        self._answer = answer
        self._skip = skip

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def lossy(transport: Any, peer: Any, method: str, request: bytes, **limits: Any) -> bytes:
            if method != self._method or self.lost or self._skip > 0:
                self._skip -= method == self._method
                return await call(transport, peer, method, request, **limits)
            self.lost += 1
            if self._answer:
                await call(transport, peer, method, request, **limits)
            raise CallTimeout(f"{method} was lost")

        return lossy


@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize(
    ("method", "skip"), [(PREPARE, 0), (PREPARE, 3), (PREPARE, 4), (HEAD, 0), (PIECE, 0), (FOLLOW, 4)]
)
@pytest.mark.slow
def test_every_message_of_a_move_may_be_lost(
    method: str, skip: int, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = Lossy(method, answer=answer, skip=skip)
    monkeypatch.setattr(MemoryTransport, "call", lossy.wrap(MemoryTransport.call))
    record = play(slower={2: (3.0, 5.0)})
    assert lossy.lost
    assert len(cuts(record)) > 1


@pytest.mark.slow
def test_who_does_not_hear_of_the_new_cut_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    call = MemoryTransport.call

    async def deaf(transport: Any, peer: Any, method: str, request: bytes, **limits: Any) -> bytes:
        if method == FOLLOW and peer == peer_id(2):
            raise CallTimeout("it was lost")
        return await call(transport, peer, method, request, **limits)

    monkeypatch.setattr(MemoryTransport, "call", deaf)
    record = play(slower={2: (3.0, 5.0)}, rounds=8)
    assert len(cuts(record)) > 1


@pytest.mark.slow
def test_a_head_that_has_not_heard_from_all_stays_with_the_old_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    call, asked = MemoryTransport.call, []

    async def stubborn(transport: Any, peer: Any, method: str, request: bytes, **limits: Any) -> bytes:
        if method == HEAD and peer == peer_id(1):
            asked.append(peer)
            return b""  # it never has what it is asked for
        return await call(transport, peer, method, request, **limits)

    monkeypatch.setattr(MemoryTransport, "call", stubborn)
    record = play(Fault(Kind.START, 4.0, (4,)), num_spares=1, wanted={4: ()}, late=frozenset({4}), rounds=10)
    assert asked
    problems = [event for _, event in record.events(Recut) if event.problem]
    assert problems
    assert cuts(record)[0] == [4, 4, 4]


#: A run in which a move is about to come: its machines have checkpoints, and a spare takes what is lost.
STRUCK: dict[str, Any] = {"slower": {2: (3.0, 5.0)}, "num_spares": 1, "checkpoint_s": 1.0, "rounds": 12}


@functools.cache
def move_at() -> float:
    """When the move begins, in virtual seconds."""
    times: list[float] = []

    def watch(event: Any) -> None:
        if isinstance(event, Recut) and event.step:
            times.append(asyncio.get_running_loop().time() - event.seconds)

    play(**STRUCK, watch=watch)
    return times[0]


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("offset", range(9))
@pytest.mark.slow
def test_whoever_dies_in_a_move_the_run_goes_on_under_one_cut(victim: int, offset: int) -> None:
    """Before all are ready the old cut stays, afterwards it is the new one; a spare has the lost stage's checkpoint."""
    record = play(Fault(Kind.KILL, move_at() + 0.03 * offset, (victim,)), **STRUCK)
    alive = [processes[-1] for peer, processes in record.processes.items() if peer != peer_id(victim)]
    assert len({process.membership.own.cut for process in alive}) == 1


@pytest.mark.slow
def test_all_die_and_go_on_from_their_disks_whatever_the_cut_was() -> None:
    scenario = PipelineScenario(
        **{**STRUCK, "num_spares": 0, "num_stages": 3, "blocks_per_stage": 4, "inner_steps": 2, "num_microbatches": 2},
        moves=True,
        pipeline={"min_machines": 3},
        resumes=True,
        until_s=200.0,
    )
    all_of_them, at_s = (0, 1, 2, 3), move_at() + 2.5
    tape = FaultTape([Fault(Kind.KILL, at_s, all_of_them), Fault(Kind.START, at_s + 3.0, all_of_them)])
    record = simulate_pipeline(scenario, tape)
    assert tape.unfired() == ()
    assert unfinished(scenario, record) == []
    later = [life for life in record.lives if life.over]
    steps = sorted(event.step for life in later for event in life.events(BatchCounted) if event.stage == 0)
    assert steps == list(range(steps[0], 24))
    assert steps[0] > 0
    assert {event.step for life in later for event in life.events(Recut)} >= {steps[0]}
