"""Whom a worker avoids, for how long, and that it forgets."""

from collections.abc import Iterable

import pytest

from decentral.exchange.offences import Avoidance, Offences
from decentral.types import PeerId

A, B = PeerId("a"), PeerId("b")
ROUND_S = 20.0
#: The first time: ten rounds.
FIRST_S = 200.0
MOST_S = FORGOTTEN_S = 6 * 3600.0


def after(times: Iterable[float], round_s: float = ROUND_S, peer: PeerId = A) -> Offences:
    """Offences of a peer at these moments."""
    offences = Offences()
    for now in times:
        offences.note(peer, f"at {now:g}", now, round_s)
    return offences


def test_one_may_be_an_accident() -> None:
    offences = after([0.0])
    assert not offences.avoids(A, 0.0)
    assert offences.avoided(0.0) == ()


def test_the_second_has_consequences_for_that_peer_and_a_while() -> None:
    offences = after([0.0, 5.0])
    assert offences.avoids(A, 5.0)
    assert offences.avoids(A, 5.0 + FIRST_S - 0.1)
    assert not offences.avoids(A, 5.0 + FIRST_S)
    assert not offences.avoids(B, 5.0)
    assert offences.avoided(105.0) == (Avoidance(A, "at 5", FIRST_S - 100.0),)
    assert offences.avoided(5.0 + FIRST_S) == ()


@pytest.mark.parametrize("round_s", [0.0, 0.01, 6.0])
def test_in_short_rounds_a_while_is_a_minute(round_s: float) -> None:
    offences = after([0.0, 0.0], round_s)
    assert offences.avoids(A, 59.9)
    assert not offences.avoids(A, 60.0)


def test_every_further_one_costs_twice_as_much_up_to_a_bound() -> None:
    for more in range(8):
        (avoidance,) = after([0.0] * (2 + more)).avoided(0.0)
        assert avoidance.seconds == min(MOST_S, FIRST_S * 2**more)
    (avoidance,) = after([0.0] * 5000).avoided(0.0)
    assert avoidance.seconds == MOST_S


def test_what_honest_ones_may_do_costs_five_rounds_each_time() -> None:
    offences = Offences()
    for now in (0.0, 1.0, 101.0, 300.0):
        offences.note(A, "against", now, ROUND_S, brief=True)
        assert offences.avoids(A, now) is (now > 0)
    (avoidance,) = offences.avoided(300.0)
    assert avoidance.seconds == 5 * ROUND_S
    offences.note(A, "wild", 400.0, ROUND_S)
    assert offences.avoids(A, 400.0 + FIRST_S), "what they may not costs more than the first time"
    offences.note(A, "against", 410.0, ROUND_S, brief=True)
    assert offences.avoids(A, 400.0 + FIRST_S), "and not less for what follows"


@pytest.mark.parametrize("before", [1, 2, 3])
def test_an_offence_is_forgotten_in_time(before: int) -> None:
    """Counted from the offence, or from the end of the avoidance."""
    times = [0.0] * before
    quiet_since_s = sum(each.seconds for each in after(times).avoided(0.0))
    again_s = quiet_since_s + FORGOTTEN_S
    (avoidance,) = after([*times, again_s]).avoided(again_s)
    assert avoidance.seconds == FIRST_S * 2 ** (before - 1), "not yet"
    late_s = again_s + 1.0
    offences = after([*times, late_s])
    assert not offences.avoids(A, late_s), "one may be an accident"
    offences.note(A, "again", late_s, ROUND_S)
    (avoidance,) = offences.avoided(late_s)
    assert avoidance.seconds == FIRST_S


def test_those_avoided_are_in_order_of_peer_id() -> None:
    offences = after([0.0, 0.0], peer=B)
    for _ in range(2):
        offences.note(A, "noise", 0.0, ROUND_S)
    assert [each.peer for each in offences.avoided(1.0)] == [A, B]


def test_endless_peers_take_bounded_memory_and_who_offended_long_ago_is_forgotten_first() -> None:
    offences = after([0.0, 0.0])
    for number in range(1023):
        offences.note(PeerId(f"{number}"), "noise", 1.0, ROUND_S)
    assert offences.avoids(A, 2.0)
    offences.note(A, "again", 2.0, ROUND_S)
    for number in range(1023):
        offences.note(PeerId(f"x{number}"), "noise", 3.0, ROUND_S)
    assert offences.avoids(A, 4.0)
    offences.note(B, "noise", 4.0, ROUND_S)
    assert not offences.avoids(A, 5.0)
