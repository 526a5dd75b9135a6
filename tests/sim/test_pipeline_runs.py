"""Simulated pipelines against one process, with other methods of syncing, to their end, and among strangers."""

import asyncio
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.frame import pack as pack_frame
from decentral.errors import CallRefused
from decentral.exchange.gossip.options import GossipOptions
from decentral.exchange.server.options import ServerOptions
from decentral.monitor.events import BatchCounted, RoundMixed, StagePlaced, StretchDone
from decentral.outer.follow import Follow
from decentral.outer.noloco import NoLoCo
from decentral.pipeline.handover import pack_keep
from decentral.pipeline.packets import Commit, Failed, Hop, Packet, Settle
from decentral.pipeline.routing import stage_order
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind
from decentral.sim.world import SimPeer, peer_id
from decentral.swarm.message import to_wire
from decentral.types import PeerId
from tests.sim import pipelines
from tests.sim.pipelines import (
    BATCH,
    WIDTH,
    PipelineRecord,
    PipelineScenario,
    Source,
    tiny_blocks,
)

FP32 = make_codec("fp32")
Weights = dict[str, Tensor]


def play(*faults: Fault, **changes: Any) -> tuple[PipelineScenario, PipelineRecord]:
    return pipelines.play(*faults, **{"rounds": 4, "inner_steps": 2, "until_s": 600.0, **changes})


# -- one process ------------------------------------------------------------------------------------------------------


