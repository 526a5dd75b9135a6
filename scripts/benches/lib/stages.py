"""A pipeline in one process: stages and head of ``decentral.pipeline``, handed over to each other without peers.

Knows nothing of what is compared, nor of stages that are lost.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.cut import Healing, cut
from decentral.ports.model_blocks import ModelBlocks


class Stages:
    """A head and its stages.

    Args:
        blocks: of the model.
        num_stages: that it is cut into.
        healing: decides how.
        orders: in which each micro-batch of a batch passes the stages.
        passed: what becomes of activations and gradients between two parts.
    """

    def __init__(
        self,
        blocks: ModelBlocks,
        num_stages: int,
        healing: Healing | Literal["auto"],
        orders: Sequence[Sequence[int]],
        passed: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self.blocks = blocks
        self.orders = orders
        self.data = blocks.data()
        self.head = HeadCompute(blocks)
        self._spans = cut(blocks.num_blocks, num_stages, healing).spans
        self._passed = passed
        self.stages = {stage: self.fresh(stage) for stage in range(1, num_stages + 1)}
        """By number, from 1."""

    def fresh(self, stage: int) -> StageCompute:
        """A stage as it is before the first step."""
        return StageCompute(self.blocks, *self._spans[stage - 1])

    def learn(self, step: int) -> list[float]:
        """Pass a batch forwards and backwards, without a step of the optimizers; losses of its micro-batches."""
        losses = []
        for index, order in enumerate(self.orders):
            key = (0, step, index)
            inputs, targets = self.data.batch(*key)
            x = self._passed(self.head.embed(key, inputs))
            for stage in order:
                x = self._passed(self.stages[stage].forward(key, x))
            loss, gradient = self.head.loss(key, x, targets)
            gradient = self._passed(gradient)
            for stage in reversed(order):
                gradient = self._passed(self.stages[stage].backward(key, gradient))
            self.head.finish(key, gradient)
            losses.append(loss)
        return losses

    def loss(self, inputs: Tensor, targets: Tensor) -> float:
        """Of sequences that are not learnt from, with the stages in their order."""
        key = (0, -1, 0)
        x = self._passed(self.head.embed(key, inputs, train=False))
        for stage in sorted(self.stages):
            x = self._passed(self.stages[stage].forward(key, x, train=False))
        return self.head.loss(key, x, targets, train=False)[0]
