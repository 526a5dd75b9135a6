"""The documents that this worker reads of one data set, in order and ahead of the training; and where it is in them."""

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from itertools import chain
from multiprocessing.synchronize import Event
from typing import Any

import torch
from torch.utils.data import DataLoader

from decentral.ports.trainer import Claims
from decentral.run.rows import Chunks
from decentral.types import Grant
from decentral.workers.hf.data.documents import BLOCK_ROWS, Block, Documents, Stream, Table, Tokens

#: Blocks that a process has ready at most.
_READY = 4
#: A block that does not come for so long has nobody who makes it.
_BLOCK_S = 600
#: Between two looks of a process whether the one that trains is still there.
_LOOK_S = 1.0


class Reader:
    """Documents one after the other, without end.

    Args:
        source: the data set.
        claims: settles which rows are this worker's; ``None`` where nobody else reads.
        num_processes: that read ahead; 0 to read when documents are asked for.
    """

    def __init__(self, source: Table | Stream, claims: Claims | None, num_processes: int) -> None:
        self._source = source
        # A stream is read in order, which only one process can.
        self._num_processes = min(num_processes, 1) if isinstance(source, Stream) else num_processes
        self._chunks = Chunks(claims, source.key, source.num_chunks)
        self._start = 0
        """Rows of the first chunk that were read in an earlier life."""
        self._ended: set[Grant] = set()
        """Chunks of which nothing more is to be asked."""
        self._loaded: Iterator[Documents] | None = None
        self._relay: Relay | None = None
        self._documents: list[Tokens] = []
        self._row = 0
        """Of the documents at hand, the one that is being read."""
        self._token = 0
        self._read_rows = 0
        """Of the chunk, before the documents at hand."""
        self._last = False

    def take(self, limit: int) -> Tokens:
        """What comes next of the document that is being read, ``limit`` tokens at most."""
        while self._row == len(self._documents):
            self._turn()
        document = self._documents[self._row]
        piece = document[self._token : self._token + limit]
        self._token += len(piece)
        if self._token == len(document):
            self._row, self._token = self._row + 1, 0
        return piece

    @property
    def between(self) -> bool:
        """Whether the next piece begins a document."""
        return self._token == 0

    def state_dict(self) -> dict[str, Any]:
        """Behind what was taken last."""
        return {"chunks": self._chunks.state_dict(), "row": self._read_rows + self._row, "token": self._token}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, if the chunk is still this worker's."""
        self.close()
        goes_on = self._chunks.load_state_dict(state["chunks"])
        self._documents, self._row, self._last, self._ended = [], 0, False, set()
        self._start = self._read_rows = state["row"] if goes_on else 0
        self._token = state["token"] if goes_on else 0

    def close(self) -> None:
        """End the processes."""
        if self._relay is not None:
            self._relay.close()
        self._loaded = self._relay = None

    def _turn(self) -> None:
        """The next block's documents are at hand."""
        if self._loaded is None:
            self._loaded = self._load()
        if self._last:
            self._chunks.done()
        came = next(self._loaded)
        while came.block.grant in self._ended:  # asked for before it was known that the chunk ends
            came = next(self._loaded)
        if came.last:
            self._ended = {came.block.grant}
        self._documents, self._row, self._last, self._read_rows = came.tokens, 0, came.last, came.block.start

    def _load(self) -> Iterator[Documents]:
        """Documents by the processes; until one of these is up, which takes seconds, those read here."""
        blocks = self._blocks()
        if not self._num_processes:
            return map(self._source.__getitem__, blocks)
        relay = self._relay = Relay(blocks)
        # Starting a process waits until it has imported everything.
        threading.Thread(target=self._start_processes, args=(relay,), daemon=True).start()
        return chain(map(self._source.__getitem__, relay.here()), relay.theirs())

    def _start_processes(self, relay: "Relay") -> None:
        """Start the processes, which read the rest of the blocks."""
        context = multiprocessing.get_context("spawn")  # not forked: threads here talk to the swarm, and hold locks
        up = context.Event()
        try:
            loader: DataLoader[Documents] = DataLoader(
                self._source,  # type: ignore[arg-type]
                batch_size=None,
                sampler=_Once(relay.handed_over(up)),
                num_workers=self._num_processes,
                prefetch_factor=_READY,
                timeout=_BLOCK_S,
                collate_fn=_as_it_is,  # type: ignore[arg-type]
                worker_init_fn=functools.partial(_begin, os.getpid(), up),
                multiprocessing_context=context,
            )
            relay.loaded.set_result(iter(loader))
        except BaseException as err:
            relay.loaded.set_exception(err)

    def _blocks(self) -> Iterator[Block]:
        """What to ask for, without end; of a chunk until it is known to be over."""
        for grant in self._chunks:
            start, self._start = self._start, 0
            size = self._source.size(grant)
            while True:
                yield Block(grant, start)
                start += BLOCK_ROWS
                if grant in self._ended or (size is not None and start >= size):
                    break


class Relay:
    """Blocks that are read here at first, and by the processes from when one of them is up; each is read once."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()
        self._is_theirs = self._is_closed = False
        self.loaded: Future[Iterator[Documents]] = Future()
        """What the processes read; fails if they could not be started."""

    def here(self) -> Iterator[Block]:
        """The first blocks, one at a time, until the rest is handed over."""
        while not self.loaded.done():
            with self._lock:
                if self._is_theirs:
                    return
                block = next(self._blocks)
            yield block

    def handed_over(self, up: Event) -> Iterator[Block]:
        """The rest, from when a process is up.

        Raises:
            TimeoutError: none came up.
        """
        if not up.wait(_BLOCK_S):
            raise TimeoutError(f"no process that reads data was up within {_BLOCK_S} s")
        with self._lock:
            self._is_theirs = True
        if not self._is_closed:
            yield from self._blocks

    def close(self) -> None:
        """No process is to read what was not handed over yet: somebody else may ask for it."""
        with self._lock:
            self._is_closed = True

    def theirs(self) -> Iterator[Documents]:
        """What the processes read, once the rest is handed over."""
        yield from self.loaded.result(_BLOCK_S)


class _Once:
    """A ``sampler`` of what an iterator has left."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[Block]:
        return self._blocks


def _as_it_is(documents: Documents) -> Documents:
    """Instead of tensors made of them."""
    return documents


def _begin(parent: int, up: Event, _: int) -> None:
    """A process that reads ahead takes one core, and no more from the training; it ends when that one does.

    torch looks for the parent as well, but only of a process that was up before its parent was killed.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    up.set()


def _end_with(parent: int) -> None:
    """End this process once it has another parent."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
