"""What a push may count for, by lengths and directions of the others' last ones."""

import pytest
import torch

from decentral.exchange.bounds import Kind
from decentral.exchange.server.usual import Look, Usual
from decentral.types import PeerId

WORKERS = [PeerId(name) for name in "abcde"]


def along(length: float) -> Look:
    """A push as all others, but for its length."""
    return Look(length, length * torch.ones(1))


def judged(*lengths: float) -> tuple[Kind | None, float]:
    """The last of several pushes: what is wrong with it, and its share."""
    usual = Usual(5.0, 0)
    *before, last = lengths
    for worker, length in zip(WORKERS, before, strict=False):
        usual.note(worker, along(length))
    found = usual.judge(WORKERS[len(before)], along(last), set(WORKERS))
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
    usual = Usual(5.0, 0)
    assert usual.judge(WORKERS[0], along(1.0), set(WORKERS)) is None
    assert usual.judge(WORKERS[1], along(60.0), {WORKERS[1]}) is None


def test_who_was_away_while_the_others_pushed_may_bring_as_much_more() -> None:
    usual = Usual(5.0, 0)
    for worker in "abc" + 9 * "ab":
        usual.note(PeerId(worker), along(1.0))
    found = usual.judge(WORKERS[2], along(30.0), set(WORKERS))
    assert found is not None
    assert (found.kind, found.share) == (None, 1.0), "19 pushes of three workers, more than six rounds"
    found = usual.judge(WORKERS[2], along(30.0), set(WORKERS))
    assert found is not None
    assert found.kind is Kind.LENGTH, "once"


@pytest.mark.parametrize(
    ("sign", "agreement", "kind"),
    [(-1.0, 0.5, Kind.AGAINST), (1.0, 0.5, None), (-1.0, 0.0, None)],
    ids=["against", "along", "nobody agrees"],
)
@pytest.mark.parametrize("size", [20_000, 5_000])
def test_a_push_against_most_others_is_left_out_where_these_agree(
    sign: float, agreement: float, kind: Kind | None, size: int
) -> None:
    usual = Usual(5.0, 0)
    common_N = torch.randn(size, generator=torch.Generator().manual_seed(0))
    for number, worker in enumerate(WORKERS):
        own_N = torch.randn(size, generator=torch.Generator().manual_seed(1 + number))
        pushed_N = agreement * common_N + (1 - agreement) * own_N
        found = usual.judge(worker, usual.look(pushed_N * (sign if worker == WORKERS[-1] else 1.0)), set(WORKERS))
    assert found is not None
    assert found.kind is kind
    assert (found.share == 0) == (kind is not None)
