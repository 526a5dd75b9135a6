"""What one stage of a pipeline computes: its blocks forwards and backwards, gradients by data slot, optimizer steps.

It runs on the clock's thread, one call at a time, and knows neither peers nor paths nor whether a micro-batch was
already counted: its callers tell it.

Graphs are kept only for micro-batches between their forward and their backward pass. When the weights change in
between, a kept graph would mix old activations with new weights: it is dropped at once, and the backward pass computes
the forward pass again from the kept input. Gradients are summed in place, one sum for each slot in use.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decentral.errors import ConfigError
from decentral.ports.model_blocks import ModelBlocks
from decentral.tensors.inner import InnerModel

#: Slot, batch, index of a micro-batch.
Key = tuple[int, int, int]


@dataclass(slots=True)
class _InFlight:
    """A micro-batch between its forward and its backward pass."""

    x: Tensor
    y: Tensor | None
    """With its graph; None when the weights have changed since."""
    marks: bytes
    """See ``ModelBlocks``."""


class _Part(InnerModel):
    """A stage: its parameters with their optimizer, micro-batches in flight and sums of gradients.

    Args:
        blocks: the model.
        named: all parameters of the stage by their names in the whole model.
        device: where they are.
    """

    def __init__(self, blocks: ModelBlocks, named: Mapping[str, nn.Parameter], device: str) -> None:
        super().__init__(named, blocks.optimizer, blocks.learning_rate, blocks.clip_norm)
        self._device = device
        self._in_flight: dict[Key, _InFlight] = {}
        self._sums: dict[int, list[Tensor | None]] = {}

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Overwrite the named parameters; see ``InnerModel.load``."""
        super().load(parameters)
        self._drop_graphs()

    def validate(self) -> float:
        """NaN: no stage has a loss of its own."""
        return math.nan

    def apply(self, slots: Sequence[int], num_microbatches: int, step: int, lr_scale: float = 1.0) -> float:
        """Take an optimizer step on ``sum of the gradients of these slots / num_microbatches``, clipped.

        The sums are used up, also where no step is taken.

        Args:
            slots: whose sums to take.
            num_microbatches: micro-batches behind them; with 0 nothing happens to the weights.
            step: global step, for the learning rate.
            lr_scale: factor on the learning rate.

        Returns:
            Norm of the mean gradient before clipping; 0 where there is none. If it is not finite, weights and
            optimizer are left as they were.
        """
        sums = [self._sums.pop(slot) for slot in slots if slot in self._sums]
        if not sums or num_microbatches == 0:
            return 0.0
        for parameter, *gradients in zip(self._trained, *sums, strict=True):
            parts = [gradient for gradient in gradients if gradient is not None]
            if parts:
                parameter.grad = parts[0]
                for part in parts[1:]:
                    parameter.grad.add_(part)
                parameter.grad.div_(num_microbatches)
        norm = self.step(step, lr_scale=lr_scale)
        if math.isfinite(norm):
            self._drop_graphs()
        return norm

    def forget(self, key: Key) -> None:
        """Drop a micro-batch in flight, if there is one."""
        self._in_flight.pop(key, None)

    def drop(self, slot: int) -> None:
        """Drop everything of a slot: its micro-batches in flight and its sum of gradients."""
        self._sums.pop(slot, None)
        for key in [key for key in self._in_flight if key[0] == slot]:
            del self._in_flight[key]

    def _forward(self, key: Key, x: Tensor, *, train: bool, marks: bytes = b"") -> Tensor:
        """Output of the stage, on the CPU; with ``train`` the micro-batch is in flight from here on."""
        with torch.set_grad_enabled(train):
            y = self._run(x, marks)
        if train:
            self._in_flight[key] = _InFlight(x, y, marks)
        return y.detach().cpu()

    @abstractmethod
    def _run(self, x: Tensor, marks: bytes) -> Tensor:
        """What comes out of the stage."""

    def _land(self, key: Key) -> tuple[Tensor, Tensor]:
        """Input and output of a micro-batch in flight, with a graph of the present weights. It is in flight no longer.

        Raises:
            KeyError: it is not in flight.
        """
        one = self._in_flight.pop(key)
        return one.x, self._run(one.x, one.marks) if one.y is None else one.y

    def _backward(self, y: Tensor, grad_y: Tensor | None, x: Tensor | None, slot: int | None) -> None:
        """Run ``y``'s graph backwards: into ``x.grad`` if given, and into the sum of ``slot`` if given."""
        wanted = [] if x is None else [x]
        with self._summing(slot) as weights:
            torch.autograd.backward(y, grad_y, inputs=[*wanted, *weights])

    @contextmanager
    def _summing(self, slot: int | None) -> Iterator[list[nn.Parameter]]:
        """Let autograd add to the sum of ``slot`` in place, as ``grad`` of the parameters it yields; none for None."""
        if slot is None:
            yield []
            return
        for parameter, gradient in zip(self._trained, self._sums.get(slot, [None] * len(self._trained)), strict=True):
            parameter.grad = gradient
        try:
            yield self._trained
        finally:
            self._sums[slot] = [parameter.grad for parameter in self._trained]
            for parameter in self._trained:
                parameter.grad = None

    def _drop_graphs(self) -> None:
        for one in self._in_flight.values():
            one.y = None


