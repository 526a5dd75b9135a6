"""What a push may count for, by the lengths of the others' last ones."""

import pytest

from decentral.exchange.bounds import Kind
from decentral.exchange.server.usual import Usual
from decentral.types import PeerId

WORKERS = [PeerId(name) for name in "abcde"]


def judged(*lengths: float) -> tuple[Kind | None, float]:
    """The last of several pushes: what is wrong with it, and its share."""
    usual = Usual(5.0)
    *before, last = lengths
    for worker, length in zip(WORKERS, before, strict=False):
        usual.note(worker, length)
    found = usual.judge(WORKERS[len(before)], last, set(WORKERS))
    assert found is not None
    return found.kind, found.share


@pytest.mark.parametrize(
    ("lengths", "kind", "share"),
    [
        ((1.0, 1.2, 5.0), None, 1.0),
        ((1.0, 1.0, 10.0), Kind.LENGTH, 0.5),
        ((1.0, 1.0, 60.0), Kind.WILD, 0.0),
        ((1.0, 1.0, 0.0), Kind.NOTHING, 0.0),
        ((0.0, 0.0, 0.0), None, 1.0),
        # One that lies is not what is usual; of two the shorter one is.
        ((1.0, 1e6, 1.0, 1.0), None, 1.0),
        ((1.0, 1e6), Kind.WILD, 0.0),
        ((1e6, 1.0), None, 1.0),
    ],
)
def test_a_push_is_bounded_by_the_median_of_the_last_ones(
    lengths: tuple[float, ...], kind: Kind | None, share: float
) -> None:
    assert judged(*lengths) == (kind, share)


def test_the_dead_say_nothing_and_the_very_first_push_cannot_be_judged() -> None:
    assert judged(1.0, 1.0, 1.0, 60.0) == (Kind.WILD, 0.0)
    usual = Usual(5.0)
    assert usual.judge(WORKERS[0], 1.0, set(WORKERS)) is None
    assert usual.judge(WORKERS[1], 60.0, {WORKERS[1]}) is None


def test_who_was_away_while_the_others_pushed_may_bring_as_much_more() -> None:
    usual = Usual(5.0)
    for worker in "abc" + 9 * "ab":
        usual.note(PeerId(worker), 1.0)
    found = usual.judge(WORKERS[2], 30.0, set(WORKERS))
    assert found is not None
    assert (found.kind, found.share) == (None, 1.0), "19 pushes of three workers, more than six rounds"
    found = usual.judge(WORKERS[2], 30.0, set(WORKERS))
    assert found is not None
    assert found.kind is Kind.LENGTH, "once"
