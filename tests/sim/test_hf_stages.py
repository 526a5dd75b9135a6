"""A tiny Llama in simulated stages: one is lost and healed, blocks move, and the learning is that of one process."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decentral.codecs.codec import make_codec
from decentral.monitor.events import Recut, StretchDone
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Seat
from decentral.sim.faults import Fault, Kind
from decentral.sim.tape import FaultTape
from decentral.sim.world import peer_id
from decentral.workers import hf
from decentral.workers.hf.model import architecture_of, build_model, config_from
from tests.sim.pipelines import PipelineRecord, PipelineScenario, miscounts, simulate_pipeline, unfinished
from tests.support.hf import VOCAB, make_config

BLOCKS, MICROBATCHES, BLOCK_S = 4, 4, 0.02
CONFIG = architecture_of(make_config("llama", num_layers=BLOCKS))
SEED, LEARNING_RATE = 3, 0.1
pytestmark = pytest.mark.slow


#: A sequence is two documents, and the first token of the second is predicted from nothing.
LENGTHS = (6, 10)
COUNTED = sum(LENGTHS) - len(LENGTHS)


class Tokens:
    """Sequences from memory, with a document mask."""

    num_held_out = 2

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(1000 * slot + 10 * batch + index)
        tokens = torch.randint(VOCAB, (1, sum(LENGTHS)), generator=draw)
        labels = tokens.clone()
        labels[0, LENGTHS[0]] = -100
        positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
        row = torch.tensor([[COUNTED * MICROBATCHES, MICROBATCHES, *14 * [0]]])
        return torch.stack((tokens, positions)), torch.cat((labels, row))

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batch(99, 0, index)


def llama(charge: Callable[[float], None]) -> ModelBlocks:
    settings = {"model": {"config": CONFIG, "from_scratch": True}, "batch_sequences": MICROBATCHES, "seq_len": 16}
    settings |= {"data": {"document_mask": True}}
    optimizer = {"name": "SGD", "learning_rate": LEARNING_RATE, "weight_decay": 0.0, "warmup_steps": 0}
    optimizer |= {"floor_fraction": 1.0, "clip_norm": 1e9}
    blocks = hf.blocks(settings | {"optimizer": optimizer}, Seat(SEED, 0, total_steps=100), MICROBATCHES)

    def block(number: int) -> nn.Module:
        made = blocks.block(number)
        made.register_forward_pre_hook(lambda *_: charge(BLOCK_S))
        return made

    return replace(blocks, data=Tokens, block=block)


def play(*faults: Fault, **changes: Any) -> PipelineRecord:
    given = {"rounds": 5, "inner_steps": 2, "model": llama, "num_microbatches": MICROBATCHES, "until_s": 600.0}
    given["pipeline"] = {"codec": make_codec("fp32"), **changes.pop("pipeline", {})}
    scenario = PipelineScenario(**{**given, **changes})
    tape = FaultTape(faults)
    record = simulate_pipeline(scenario, tape)
    assert tape.unfired() == ()
    assert unfinished(scenario, record) == []
    assert miscounts(scenario, record) == []
    return record


def weights(record: PipelineRecord) -> dict[str, Tensor]:
    every = [outcome.anchors for outcomes in record.outcomes.values() for outcome in outcomes.values()]
    return {name: value for anchors in every for name, value in anchors.items()}


def in_one_process(steps: int) -> dict[str, Tensor]:
    model, source = build_model(config_from(CONFIG), SEED), Tokens()
    for step in range(steps):
        for index in range(MICROBATCHES):
            (tokens, positions), targets = source.batch(0, step, index)
            given = {"input_ids": tokens, "position_ids": positions, "labels": targets[:-1]}
            (model(**given, use_cache=False).loss / MICROBATCHES).backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= LEARNING_RATE * value.grad
                value.grad = None
    return {name: value.detach() for name, value in model.named_parameters()}


def assert_learnt(record: PipelineRecord, steps: int) -> None:
    expected, found = in_one_process(steps), weights(record)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_it_learns_what_one_process_learns() -> None:
    assert_learnt(play(healing="checkfree", num_spares=0), 10)


def test_it_learns_the_same_when_blocks_move() -> None:
    given = {"moves": True, "num_stages": 1, "blocks_per_stage": BLOCKS, "wanted": {2: ()}, "late": frozenset({2})}
    record = play(Fault(Kind.START, 1.0, (2,)), pipeline={"min_machines": 1}, until_s=100.0, **given)
    first, *_, last = [event.spans for _, event in record.events(Recut) if not event.problem]
    assert (first, last) == (((0, 4),), ((0, 2), (2, 4)))
    assert_learnt(record, 10)


def test_a_lost_stage_is_healed_from_its_neighbours() -> None:
    record = play(Fault(Kind.KILL, 4.2, (2,)))
    assert {event.stage: str(event.source) for event in record.recovered()} == {2: "blend"}
    losses = [event.loss for peer, event in record.events(StretchDone) if peer == peer_id(0)]
    assert max(losses) < 7
