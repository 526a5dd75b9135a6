"""A worker's batches among its ranks: rank 0 reads them, and deals each out. It knows neither model nor swarm.

So the rows that are read, and where in them the worker is, are what they are of one process, however many ranks there
are. All ranks ask at once, for the same.

Legend: R = sequences of a rank, T = tokens of a sequence, K = kinds of values of a token.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
import torch.distributed as dist

from decentral.ports.trainer import Seat
from decentral.workers.hf.data.packing import Batch
from decentral.workers.hf.data.training import TrainingData
from decentral.workers.ranks import dealt, share_of


class DealtData:
    """Has the face of ``TrainingData``.

    Args:
        data: on rank 0.
        seat: how many ranks there are.
        batch_rows: sequences of a batch.
        seq_len: T.
        names: of what there is of each token.

    Raises:
        ConfigError: a batch cannot be dealt out evenly.
    """

    def __init__(
        self, data: TrainingData | None, seat: Seat, *, batch_rows: int, seq_len: int, names: tuple[str, ...]
    ) -> None:
        self._data = data
        self._shape = (share_of(batch_rows, seat), len(names), seq_len)
        self._names = names
        self._validation: list[Batch] | None = None

    @property
    def waited_s(self) -> float:
        """See ``TrainingData``; of rank 0, which the others wait for."""
        return 0.0 if self._data is None else self._data.waited_s

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """This rank's part of the next batch."""
        return self._deal(None if self._data is None else next(self._data))

    def validation(self) -> Iterable[Batch]:
        """This rank's part of the held-out batches."""
        if self._validation is None:
            held_out = [] if self._data is None else list(self._data.validation())
            count = torch.tensor(len(held_out))
            dist.broadcast(count, src=0)
            self._validation = [self._deal(held_out[at] if held_out else None) for at in range(int(count))]
        return self._validation

    def state_dict(self) -> dict[str, Any]:
        """See ``TrainingData``; rank 0 has it."""
        return {} if self._data is None else self._data.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``TrainingData``."""
        if self._data is not None:
            self._data.load_state_dict(state)

    def describe(self) -> str:
        """See ``TrainingData``; rank 0 knows."""
        return "" if self._data is None else self._data.describe()

    def close(self) -> None:
        """See ``TrainingData``."""
        if self._data is not None:
            self._data.close()

    def _deal(self, batch: Batch | None) -> Batch:
        whole = None if batch is None else torch.stack([batch[name] for name in self._names], dim=1)
        mine_RKT = dealt(whole, torch.empty(self._shape, dtype=torch.int64))
        return {name: mine_RKT[:, kind].contiguous() for kind, name in enumerate(self._names)}
