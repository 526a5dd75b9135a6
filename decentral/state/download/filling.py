"""A fragment on its way in: which of its pieces are there, and the state once all are.

Every piece is checked when it comes. What is here already of the same content, from a checkpoint or an earlier try, is
taken over and not fetched. Knows no donor. Legend: N = values of the fragment.
"""

from collections.abc import Sequence

from torch import Tensor

from decentral.errors import FrameError
from decentral.outer.rule import OuterState
from decentral.state.download.pieces import FragmentHead, Piece
from decentral.state.snapshot import FragmentState, to_bytes
from decentral.tensors.blank import blank
from decentral.tensors.digest import DIGEST_BYTES, digest_bytes
from decentral.tensors.finite import all_finite


class Filling:
    """One fragment.

    Args:
        head: what it is to become.
        numel: N.
        num_parts: its tensors.
        pieces: how it is cut.
    """

    def __init__(self, head: FragmentHead, numel: int, num_parts: int, pieces: Sequence[Piece]) -> None:
        self.head = head
        self.pieces = pieces
        self.missing = dict.fromkeys(range(len(pieces)))
        """Pieces that are not here, in order."""
        self._tensors = [blank(numel) for _ in range(num_parts)]
        self._views = [to_bytes(values_N) if numel else memoryview(b"") for values_N in self._tensors]

    @property
    def missing_bytes(self) -> int:
        """Of all pieces that are not here."""
        return sum(self.pieces[index].size for index in self.missing)

    def put(self, index: int, data: bytes | memoryview) -> None:
        """Take a piece.

        Raises:
            FrameError: it is not the one promised.
        """
        piece = self.pieces[index]
        if len(data) != piece.size:
            raise FrameError(f"piece of {len(data)} bytes, expected {piece.size}")
        if digest_bytes(data) != self.head.piece(index):
            raise FrameError("a piece does not have the promised digest")
        self._views[piece.part][piece.start : piece.stop] = data
        self.missing.pop(index, None)

    def take_over(self, tensors: Sequence[Tensor], digests: bytes, among: Sequence[int]) -> None:
        """Take what is equal in other values of the same shape.

        Args:
            tensors: all parts of a fragment that is cut alike.
            digests: of its pieces.
            among: the pieces that are really there.
        """
        for index in among:
            here = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            if index in self.missing and here == self.head.piece(index):
                piece = self.pieces[index]
                self.put(index, to_bytes(tensors[piece.part])[piece.start : piece.stop])

    def take_over_from(self, earlier: "Filling") -> None:
        """Take what is equal in what came for another head of this fragment."""
        there = [index for index in range(len(self.pieces)) if index not in earlier.missing]
        self.take_over(earlier._tensors, earlier.head.pieces, there)

    def state(self) -> FragmentState:
        """The fragment, when nothing is missing. Costs a pass over its values.

        Raises:
            FrameError: the pieces are those promised, and what they make is not.
        """
        anchor_N, *buffers_N = self._tensors
        outer = OuterState(tuple(buffers_N), self.head.num_steps, self.head.counted)
        state = FragmentState.of(self.head.round, anchor_N, outer)
        if state.digest != self.head.digest:
            raise FrameError("the state received does not have the promised digest")
        if not all(all_finite(values_N.numpy()) for values_N in state.tensors):
            raise FrameError("the state received is not finite")
        return state
