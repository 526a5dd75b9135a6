"""What a reducer keeps of what it has answered, within its budget."""

from decentral.exchange.allreduce.account import Used
from decentral.exchange.allreduce.books import Books
from decentral.exchange.allreduce.messages import Mean
from decentral.sim.identity import SimIdentity
from decentral.types import PeerId

PART = Used(0, 1.0, 1.0, bytes(16), b""), bytes(1000)


def closed(books: Books, *rounds: int) -> None:
    for round_ in rounds:
        books.close(b"round %d" % round_, 0, Mean.of((0,), b""), 1.0, [PART])


def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    books = Books(SimIdentity(PeerId("me")), 4000)
    closed(books, *range(5))
    kept = [bool(books.account(b"round %d" % round_, 0)) for round_ in range(5)]
    assert kept == [False, False, True, True, True]
    assert books.exhibit(b"round 4", 0, 0) == PART[1]
    assert books.exhibit(b"round 4", 0, 2) == b""


def test_a_shard_that_is_closed_twice_counts_once() -> None:
    """A call that closes a shard may be cut off after the answer was made; then another one closes it."""
    books = Books(SimIdentity(PeerId("me")), 4000)
    closed(books, *[0] * 20, 1, 2)
    assert all(books.account(b"round %d" % round_, 0) for round_ in range(3))
