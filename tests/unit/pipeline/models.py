"""Models in pieces for tests, the same models in one process, and a pipeline that is run by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from decentral.pipeline.compute import HeadCompute, Key, StageCompute
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Seat
from decentral.workers import lm
from decentral.workers.lm.model import GPT
from decentral.workers.lm.settings import read_settings

NUM_BLOCKS = 4
NUM_MICROBATCHES = 4


def lm_settings(**changed: object) -> dict[str, object]:
    model = {"d_model": 32, "num_layers": NUM_BLOCKS, "num_heads": 2, "context": 16}
    return {"model": {**model, **changed}, "batch_sequences": 8, "val_batches": 2}


def lm_blocks(*, data: Sequence[str] = (), **changed: object) -> ModelBlocks:
    seat = Seat(run_seed=3, stream_seed=0, total_steps=50, data=tuple(data))
    return lm.blocks(lm_settings(**changed), seat, NUM_MICROBATCHES)


def with_plain_steps(blocks: ModelBlocks) -> ModelBlocks:
    """The same model, whose step is ``w <- w - gradient``: what moved is the gradient that was applied."""
    return replace(
        blocks,
        optimizer=lambda named: torch.optim.SGD(list(named.values()), lr=1.0),
        learning_rate=lambda step: 1.0,
        clip_norm=math.inf,
    )


def spans(num_stages: int) -> list[tuple[int, int]]:
    size = NUM_BLOCKS // num_stages
    return [(stage * size, stage * size + size) for stage in range(num_stages)]


class Pipeline:
    """A head and one replica of every stage."""

    def __init__(self, blocks: ModelBlocks, num_stages: int) -> None:
        self.head, self.marks = HeadCompute(blocks), blocks.marks
        self.stages = [StageCompute(blocks, first, stop) for first, stop in spans(num_stages)]

    @property
    def parts(self) -> list[HeadCompute | StageCompute]:
        return [self.head, *self.stages]

    def parameters(self) -> dict[str, Tensor]:
        return {name: value.clone() for part in self.parts for name, value in part.parameters().items()}

    def shake(self) -> None:
        """Weights under which every block has a say: fresh ones of the language model pass on what they get."""
        generator = torch.Generator().manual_seed(9)
        for part in self.parts:
            part.load({n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in part.parameters().items()})

    def run(self, batch: Sequence[tuple[Tensor, Tensor]], orders: Sequence[Sequence[int]], number: int = 0) -> float:
        """All micro-batches forwards, then all backwards; their mean loss. Orders count stages from 1."""
        keys: list[Key] = [(0, number, index) for index in range(len(batch))]
        reached = []
        for key, (inputs, _), order in zip(keys, batch, orders, strict=True):
            x, marks = self.head.embed(key, inputs), self.marks(inputs)
            for stage in order:
                x = self.stages[stage - 1].forward(key, x, marks=marks)
            reached.append(x)
        total = 0.0
        for key, y, (_, targets), order in zip(keys, reached, batch, orders, strict=True):
            loss, gradient = self.head.loss(key, y, targets)
            for stage in reversed(order):
                gradient = self.stages[stage - 1].backward(key, gradient)
            self.head.finish(key, gradient)
            total += loss
        return total / len(batch)


def whole_model(weights: Mapping[str, Tensor], **changed: object) -> GPT:
    """The language model in one process, with these weights."""
    model = GPT(read_settings(lm_settings(**changed)).model, torch.Generator())
    model.load_state_dict(dict(weights))
    return model


def whole_loss(model: GPT, batch: Sequence[tuple[Tensor, Tensor]], orders: Sequence[Sequence[int]]) -> Tensor:
    """Mean loss of the model in one process, its blocks in the order in which stages of a path hold them."""
    blocks, losses = model.blocks, []
    for (inputs, targets), order in zip(batch, orders, strict=True):
        held = [spans(len(order))[stage - 1] for stage in order]
        model.blocks = nn.ModuleList(blocks[number] for span in held for number in range(*span))
        losses.append(model.loss(torch.cat((inputs, targets[:, -1:]), dim=1)))
    model.blocks = blocks
    return torch.stack(losses).mean()


def lm_batch(number: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(number)
    windows = [torch.randint(0, 256, (2, 17), generator=generator) for _ in range(NUM_MICROBATCHES)]
    return [(window_BT[:, :-1], window_BT[:, 1:]) for window_BT in windows]
