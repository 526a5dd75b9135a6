"""Documents laid end to end into sequences of equal length: no padding, no token left out. It knows no data set.

Legend: R = rows of a batch, T = tokens of a row.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from decentral.workers.hf.data.documents import Tokens

Batch: TypeAlias = dict[str, Tensor]
#: A label that no loss is taken of.
IGNORED = -100


def names_of(*, document_mask: bool) -> tuple[str, ...]:
    """What there is of each token of a batch."""
    return ("input_ids", "labels", "position_ids") if document_mask else ("input_ids", "labels")


class Packer:
    """Fills batches.

    Args:
        num_rows: R.
        num_tokens: T.
        document_mask: whether to say where documents begin. Positions then begin anew in each, by which transformers
            keeps what a token attends to inside of its document; and no first token is predicted from the document
            before it.
    """

    def __init__(self, num_rows: int, num_tokens: int, *, document_mask: bool) -> None:
        self._shape = (num_rows, num_tokens)
        self._document_mask = document_mask

    def batch(self, take: Callable[[int], tuple[Tokens, bool]]) -> Batch:
        """The next batch.

        Args:
            take: gives at most so many tokens of one document, and whether they are its first; none at the end.
        """
        num_rows, num_tokens = self._shape
        ids_RT = np.zeros(self._shape, dtype=np.int64)
        labels_RT = np.full(self._shape, IGNORED, dtype=np.int64)
        positions_RT = np.tile(np.arange(num_tokens), (num_rows, 1))
        for row in range(num_rows):
            filled = 0
            while filled < num_tokens:
                piece, first = take(num_tokens - filled)
                if not len(piece):
                    break
                here = slice(filled, filled + len(piece))
                ids_RT[row, here] = labels_RT[row, here] = piece
                if self._document_mask:
                    positions_RT[row, here] -= filled
                    if first:
                        labels_RT[row, filled] = IGNORED
                filled += len(piece)
        arrays = {"input_ids": ids_RT, "labels": labels_RT}
        if self._document_mask:
            arrays["position_ids"] = positions_RT
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def batches(self, documents: Iterable[Tokens], count: int) -> Iterator[Batch]:
        """At most ``count`` batches of some documents; the last one may have labels of -100 at its end."""
        rest = _Rest(iter(documents))
        for _ in range(count):
            if rest.is_over:
                return
            yield self.batch(rest.take)


class _Rest:
    """What is left of some documents."""

    def __init__(self, documents: Iterator[Tokens]) -> None:
        self._documents = documents
        self._turn()

    def take(self, limit: int) -> tuple[Tokens, bool]:
        """See ``Packer.batch``."""
        piece, first = self._document[self._token : self._token + limit], self._token == 0
        self._token += len(piece)
        if self._token == len(self._document):
            self._turn()
        return piece, first

    def _turn(self) -> None:
        self._token = 0
        self._document = next((tokens for tokens in self._documents if len(tokens)), np.empty(0, dtype=np.int64))
        self.is_over = not len(self._document)
