from collections.abc import Sequence

import pytest

from decentral.exchange.allreduce.outlook import Outlook
from decentral.swarm.presence import Presence, State
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

KEY = SyncKey(5, 0)


def at(rounds: Sequence[int], state: State = State.TRAINING) -> list[Presence]:
    return [Presence(PeerId(f"{state}-{i}"), "run", 1, state, round_, 0, "") for i, round_ in enumerate(rounds)]


@pytest.mark.parametrize(
    ("living", "ahead"),
    [
        (at([5, 5, 6]), None),
        (at([5, 5, 6, 6]), "training-2"),
        (at([5]) + at([9], State.DONE), "done-0"),
        (at([5]) + at([9, 9], State.LEAVING), None),
        ([], None),
    ],
)
def test_a_round_is_over_when_half_of_the_run_is_past_it(living: list[Presence], ahead: str | None) -> None:
    assert Outlook(living, Timing()).of(KEY).ahead == ahead


@pytest.mark.parametrize(
    ("living", "left_behind"),
    [
        (at([5, 3]), None),
        (at([5, 3, 3]), "training-1"),
        (at([5, 4, 4]), None),
        (at([5]) + at([3, 3], State.DONE), None),
    ],
)
def test_who_calls_too_early_has_left_the_majority_behind(living: list[Presence], left_behind: str | None) -> None:
    assert Outlook(living, Timing()).of(KEY).left_behind == left_behind


def test_only_members_that_are_not_slow_are_expected_but_all_may_lead() -> None:
    paces = {"a": 10.0, "b": 10.0, "c": 100.0}
    members = [Presence(PeerId(p), "run", 1, State.TRAINING, 5, 0, "", round_s=s) for p, s in paces.items()]
    outlook = Outlook(members + at([5], State.JOINING), Timing())
    assert outlook.expected == ("a", "b")
    assert sorted(outlook.of(KEY).candidates) == ["a", "b", "c"]
