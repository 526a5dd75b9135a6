"""What travels of a snapshot: its head, and pieces of its fragments, each with a digest of its own.

A piece is consecutive bytes of one tensor of a fragment, named by the fragment's digest and its number. So whoever
holds the same fragment can serve it, whatever its other fragments are, and what is wrong is found out piece by piece.
Pure; knows no peer and no clock.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from decentral.state.snapshot import FragmentState, Snapshot, combined_digest, to_bytes
from decentral.swarm.message import Message, Peer, Text
from decentral.tensors.digest import DIGEST_BYTES, digest_bytes
from decentral.types import Count, PeerId

HEAD = "state.head"
PIECE = "state.piece"
VALUES = "state.values"
#: Pieces are as small as this, so that one that is lost costs little, ...
_MIN_PIECE_BYTES = 1 << 17
#: ... but there are not more than so many of full size, so that a head is small and one in flight is in proportion.
_MAX_PIECES = 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a piece lies."""

    part: int
    """Which tensor of the fragment: 0 for the anchor, then the outer state's buffers."""
    start: int
    """In bytes."""
    stop: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start


Content = tuple[str, int, tuple[PeerId, ...], bytes]
"""All that is said of a fragment but its round: donors that say the same of it hold the same, unless they lie alike."""


class FragmentHead(Message, frozen=True):
    """What a donor says of one fragment."""

    what: ClassVar[str] = "head of a fragment"
    round: Count
    num_steps: Count
    """Outer steps."""
    digest: Text
    counted: tuple[Peer, ...]
    """Members that the outer state counts."""
    pieces: bytes
    """Digests of all pieces, one after the other."""

    @property
    def content(self) -> Content:
        """What it is, whatever the round."""
        return self.digest, self.num_steps, self.counted, self.pieces

    def piece(self, index: int) -> bytes:
        """The digest of one piece."""
        return self.pieces[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]


class Head(Message, frozen=True):
    """What a donor says of its snapshot."""

    what: ClassVar[str] = "head"
    max_bytes: ClassVar[int] = 1 << 20
    layout: Text
    """Signature of the cut of the model."""
    step: Count
    fragments: tuple[FragmentHead, ...]

    @property
    def rounds(self) -> tuple[int, ...]:
        """The next round of every fragment."""
        return tuple(fragment.round for fragment in self.fragments)

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return combined_digest(tuple(fragment.digest for fragment in self.fragments))


class Ask(Message, frozen=True):
    """Which piece is wanted."""

    what: ClassVar[str] = "question for a piece"
    digest: Text
    """Of the fragment."""
    index: Count


class Positions(Message, frozen=True):
    """Of values in one fragment."""

    what: ClassVar[str] = "positions in a fragment"
    digest: Text
    """Of the fragment."""
    indices: tuple[Count, ...]
    """Of values in each of its tensors."""


class AskValues(Message, frozen=True):
    """Which values are wanted: of all tensors of these fragments, at their positions."""

    what: ClassVar[str] = "question for values"
    max_bytes: ClassVar[int] = 1 << 17
    fragments: tuple[Positions, ...]


class Cut:
    """How the fragments of a model are cut into pieces: all who have the same layout and rule cut alike.

    Args:
        numels: values in each fragment.
        num_parts: tensors of each fragment.
    """

    def __init__(self, numels: Sequence[int], num_parts: int) -> None:
        self.numels = tuple(numels)
        self.num_parts = num_parts
        self.total_bytes = 4 * num_parts * sum(numels)
        self.piece_bytes = _MIN_PIECE_BYTES
        while self.piece_bytes * _MAX_PIECES < self.total_bytes:
            self.piece_bytes *= 2
        self.pieces = tuple(self._pieces(4 * numel) for numel in numels)
        """Of each fragment."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Cut":
        """That of a snapshot's model."""
        fragments = [fragment.tensors for fragment in snapshot.fragments]
        return cls([tensors[0].numel() for tensors in fragments], len(fragments[0]))

    def _pieces(self, part_bytes: int) -> tuple[Piece, ...]:
        bounds = [*range(0, part_bytes, self.piece_bytes), part_bytes]
        return tuple(
            Piece(part, start, stop) for part in range(self.num_parts) for start, stop in itertools.pairwise(bounds)
        )

    def suits(self, head: Head) -> bool:
        """Whether a head speaks of so many fragments and pieces."""
        lengths = [len(fragment.pieces) for fragment in head.fragments]
        return lengths == [DIGEST_BYTES * len(pieces) for pieces in self.pieces]

    def digests(self, fragment: int, tensors: Sequence[Tensor]) -> bytes:
        """The digests of a fragment's pieces, which cost a pass over its values."""
        views = [to_bytes(values_N) for values_N in tensors]
        return b"".join(digest_bytes(views[piece.part][piece.start : piece.stop]) for piece in self.pieces[fragment])


def head_of(fragment: FragmentState, pieces: bytes) -> FragmentHead:
    """What is said of a fragment with these digests of pieces."""
    outer = fragment.outer
    return FragmentHead(fragment.round, outer.num_steps, fragment.digest, outer.counted, pieces)
