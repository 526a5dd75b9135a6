import torch

from decentral.exchange.rest import _SPARE_ROUNDS, MeanRest
from decentral.types import SyncKey

FIRST, SECOND = SyncKey(0, 0), SyncKey(1, 0)


def owed(rest: MeanRest, key: SyncKey, start: int, numel: int) -> list[float]:
    owed_S = rest.of(key, start, start + numel)
    return [0.0] * numel if owed_S is None else owed_S.tolist()


def test_what_was_left_out_is_owed_once_the_round_counts() -> None:
    rest = MeanRest((6,))
    assert owed(rest, FIRST, 0, 6) == [0.0] * 6
    rest.hold(b"participants", FIRST, 2, torch.tensor([1.0, -1.0]))
    assert owed(rest, SECOND, 0, 6) == [0.0] * 6
    rest.settle(b"participants", mixed=True)
    assert owed(rest, SECOND, 0, 6) == [0.0, 0.0, 1.0, -1.0, 0.0, 0.0]
    assert owed(rest, SECOND, 3, 2) == [-1.0, 0.0], "under another cut"


def test_a_later_rest_replaces_what_went_into_its_mean() -> None:
    rest = MeanRest((3,))
    for number, left in enumerate(([1.0, 1.0, 1.0], [0.5, 0.0])):
        participants = bytes([number])
        rest.hold(participants, FIRST, 0, torch.tensor(left))
        rest.settle(participants, mixed=True)
    assert owed(rest, SECOND, 0, 3) == [0.5, 0.0, 1.0]


def test_a_round_that_came_to_nothing_changes_nothing() -> None:
    rest = MeanRest((2,))
    rest.hold(b"one", FIRST, 0, torch.tensor([1.0, 2.0]))
    rest.settle(b"one", mixed=True)
    rest.hold(b"two", SECOND, 0, torch.tensor([5.0, 5.0]))
    rest.settle(b"two", mixed=False)
    rest.settle(b"never heard of", mixed=True)
    assert owed(rest, SECOND, 0, 2) == [1.0, 2.0]


def test_fragments_are_apart() -> None:
    rest = MeanRest((2, 3))
    rest.hold(b"participants", SyncKey(0, 1), 1, torch.tensor([4.0]))
    rest.settle(b"participants", mixed=True)
    assert owed(rest, SyncKey(1, 0), 0, 2) == [0.0, 0.0]
    assert owed(rest, SyncKey(1, 1), 0, 3) == [0.0, 4.0, 0.0]


def test_rounds_that_never_end_are_forgotten() -> None:
    rest = MeanRest((1,))
    for number in range(1 + _SPARE_ROUNDS + 1):
        rest.hold(bytes([number]), FIRST, 0, torch.tensor([float(number + 1)]))
    rest.settle(bytes([0]), mixed=True)
    assert owed(rest, SECOND, 0, 1) == [0.0]
    rest.settle(bytes([1]), mixed=True)
    assert owed(rest, SECOND, 0, 1) == [2.0]


def test_a_mean_that_is_taken_twice_is_owed_once() -> None:
    rest = MeanRest((2,))
    for left in ([1.0, 1.0], [2.0, 2.0]):
        rest.hold(b"participants", FIRST, 0, torch.tensor(left))
    rest.settle(b"participants", mixed=True)
    assert owed(rest, SECOND, 0, 2) == [2.0, 2.0]


def test_what_is_void_is_not_owed() -> None:
    rest = MeanRest((2, 2))
    for fragment in (0, 1):
        rest.hold(b"participants", SyncKey(0, fragment), 0, torch.tensor([1.0, 1.0]))
    rest.settle(b"participants", mixed=True)
    rest.void(SyncKey(1, 0))
    assert owed(rest, SyncKey(1, 0), 0, 2) == [0.0, 0.0]
    assert owed(rest, SyncKey(1, 1), 0, 2) == [1.0, 1.0]
