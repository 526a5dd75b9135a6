import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from decentral.swarm import roster as module
from decentral.swarm.presence import ACTIVE, Metrics, Presence, State
from decentral.swarm.roster import Roster, without
from decentral.types import PeerId

TTL_S = 6.0
#: Without a figure that is not known yet, as a record with a NaN is equal to none.
KNOWN = Metrics(loss=1.0, val_loss=1.0, spread=0.0)
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def presence(peer: PeerId, seq: int = 1, state: State = State.TRAINING) -> Presence:
    return Presence(peer, "run", seq, state, 0, 0, "", metrics=KNOWN)


def test_a_peer_lives_for_its_time_to_live_after_each_news() -> None:
    roster = Roster(TTL_S)
    assert roster.observe(presence(A), 10.0)
    assert roster.is_live(A, 15.99)
    assert not roster.is_live(A, 16.0)
    assert roster.observe(presence(A, seq=2), 20.0)
    assert roster.is_live(A, 25.99)


def test_a_record_that_was_observed_is_known_and_so_are_older_ones() -> None:
    roster = Roster(TTL_S)
    assert not roster.knows(presence(A))
    roster.observe(presence(A, seq=5), 0.0)
    assert [roster.knows(presence(A, seq=seq)) for seq in (4, 5, 6)] == [True, True, False]
    assert not roster.knows(presence(B, seq=4))


def test_all_but_one() -> None:
    assert [without(peer, (A, C)) for peer in (A, B, C)] == [[C], [A, C], [A]]


def test_who_was_never_heard_of_is_not_alive() -> None:
    roster = Roster(TTL_S)
    assert not roster.is_live(A, 0.0)
    assert roster.get(A) is None
    roster.vouch((A,), 0.0)
    roster.bury(A)
    assert roster.live(0.0) == ()


@pytest.mark.parametrize("seq", [1, 0])
def test_an_old_record_is_no_sign_of_life(seq: int) -> None:
    roster = Roster(TTL_S)
    roster.observe(presence(A, seq=1, state=State.TRAINING), 0.0)
    assert not roster.observe(presence(A, seq=seq, state=State.DONE), 5.0)
    assert not roster.is_live(A, 6.0)
    assert roster.get(A) == presence(A, seq=1)


def test_news_at_second_hand_is_as_old_as_it_is() -> None:
    roster = Roster(TTL_S)
    roster.observe(presence(A), 10.0, age_s=4.0)
    assert roster.is_live(A, 11.99)
    assert not roster.is_live(A, 12.0)
    assert roster.with_ages(13.0) == [(presence(A), 7.0)]


def test_an_age_below_zero_does_not_prolong_a_life() -> None:
    roster = Roster(TTL_S)
    roster.observe(presence(A), 10.0, age_s=-100.0)
    assert not roster.is_live(A, 16.0)
    assert roster.with_ages(0.0) == [(presence(A), 0.0)]


def test_news_that_took_a_detour_does_not_undo_later_evidence() -> None:
    """A forwarder may claim any age: it must not make a peer look dead that was heard of at first hand."""
    roster = Roster(TTL_S)
    roster.observe(presence(A), 0.0)
    roster.vouch((A,), 10.0)
    assert roster.observe(presence(A, seq=2), 11.0, age_s=1e9)
    assert roster.is_live(A, 15.0)
    assert roster.get(A) == presence(A, seq=2)


def test_a_buried_peer_is_dead_until_heard_of_anew() -> None:
    roster = Roster(TTL_S)
    for peer in (A, B):
        roster.observe(presence(peer), 0.0)
        roster.bury(peer)
        assert not roster.is_live(peer, 0.0)
        assert not roster.observe(presence(peer), 0.5)
    assert roster.live(0.0) == roster.active(0.0) == ()
    roster.observe(presence(A, seq=2), 1.0)
    roster.vouch((B,), 1.0)
    assert roster.is_live(A, 1.0)
    assert roster.is_live(B, 6.9)


def test_vouching_renews_a_life() -> None:
    roster = Roster(TTL_S)
    roster.observe(presence(A), 0.0)
    roster.vouch((A,), 5.0)
    assert roster.is_live(A, 10.9)
    assert not roster.is_live(A, 11.0)


def test_lists_are_in_order_of_peer_id_and_hold_whom_they_say() -> None:
    roster = Roster(TTL_S)
    states = {C: State.TRAINING, A: State.SYNCING, B: State.LEAVING, PeerId("d"): State.JOINING}
    for peer, state in states.items():
        roster.observe(presence(peer, state=state), 0.0)
    assert [p.peer for p in roster.live(1.0)] == ["a", "b", "c", "d"]
    assert [p.peer for p in roster.active(1.0)] == ["a", "c"]
    roster.observe(replace(presence(C, seq=2), state=State.DONE), 7.0)
    assert [p.peer for p in roster.live(7.0)] == ["c"]
    assert roster.active(7.0) == ()
    assert [p.peer for p, _ in roster.with_ages(7.0)] == ["a", "b", "c", "d"]


