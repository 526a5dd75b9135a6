"""Long messages in pieces: whatever the order they come in, and whatever else comes."""

import itertools
import random
import struct

import pytest

from decentral.errors import FrameError
from decentral.pipeline.pieces import HEADER_BYTES, PIECE_BYTES, Pieces, cut
from decentral.types import PeerId

A, B = PeerId("a"), PeerId("b")
MAX = 5 * PIECE_BYTES


def message(num_bytes: int) -> bytes:
    return random.Random(num_bytes).randbytes(num_bytes)


@pytest.mark.parametrize("num_bytes", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, MAX])
def test_a_message_comes_out_as_it_went_in_whatever_the_order(num_bytes: int) -> None:
    whole = message(num_bytes)
    sent = list(cut(whole, 7))
    assert len(sent) == -(-num_bytes // PIECE_BYTES)
    assert sum(map(len, sent)) == num_bytes + HEADER_BYTES * len(sent)
    for seed in range(5):
        pieces = Pieces(MAX)
        shuffled = random.Random(seed).sample(sent, len(sent))
        assert [pieces.add(A, piece) for piece in shuffled] == [None] * (len(sent) - 1) + [whole]
        assert not pieces._open


def test_messages_of_several_senders_and_numbers_are_told_apart() -> None:
    pieces = Pieces(MAX)
    wholes: dict[tuple[PeerId, int], bytes] = {}
    letters: list[tuple[PeerId, bytes]] = []
    for sender, number in itertools.product((A, B), range(3)):
        whole = message(2 * PIECE_BYTES + 10 * number + len(letters) + 1)
        wholes[sender, number] = whole
        letters += [(sender, piece) for piece in cut(whole, number)]
    random.Random(0).shuffle(letters)
    came = [pieces.add(sender, piece) for sender, piece in letters]
    assert sorted(filter(None, came)) == sorted(wholes.values())


def test_what_comes_twice_counts_once() -> None:
    pieces, sent = Pieces(MAX), list(cut(message(2 * PIECE_BYTES), 0))
    assert pieces.add(A, sent[0]) is None
    assert pieces.add(A, sent[0]) is None
    assert pieces.add(A, sent[1]) == message(2 * PIECE_BYTES)


def test_messages_that_are_never_complete_make_room() -> None:
    pieces = Pieces(MAX)
    for number in range(100):
        assert pieces.add(A, next(cut(message(2 * PIECE_BYTES), number))) is None
    assert len(pieces._open[A]) == 16
    last = list(cut(message(2 * PIECE_BYTES), 99))
    assert pieces.add(A, last[1]) is not None


HEADER = struct.Struct("<QHH")


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        bytes(HEADER_BYTES - 1),
        HEADER.pack(0, 0, 1),
        HEADER.pack(0, 0, 0) + b"x",
        HEADER.pack(0, 1, 1) + b"x",
        HEADER.pack(0, 0, 6) + b"x",
        HEADER.pack(0, 0, 1) + bytes(PIECE_BYTES + 1),
    ],
    ids=["nothing", "short", "no body", "of none", "behind the last", "too many", "too long"],
)
def test_what_is_no_piece_is_refused_and_leaves_nothing(piece: bytes) -> None:
    pieces = Pieces(MAX)
    with pytest.raises(FrameError, match="piece"):
        pieces.add(A, piece)
    assert not pieces._open


def test_pieces_that_disagree_on_their_count_are_refused() -> None:
    pieces = Pieces(MAX)
    assert pieces.add(A, HEADER.pack(0, 4, 5) + b"x") is None
    with pytest.raises(FrameError, match=r"pieces \[1, 4\] of 2"):
        pieces.add(A, HEADER.pack(0, 1, 2) + b"x")
    assert not pieces._open