class StageCompute(_Part):
    """Blocks ``first`` to ``stop - 1`` of a model.

    Args:
        blocks: the model.
        first: number of its first block here.
        stop: one past its last block here.
        device: where to compute.
    """

    def __init__(self, blocks: ModelBlocks, first: int, stop: int, device: str = "cpu") -> None:
        layers = [blocks.block(number).to(device) for number in range(first, stop)]
        named = {
            f"{blocks.path}.{first + offset}.{name}": parameter
            for offset, layer in enumerate(layers)
            for name, parameter in layer.named_parameters()
        }
        super().__init__(blocks, named, device)
        self._layers = layers

    def forward(self, key: Key, x: Tensor, *, train: bool = True, marks: bytes = b"") -> Tensor:
        """Activations behind the blocks.

        Args:
            key: the micro-batch. A forward pass of the same one before is forgotten.
            x: activations before the blocks, float32 on the CPU; kept and not to be written to until ``backward``.
            train: keep what the backward pass takes.
            marks: of the micro-batch, for every block.

        Returns:
            float32 on the CPU, not to be written to either.
        """
        return self._forward(key, x.detach().to(self._device).requires_grad_(), train=train, marks=marks)

    def _run(self, x: Tensor, marks: bytes) -> Tensor:
        for layer in self._layers:
            x = layer(x, marks) if marks else layer(x)
        return x

    def backward(self, key: Key, grad_y: Tensor, *, count: bool = True, into: int | None = None) -> Tensor:
        """Gradient with respect to the input of ``forward``, at the present weights.

        Args:
            key: a micro-batch whose forward pass was for training; forgotten after this.
            grad_y: gradient with respect to its output, float32 on the CPU.
            count: whether to add the gradients of the weights to a sum.
            into: which one, that of the key's slot unless told.

        Returns:
            float32 on the CPU.

        Raises:
            KeyError: the micro-batch is unknown.
        """
        x, y = self._land(key)
        place = key[0] if into is None else into
        self._backward(y, grad_y.to(self._device), x, place if count else None)
        return _gradient(x)


class HeadCompute(_Part):
    """Embedding, output layer and loss of a model.

    Args:
        blocks: the model.
        device: where to compute.

    Raises:
        ConfigError: embedding and output layer have different parameters of one name.
    """

    def __init__(self, blocks: ModelBlocks, device: str = "cpu") -> None:
        embedding = blocks.embedding().to(device)
        self._output = blocks.output(embedding).to(device)
        named = dict(embedding.named_parameters())
        seen = set(named.values())
        for name, parameter in self._output.named_parameters():
            if parameter in seen:
                continue
            if name in named:
                raise ConfigError(
                    f"embedding and output layer both have a parameter {name!r}",
                    hint="Parameters of a model need different names: rename one of them in the task.",
                )
            named[name] = parameter
        super().__init__(blocks, named, device)
        self._embedding = embedding

    def embed(self, key: Key, inputs: Tensor, *, train: bool = True) -> Tensor:
        """Activations before the first block, float32 on the CPU; ``inputs`` are kept until ``finish``."""
        return self._forward(key, inputs.to(self._device), train=train)

    def loss(
        self, key: Key, y: Tensor, targets: Tensor, *, train: bool = True, count: bool = True
    ) -> tuple[float, Tensor]:
        """Mean loss of a micro-batch and its gradient with respect to the activations behind the last block.

        Args:
            key: the micro-batch.
            y: activations behind the last block, float32 on the CPU.
            targets: what should come out.
            train: whether to compute gradients.
            count: whether to add the gradients of the weights to the sum of the key's slot.

        Returns:
            The loss, and the gradient, float32 on the CPU, empty unless ``train``.
        """
        y = y.detach().to(self._device)
        with torch.set_grad_enabled(train):
            loss = self._output(y.requires_grad_(train), targets.to(self._device))
        if not train:
            return loss.item(), torch.empty(0)
        self._backward(loss, None, y, key[0] if count else None)
        return loss.item(), _gradient(y)

    def _run(self, x: Tensor, marks: bytes) -> Tensor:
        y: Tensor = self._embedding(x)
        return y

    def finish(self, key: Key, grad_x: Tensor, *, count: bool = True) -> None:
        """Run backwards through the embedding.

        Args:
            key: a micro-batch that was embedded for training; forgotten after this.
            grad_x: gradient with respect to what ``embed`` returned, float32 on the CPU.
            count: whether to add the gradients of the weights to the sum of the key's slot.

        Raises:
            KeyError: the micro-batch is unknown.
        """
        if not count:
            del self._in_flight[key]
            return
        _, x = self._land(key)
        if x.requires_grad:
            self._backward(x, grad_x.to(self._device), None, key[0])


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad.cpu()
