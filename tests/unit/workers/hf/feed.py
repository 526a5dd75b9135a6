"""Batches from memory, in place of data on a disk."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.support.hf import VOCAB


class Feed:
    """Random sequences, of which some tokens are not counted; another batch at every position.

    Args:
        rows: sequences of a batch.
        length: tokens of a sequence.
        counted: how many of each row, from its beginning, are counted; all without.
    """

    waited_s = 0.0

    def __init__(self, rows: int, length: int = 16, counted: tuple[int, ...] = ()) -> None:
        self._rows, self._length = rows, length
        self._counted = counted or rows * (length,)
        self.position = 0

    def __next__(self) -> Mapping[str, Tensor]:
        self.position += 1
        return self.batch(self.position)

    def batch(self, position: int) -> Mapping[str, Tensor]:
        draw = torch.Generator().manual_seed(position)
        tokens = torch.randint(VOCAB, (self._rows, self._length), generator=draw)
        labels = tokens.clone()
        for row, count in enumerate(self._counted):
            labels[row, count:] = -100
        return {"input_ids": tokens, "labels": labels}

    def validation(self) -> Iterable[Mapping[str, Tensor]]:
        return [self.batch(-1), self.batch(-2)]

    def describe(self) -> str:
        return "random tokens"

    def state_dict(self) -> Mapping[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]
