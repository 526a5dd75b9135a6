"""Of how many rounds somebody may bring the work."""

from decentral.exchange.backlog import Backlog
from decentral.types import PeerId

A, B, C = (PeerId(name) for name in "abc")


def test_each_round_in_which_somebody_was_not_counted_is_one_more() -> None:
    backlog = Backlog()
    backlog.counted((A, B))
    assert [backlog.rounds(peer) for peer in (A, B, C)] == [1, 1, 1], "of C nothing is known yet"
    for _ in range(3):
        backlog.counted((A,))
    assert [backlog.rounds(peer) for peer in (A, B)] == [1, 4]
    backlog.counted((A, B))
    assert backlog.rounds(B) == 1
    for _ in range(100):
        backlog.counted((A,))
    assert backlog.rounds(B) == 8, "no more at once, however long somebody was away"


def test_where_each_is_counted_by_itself_a_round_is_as_many() -> None:
    backlog = Backlog()
    for peer in (A, B, C, A, B, A, B, A, B):
        backlog.counted((peer,))
    assert [backlog.rounds(peer, per_round=3) for peer in (A, B)] == [1, 1]
    assert backlog.rounds(C, per_round=3) == 7 / 3
