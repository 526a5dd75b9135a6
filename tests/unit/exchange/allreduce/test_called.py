"""When most members contradict what a leader said."""

import pytest

from decentral.exchange.allreduce.called import Called, contradicts
from decentral.exchange.allreduce.members import Word
from decentral.exchange.allreduce.messages import Where
from decentral.exchange.allreduce.participants import Participants
from decentral.exchange.api import Aborted, Reason
from decentral.swarm.message import to_wire
from decentral.types import PeerId, SyncKey

KEY = SyncKey(4, 0)
A, B, C, D = (PeerId(name) for name in "abcd")
LIST = Participants(KEY, A, 0, "base", (A, B), ((C, "late"),))
BEHIND = Aborted(Reason.BEHIND, source=A)
HERE, PAST, TOLD = Where(4, "base", b""), Where(5, "new", b""), Where(4, "base", to_wire(LIST))


def word(a: Where, b: Where, c: Where) -> Word:
    """Of three others; the one that asks is D."""
    return Word(3, {A: a, B: b, C: c})


@pytest.mark.parametrize(
    ("said", "by_two_there", "by_one", "by_those_told"),
    [
        (BEHIND, True, False, True),
        (Called(LIST, to_wire(LIST), BEHIND), True, False, False),
        (Aborted(Reason.REFUSED), True, False, True),
        (Aborted(Reason.OUT_OF_SYNC, source=A), True, False, True),
        (Called(Participants(KEY, A, 0, "base", (A, D)), b"list"), True, False, False),
    ],
)
def test_who_contradicts_what(said: Called | Aborted, by_two_there: bool, by_one: bool, by_those_told: bool) -> None:
    assert contradicts(word(PAST, HERE, HERE), KEY, "base", said) == by_two_there
    assert contradicts(word(PAST, PAST, HERE), KEY, "base", said) == by_one
    assert contradicts(word(TOLD, TOLD, HERE), KEY, "base", said) == by_those_told


@pytest.mark.parametrize("said", [BEHIND, Called(LIST, to_wire(LIST), BEHIND), Aborted(Reason.OUT_OF_SYNC, source=A)])
def test_a_worker_that_has_nobody_to_ask_contradicts_nobody(said: Called | Aborted) -> None:
    """Of two, one that does not wait for the other would go on alone with an anchor of its own."""
    assert not contradicts(Word(0, {}), KEY, "base", said)
    assert not contradicts(Word(1, {A: PAST}), KEY, "base", said)
    assert not contradicts(Word(1, {}), KEY, "base", said)


def test_who_is_doubted_is_absent_with_a_reason_unless_it_takes_part() -> None:
    called = Called(LIST, b"", doubted=(A, D))
    assert called.absent == ((C, "late"), (D, "said of the round what most members contradict"))
