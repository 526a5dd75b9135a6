"""A cut that changes while the run goes on: which blocks each stage has now, who is to hold it, and the cut's number.

Knows no tensors and makes no calls. Legend: S = stages, without the head.
"""

import functools
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, ClassVar

from msgspec import Meta

from decentral.pipeline.stored import HEAD, Span, span_of
from decentral.swarm.message import Message, Peer
from decentral.types import Count, PeerId

#: Stages of a cut that changes: all its bounds are in every presence record.
MAX_STAGES = 32
_MAX_BLOCK = 9_999
_Bound = Annotated[int, Meta(ge=0, le=_MAX_BLOCK)]


class Placement(Message, frozen=True):
    """One cut of a run, with those who are to hold its stages."""

    what: ClassVar[str] = "cut"
    number: Count = 0
    """Only grows; the numbers of cuts that did not come about are left out. 0: there is none yet."""
    bounds: Annotated[tuple[_Bound, ...], Meta(max_length=MAX_STAGES + 1)] = ()
    """Stage k has the blocks from ``bounds[k - 1]`` on, up to ``bounds[k]``; empty if there are no stages yet."""
    peers: Annotated[tuple[Peer, ...], Meta(max_length=MAX_STAGES)] = ()
    """Who holds stage 1, 2, ..., S where the cut begins; a stage may go to somebody else when it is lost."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Blocks [first, stop) of every stage."""
        return tuple(pairwise(self.bounds))

    @property
    def num_stages(self) -> int:
        """S."""
        return max(0, len(self.bounds) - 1)

    @property
    def text(self) -> str:
        """Number and bounds, as a presence record has them; at most 200 characters."""
        return f"{self.number}:{','.join(map(str, self.bounds))}"

    def stage_of(self, peer: PeerId) -> int:
        """The stage that ``peer`` is to hold; 0 for none."""
        return self.peers.index(peer) + 1 if peer in self.peers else 0

    def check(self) -> None:
        """Refuse stages without blocks, a peer with two of them, and stages that nobody is to hold."""
        if any(first >= stop for first, stop in self.spans) or self.bounds[:1] not in ((), (0,)):
            raise ValueError("the stages do not cover the blocks in order")
        if len(self.peers) != self.num_stages or len(set(self.peers)) < len(self.peers):
            raise ValueError("the stages have not a holder each")


@functools.lru_cache(maxsize=1024)
def number_of(text: str) -> int:
    """The number in ``Placement.text``; 0 if there is none."""
    number = text.partition(":")[0]
    return int(number) if len(number) < 16 and number.isascii() and number.isdigit() else 0


@functools.lru_cache(maxsize=1024)
def num_stages_of(text: str) -> int:
    """S of a cut in a presence record; 0 if there is none."""
    return text.partition(":")[2].count(",")


class CutInForce:
    """The cut as one process has it now; all its parts look here.

    Args:
        spans: that the run begins with, and keeps if it is no run whose cut changes.
        num_blocks: of the model, if it is one.
        path: where its blocks are in it (``ModelBlocks.path``).
    """

    def __init__(self, spans: tuple[Span, ...] = (), num_blocks: int = 0, path: str = "blocks") -> None:
        self._path = path
        self.whole = spans or ((0, num_blocks),)
        """Spans that have all blocks, which a run that comes back has to find."""
        self.spans = spans
        """Blocks [first, stop) of every stage."""
        self.placement = Placement()
        """Of a run whose cut changes."""

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.spans)

    @property
    def number(self) -> int:
        """Of the cut; 0 also in a run whose cut is fixed."""
        return self.placement.number

    def span(self, stage: int) -> Span:
        """The blocks of a stage; those of the head are none."""
        return self.spans[stage - 1] if stage else HEAD

    def span_of(self, names: Iterable[str]) -> Span:
        """The blocks that parameters of these names are of; those of the head are none."""
        return span_of(names, self._path)

    def change(self, placement: Placement) -> None:
        """From now on it is this one."""
        self.placement, self.spans = placement, placement.spans