def test_the_long_silent_are_forgotten() -> None:
    roster = Roster(TTL_S)
    roster.observe(presence(A), 0.0)
    roster.observe(presence(B), 20 * TTL_S)
    roster.forget(20 * TTL_S)
    assert roster.get(A) is not None
    roster.forget(20 * TTL_S + 0.1)
    assert roster.get(A) is None
    assert [p.peer for p, _ in roster.with_ages(130.0)] == ["b"]


def test_the_latest_news_to_come_in_is_told_first_while_it_is_fresh() -> None:
    roster = Roster(TTL_S)
    for peer, at, age_s in ((A, 0.0, 0.0), (B, 5.0, 2.0), (C, 5.0, 1.0), (PeerId("d"), 5.0, TTL_S)):
        roster.observe(presence(peer), at, age_s=age_s)
    assert roster.latest(5.5, 4) == [(C, 1.5), (B, 2.5), (A, 5.5)]
    roster.observe(presence(B, seq=2), 6.0)
    assert roster.latest(6.0, 4) == [(B, 0.0), (C, 2.0)]
    assert roster.latest(6.0, 1) == [(B, 0.0)]


def test_lists_are_made_anew_only_when_they_may_have_changed() -> None:
    roster = Roster(TTL_S)
    roster.observe(presence(A), 0.0)
    roster.observe(presence(B), 1.0)
    before = roster.live(1.0)
    assert not roster.observe(presence(A), 2.0)
    roster.vouch((A,), 2.0)
    assert roster.live(5.9) is before
    assert roster.live(7.0) == (presence(A),)
    roster.vouch((B,), 7.5)
    assert roster.live(7.5) == (presence(A), presence(B))


def test_no_more_peers_than_the_bound_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PEERS", 3)
    roster = Roster(TTL_S)
    for number, peer in enumerate("edcba"):
        roster.observe(presence(PeerId(peer)), float(number))
    assert [p.peer for p, _ in roster.with_ages(5.0)] == ["a", "b", "c"]


steps = st.lists(
    st.tuples(
        st.sampled_from(["observe", "observe", "observe", "vouch", "bury", "drop"]),
        st.sampled_from([A, B, C]),
        st.tuples(st.integers(0, 9), st.sampled_from([State.TRAINING, State.SYNCING, State.JOINING, State.DONE])),
        st.floats(0, 4),
        st.floats(-1, 9),
    ),
    max_size=40,
)


@given(steps=steps)
def test_lists_are_those_who_live_with_their_last_records(
    steps: list[tuple[str, PeerId, tuple[int, State], float, float]],
) -> None:
    roster, now = Roster(TTL_S), 0.0
    highest: dict[PeerId, int] = {}
    for what, peer, (seq, state), wait_s, age_s in steps:
        now += wait_s
        if what == "observe":
            news = roster.observe(presence(peer, seq, state), now, age_s=age_s)
            assert news == (seq > highest.get(peer, -1))
            highest[peer] = max(seq, highest.get(peer, -1))
        elif what == "vouch":
            roster.vouch((peer,), now)
        elif what == "drop":
            roster.drop({peer})
            highest.pop(peer, None)
        else:
            roster.bury(peer)
            assert not roster.is_live(peer, now)
        live = [record for p in (A, B, C) if roster.is_live(p, now) and (record := roster.get(p)) is not None]
        active = [record for record in live if record.state in ACTIVE]
        done = [record for record, _ in roster.with_ages(now) if record.state is State.DONE]
        assert list(roster.live(now)) == live
        assert list(roster.active(now)) == active
        assert list(roster.runners(now)) == [*active, *done]
        assert {p.peer: p.seq for p, _ in roster.with_ages(now)} == highest


def test_who_lives_is_the_same_object_as_long_as_they_are_the_same() -> None:
    roster = Roster(TTL_S)
    for peer in (B, A):
        roster.observe(presence(peer), 0.0)
    before = roster.live_peers(1.0), roster.active_peers(1.0)
    assert before == ((A, B), (A, B))
    roster.observe(presence(B, seq=2), 2.0)
    roster.vouch((A,), 3.0)
    assert roster.live_peers(7.0) is before[0]
    assert roster.active_peers(7.0) is before[1]
    roster.observe(presence(B, seq=3, state=State.LEAVING), 7.0)
    assert (roster.live_peers(7.0), roster.active_peers(7.0)) == ((A, B), (A,))
    roster.bury(A)
    assert (roster.live_peers(7.0), roster.active_peers(7.0)) == ((B,), ())


def test_the_longest_silent_are_those_whose_news_is_oldest() -> None:
    roster = Roster(TTL_S)
    for at, peer in enumerate((A, B, C)):
        roster.observe(presence(peer), float(at))
    roster.observe(presence(A, seq=2), 9.0)
    assert roster.longest_silent(2) == {B, C}


def test_the_silent_are_forgotten_when_it_is_time_and_not_before() -> None:
    roster = Roster(TTL_S)
    roster.observe(presence(A), 0.0)
    roster.forget(1.0)
    roster.observe(presence(B), 100.0)
    for now, known in ((119.0, [A, B]), (121.0, [B]), (219.0, [B]), (221.0, [])):
        roster.forget(now)
        assert list(roster) == known
