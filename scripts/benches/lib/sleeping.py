"""A model for a pipeline whose blocks sleep, the task ``scripts.benches.lib.sleeping:blocks`` of benches on pipelines.

A block's forward and backward pass take set times in which its machine's processor is free, so that five workers on
two cores overlap as five machines would. All else is real: activations have the size that they say, are encoded, sent
and decoded, gradients are summed and optimizers step. What a model learns cannot be measured with it.

Legend: B = sequences of a micro-batch, T = positions, D = width.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Seat
from decentral.workers import settings as reader

_NUM_BYTES = 256

Pause = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class SleepSettings:
    """Sizes and times."""

    num_blocks: int = 4
    sequences: int = 4
    """B."""
    context: int = 256
    """T."""
    width: int = 256
    """D."""
    forward_s: float = 0.05
    """Of a block and a micro-batch."""
    backward_s: float = 0.1


class _Paused(torch.autograd.Function):
    """The identity, with a pause in either direction."""

    @staticmethod
    def forward(context: Any, x: Tensor, pause: Pause, forward_s: float, backward_s: float) -> Tensor:
        context.pause = functools.partial(pause, backward_s)
        pause(forward_s)
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        context.pause()
        return gradients[0], None, None, None


class _Block(nn.Module):
    def __init__(self, settings: SleepSettings, pause: Pause) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(settings.width))
        self._times = pause, settings.forward_s, settings.backward_s

    def forward(self, x_BTD: Tensor) -> Tensor:
        paused: Tensor = _Paused.apply(x_BTD + self.shift, *self._times)  # type: ignore[no-untyped-call]
        return paused


class _Output(nn.Module):
    def __init__(self, settings: SleepSettings) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(settings.width))

    def forward(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        return (x_BTD * self.scale - targets_BT.unsqueeze(-1) / _NUM_BYTES).square().mean()


def _embedding(settings: SleepSettings, seed: int) -> nn.Module:
    table = nn.Embedding(_NUM_BYTES, settings.width)
    nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(seed))
    return table


class _Source:
    """Bytes drawn from slot, batch and index."""

    num_held_out = 1

    def __init__(self, settings: SleepSettings) -> None:
        self._shape = settings.sequences, settings.context

    def batch(self, slot: int, batch: int, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(hash((slot, batch, index)) % (1 << 62))
        return tuple(torch.randint(_NUM_BYTES, self._shape, generator=generator) for _ in range(2))  # type: ignore[return-value]

    def held_out(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batch(0, -1, index)


def blocks(settings: Mapping[str, Any], seat: Seat, num_microbatches: int) -> ModelBlocks:
    """See ``ports.model_blocks.ModelBlocks``. Raises ``ConfigError`` for a setting that there is not."""
    return make_blocks(reader.read(SleepSettings, settings), time.sleep, seat.run_seed)


def make_blocks(settings: SleepSettings, pause: Pause, seed: int) -> ModelBlocks:
    """The model.

    Args:
        settings: sizes and times.
        pause: takes so many seconds.
        seed: the run's.
    """
    return ModelBlocks(
        num_blocks=settings.num_blocks,
        activation_shape=(settings.sequences, settings.context, settings.width),
        num_tokens=settings.sequences * settings.context,
        embedding=lambda: _embedding(settings, seed),
        block=lambda number: _Block(settings, pause),
        output=lambda embedding: _Output(settings),
        optimizer=lambda named: torch.optim.AdamW(named.values(), lr=1e-4),
        learning_rate=lambda step: 1e-4,
        clip_norm=1.0,
        data=lambda: _Source(settings),
        check=lambda num_blocks, is_head, device: None,
    )