class OneProcess:
    """The same model as one, where each replica takes its AdamW step on its share of a batch and they are averaged.

    Args:
        scenario: with one inner step a round, or one replica.
        record: says who counted what.
    """

    def __init__(self, scenario: PipelineScenario, record: PipelineRecord) -> None:
        self._scenario = scenario
        self._source = Source(scenario.seed)
        blocks = tiny_blocks(scenario.num_stages, seed=scenario.seed)
        embedding = blocks.embedding()
        self._embedding, self._output = embedding, blocks.output(embedding)
        self._layers = [blocks.block(number) for number in range(scenario.num_stages)]
        named = [[*embedding.named_parameters(), *self._output.named_parameters()]]
        named += [[(f"blocks.{n}.weight", layer.weight)] for n, layer in enumerate(self._layers)]
        self.weights = [dict(stage) for stage in named]
        self._shares: dict[int, dict[tuple[int, PeerId], list[tuple[int, int, int]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        """By step, and by stage and replica."""
        for peer, event in record.events(BatchCounted):
            keys = [(event.slot, event.batch, index) for index in event.indices]
            self._shares[event.step][event.stage, peer] += keys
        self._replicas: dict[tuple[int, PeerId], tuple[list[torch.nn.Parameter], torch.optim.Optimizer]] = {}
        self.losses: list[dict[int, float]] = []
        """Of each step, the mean of each slot's batch."""

    def run(self) -> None:
        for step in sorted(self._shares):
            self._step(self._shares[step])

    def _step(self, shares: dict[tuple[int, PeerId], list[tuple[int, int, int]]]) -> None:
        found = {key: self._gradients(*key) for key in {key for keys in shares.values() for key in keys}}
        by_slot = defaultdict(list)
        for (slot, _, _), (loss, _) in found.items():
            by_slot[slot].append(loss)
        self.losses.append({slot: sum(losses) / len(losses) for slot, losses in by_slot.items()})
        for stage, named in enumerate(self.weights):
            results = []
            for (held, peer), keys in sorted(shares.items()):
                if held == stage and keys:
                    mean = [sum(found[key][1][stage][i] for key in keys) / len(keys) for i in range(len(named))]
                    results.append((len(keys), self._updated(stage, peer, mean)))
            total = sum(count for count, _ in results)
            for i, value in enumerate(named.values()):
                value.data.copy_(sum(count / total * result[i] for count, result in results))

    def _gradients(self, slot: int, batch: int, index: int) -> tuple[float, list[list[Tensor]]]:
        inputs, targets = self._source.batch(slot, batch, index)
        swap = self._scenario.healing == "checkfree+"
        x = self._embedding(inputs)
        for stage in stage_order(self._scenario.num_stages, index, swap=swap):
            x = self._layers[stage - 1](x)
        loss = self._output(x, targets)
        flat = torch.autograd.grad(loss, [value for named in self.weights for value in named.values()])
        parts = iter(flat)
        return loss.item(), [[next(parts) for _ in named] for named in self.weights]

    def _updated(self, stage: int, peer: PeerId, mean: list[Tensor]) -> list[Tensor]:
        """What a replica makes of the stage, with an AdamW of its own."""
        if (stage, peer) not in self._replicas:
            values = [torch.nn.Parameter(value.detach().clone()) for value in self.weights[stage].values()]
            self._replicas[stage, peer] = values, torch.optim.AdamW(values, lr=0.01)
        values, optimizer = self._replicas[stage, peer]
        for value, anchor, gradient in zip(values, self.weights[stage].values(), mean, strict=True):
            value.data.copy_(anchor)
            value.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        return [value.detach().clone() for value in values]


@pytest.mark.parametrize("healing", ["checkfree", "checkfree+"])
@pytest.mark.parametrize(("num_replicas", "inner_steps"), [(1, 2), (2, 1)])
def test_a_pipeline_learns_what_one_process_learns(healing: str, num_replicas: int, inner_steps: int) -> None:
    scenario, record = play(
        healing=healing, num_replicas=num_replicas, inner_steps=inner_steps, num_spares=0, rounds=8 // inner_steps
    )
    alone = OneProcess(scenario, record)
    before = [value.clone() for named in alone.weights for value in named.values()]
    alone.run()
    for outcomes in record.outcomes.values():
        for stage, outcome in outcomes.items():
            assert outcome.anchors.keys() == alone.weights[stage].keys()
            for name, value in alone.weights[stage].items():
                torch.testing.assert_close(outcome.anchors[name], value.detach(), rtol=1e-5, atol=1e-5)
    after = [value for named in alone.weights for value in named.values()]
    assert all(float((new - old).detach().abs().max()) > 0.01 for new, old in zip(after, before, strict=True))
    for slot in range(num_replicas):
        told = [event for peer, event in record.events(StretchDone) if peer == peer_id(5 * slot)]
        expected = [losses[slot] for losses in alone.losses]
        means = [sum(expected[i : i + inner_steps]) / inner_steps for i in range(0, len(expected), inner_steps)]
        assert [event.loss for event in told] == pytest.approx(means, rel=1e-5)


# -- other methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plan": SyncPlan(4, 2, 1), "mix_alpha": 0.5},
        {"rule": NoLoCo(), "mixing": GossipOptions(FP32, FP32)},
        {"rule": Follow(), "mixing": ServerOptions(lr=1.0, momentum=0.0, every=1, dylu=False, bound=0.0)},
    ],
    ids=["all-reduce", "fragments", "pairs", "servers"],
)
def test_replicas_of_a_stage_sync_by_any_method(options: dict[str, Any]) -> None:
    plan = {"blocks_per_stage": 2, "inner_steps": 4} if "plan" in options else {}
    _, record = play(num_replicas=2, num_spares=0, rounds=5, options=options, **plan)
    outcomes = defaultdict(list)
    for held in record.outcomes.values():
        for stage, outcome in held.items():
            outcomes[stage].append(outcome)
    assert {stage: len(found) for stage, found in outcomes.items()} == dict.fromkeys(range(5), 2)
    if "mixing" not in options:
        assert all(len({outcome.digest for outcome in found}) == 1 for found in outcomes.values())
        mixed = [event for _, event in record.events(RoundMixed)]
        assert sum(len(event.members) == 2 for event in mixed) >= 0.8 * len(mixed)
    losses = [event.loss for peer, event in record.events(StretchDone) if peer == peer_id(0)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.slow
def test_a_late_round_does_not_set_replicas_against_each_other() -> None:
    """Once they took turns at waiting for each other, a patience per round."""
    _, record = play(Fault(Kind.KILL, 8.0, (2,)), Fault(Kind.KILL, 8.0, (7,)), num_replicas=2, num_spares=1, rounds=12)
    assert record.ended_at_s < 60.0


# -- how runs end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_a_slow_head_does_not_stop_the_others(slow: int) -> None:
    _, record = play(num_replicas=2, num_spares=0, rounds=6, draw_s={slow: 1.0})
    counts = {slot: len({batch for one, batch, _ in record.counted(0) if one == slot}) for slot in (0, 1)}
    assert max(counts.values()) == 12
    assert record.ended_at_s < 120.0
    figures = record.processes[peer_id(slow)][-1]._metrics()
    assert 0.8 * figures.wall_s < figures.data_s <= figures.compute_s
    assert record.processes[peer_id(5 - slow)][-1]._metrics().data_s == 0.0


@pytest.mark.parametrize(("wanted", "stage"), [((), 0), ((2,), 2)])
def test_who_comes_late_is_one_more_replica(wanted: Any, stage: int) -> None:
    _, record = play(
        Fault(Kind.START, 4.2, (5,)), rounds=10, late=frozenset({5}), wanted={5: wanted}, pipeline={"num_replicas": 0}
    )
    assert record.outcomes[peer_id(5)].keys() == {stage}
    assert any(life.peer == peer_id(5) and life.events(BatchCounted) for life in record.lives)


@pytest.mark.slow
@pytest.mark.slow
def test_heads_that_come_after_others_died_have_different_slots() -> None:
    """Whoever has known a head that died goes on with its slot; a newcomer has a slot of its own."""
    _, record = play(
        Fault(Kind.KILL, 7.0, (0,)),
        Fault(Kind.KILL, 7.0, (5,)),
        Fault(Kind.START, 14.0, (11,)),
        num_replicas=2,
        num_spares=2,
        late=frozenset({11}),
        wanted={11: (0,)},
        rounds=30,
    )
    heads = {peer: event.slot for peer, event in record.events(StagePlaced) if event.stage == 0}
    assert heads == {peer_id(0): 0, peer_id(5): 1, peer_id(10): 0, peer_id(11): 2}
    batches = [batch for slot, batch, _ in record.counted(0) if slot == 0]
    assert max(batches) > 30


@pytest.mark.parametrize(
    ("leaver", "num_replicas"),
    [(0, 1), (2, 1), pytest.param(6, 2, marks=pytest.mark.slow), pytest.param(0, 2, marks=pytest.mark.slow)],
)
def test_who_is_asked_to_leave_leaves_nothing_uncounted(leaver: int, num_replicas: int) -> None:
    """A stage that nobody else holds comes back from its neighbours, as if its holder had died."""
    at_s = 4.2 if num_replicas == 1 else 7.0
    _, record = play(leaves={leaver: at_s}, num_replicas=num_replicas, rounds=8)
    (outcome,) = record.outcomes[peer_id(leaver)].values()
    assert not outcome.done
    assert len(record.recovered()) == (num_replicas == 1)


# -- strangers --------------------------------------------------------------------------------------------------------


async def attempts(peer: SimPeer, answers: dict[str, str]) -> None:
    """Whatever somebody who is no member can send."""
    head, first, second = (peer_id(number) for number in range(3))
    me = peer.peer_id
    frame = pack_frame(FP32, torch.full((BATCH * WIDTH,), 1e6))

    def packet(owner: PeerId, *, hop: int, through: PeerId = second, frame: bytes = frame) -> bytes:
        stages = [Hop(1, first), Hop(2, through), Hop(3, peer_id(3)), Hop(4, peer_id(4))]
        path = (Hop(0, owner), *stages, Hop(0, owner))
        return to_wire(Packet(0, 3, 0, 0, path, hop, True, (), frame))

    calls: dict[str, tuple[PeerId, str, bytes]] = {
        "own head": (first, "1/forward", packet(me, hop=1)),
        "head of another": (first, "1/forward", packet(head, hop=1)),
        "in the name of a stage": (second, "2/backward", packet(head, hop=2)),
        "not on its path": (first, "1/forward", packet(me, hop=2)),
        "a gradient to the head": (head, "0/backward", packet(head, hop=0)),
        "oversized": (first, "1/forward", packet(me, hop=1, frame=bytes(1 << 20))),
        "garbage": (first, "1/forward", b"\xc1" * 40),
        "commit": (first, "1/commit", to_wire(Commit(0, 10**9, 10**9, None, 1.0, 12))),
        "commit of the next": (second, "2/commit", to_wire(Commit(0, 4, 4, (), 1.0, 12))),
        "copy of a head": (first, "1/keep", pack_keep(0, 2**50, torch.zeros(2 * WIDTH))),
        "failure": (head, "0/failed", to_wire(Failed(0, 3, 0, 0, first, "dead"))),
        "question": (first, "1/settle", to_wire(Settle(0))),
    }
    for name, (to, method, request) in calls.items():
        try:
            await peer.transport.call(to, method, request, timeout_s=5.0, max_reply_bytes=1 << 16)
            answers[name] = "answered"
        except CallRefused as err:
            answers[name] = str(err)


def test_strangers_are_refused_and_harm_nothing() -> None:
    answers: dict[str, str] = {}

    async def intruder(peer: SimPeer) -> None:
        await asyncio.sleep(1.0)
        for _ in range(3):
            await attempts(peer, answers)

    changes: dict[str, Any] = {"rounds": 6, "num_spares": 1}
    _, alone = play(**changes)
    _, record = play(**changes, intruder=intruder)
    refused = {name for name, answer in answers.items() if answer != "answered"}
    assert answers.keys() - refused <= {"failure", "question"}
    assert len(refused) >= 10
    digests = [
        {stage: outcome.digest for held in one.outcomes.values() for stage, outcome in held.items()}
        for one in (alone, record)
    ]
    assert digests[0] == digests[1]
    assert math.isfinite(record.events(StretchDone)[0][1].loss)
