"""Batches to train on, without end, and those to validate on."""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Self

from decentral.errors import DataError
from decentral.ports.trainer import Seat
from decentral.workers.hf.data.documents import Encoder, Stream, Table, Tokens
from decentral.workers.hf.data.opening import open_sources
from decentral.workers.hf.data.packing import Batch, Packer
from decentral.workers.hf.data.reading import Reader
from decentral.workers.hf.data.settings import DataSettings

_SAMPLES = 3
_SAMPLE_CHARS = 100


def open_data(
    settings: DataSettings, tokenizer: Any, *, seat: Seat, run_seed: int, seq_len: int, batch_rows: int
) -> "TrainingData":
    """Open this machine's data.

    Args:
        settings: which, and how it is read.
        tokenizer: of transformers.
        seat: says where it is, whether it may be downloaded, and who shares out its rows.
        run_seed: of the order of the rows.
        seq_len: tokens of a sequence.
        batch_rows: sequences of a batch.

    Raises:
        DataError: it is not there, cannot be read, or has no text.
        ConfigError: a setting is out of range.
    """
    encode = Encoder(tokenizer)
    sources: list[Table | Stream] = [
        Stream(opened, encode, settings.held_out)
        if settings.streaming
        else Table(opened, encode, settings.held_out, run_seed)
        for opened in open_sources(settings, seat)
    ]
    packer = Packer(batch_rows, seq_len, document_mask=settings.document_mask)
    return TrainingData(sources, settings, packer, seat)


class TrainingData:
    """See the module. An iterator; ``close`` it, or let go of it, to end the processes that read ahead.

    Args:
        sources: data sets, one or a mixture.
        settings: of the run.
        packer: makes batches.
        seat: says who shares out rows.
    """

    def __init__(self, sources: Sequence[Table | Stream], settings: DataSettings, packer: Packer, seat: Seat) -> None:
        self._sources = sources
        self._packer = packer
        self._readers = [Reader(source, seat.claims, settings.prefetch) for source in sources]
        shares = settings.shares() or [1.0]
        self._shares = [share / sum(shares) for share in shares]
        self._taken = [0] * len(sources)
        """Tokens of each data set so far."""
        self._reads = 0
        """The data set whose document is being read."""
        self._validation = self._held_out(settings)
        self.waited_s = 0.0
        """Seconds that ``__next__`` took so far, all of which training stood still for."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch: ``input_ids`` and ``labels``, and ``position_ids`` with a document mask; int64 [R, T].

        Labels are where their tokens are, to be shifted by the model, and -100 where none is to be predicted.
        """
        began = time.monotonic()
        try:
            return self._packer.batch(self._take)
        finally:
            self.waited_s += time.monotonic() - began

    def validation(self) -> Iterable[Batch]:
        """The held-out batches: always the same ones, and the same on all workers with the same rows."""
        return self._validation

    def state_dict(self) -> dict[str, Any]:
        """Behind the batch that was given last."""
        readers = [reader.state_dict() for reader in self._readers]
        return {"readers": readers, "taken": list(self._taken), "reads": self._reads}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; from another place if the rows are no longer this worker's, or are other ones."""
        if len(state["readers"]) != len(self._readers):
            return
        for reader, of in zip(self._readers, state["readers"], strict=True):
            reader.load_state_dict(of)
        self._taken, self._reads = list(state["taken"]), state["reads"]

    def describe(self) -> str:
        """Rows and tokens of each data set, and three lines of text."""
        lines = [source.describe() for source in self._sources]
        texts = [text for source in self._sources for text in source.sample(_SAMPLES)][:_SAMPLES]
        return "\n".join([*lines, *(f"  {' '.join(text.split())[:_SAMPLE_CHARS]}" for text in texts)])

    def close(self) -> None:
        """End the processes that read ahead."""
        for reader in self._readers:
            reader.close()

    def _take(self, limit: int) -> tuple[Tokens, bool]:
        """Tokens of the document under way, or of the next one: of the data set that is furthest behind its share."""
        while True:
            first = self._readers[self._reads].between
            if first:
                self._reads = min(range(len(self._shares)), key=lambda each: self._taken[each] / self._shares[each])
            piece = self._readers[self._reads].take(limit)
            if len(piece):
                self._taken[self._reads] += len(piece)
                return piece, first

    def _held_out(self, settings: DataSettings) -> list[Batch]:
        """Of each data set in turn a document.

        Raises:
            DataError: there is none, though some should be held out.
        """
        if not settings.held_out:
            return []
        rounds = zip_longest(*[source.held_out_rows() for source in self._sources])
        documents = (tokens for each in rounds for tokens in each if tokens is not None)
        batches = list(self._packer.batches(documents, settings.val_batches))
        if not batches:
            for source in self._sources:
                source.sample(1)  # a stream without text says so
            raise DataError(
                "no row is held out to validate on", hint="Give more rows, or set task.settings.data.held_out higher."
            )
        return batches
