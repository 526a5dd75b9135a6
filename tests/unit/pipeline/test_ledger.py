"""A batch's account: each micro-batch counted once at every stage, whatever is lost, late, sent again or comes back."""

from collections.abc import Mapping

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from decentral.pipeline.ledger import Ledger
from decentral.pipeline.packets import Hop
from decentral.types import PeerId
from tests.unit.pipeline.swarm import HEAD, NUM_MICROBATCHES, Swarm


def path(*peers: str) -> tuple[Hop, ...]:
    """Through stages 1, 2, ..."""
    between = [Hop(stage, PeerId(peer)) for stage, peer in enumerate(peers, 1)]
    return (Hop(0, HEAD), *between, Hop(0, HEAD))


A, B, C, D = (PeerId(name) for name in "abcd")


def test_by_hand() -> None:
    ledger = Ledger(3)
    assert (ledger.waiting(), ledger.in_flight, ledger.complete, ledger.peers()) == ([0, 1, 2], 0, False, set())
    assert [ledger.sent(index, path("a", "b")) for index in (2, 0)] == [0, 0]
    assert (ledger.waiting(), ledger.in_flight, ledger.peers()) == ([1], 2, {A, B})
    assert ledger.done(2, 0)
    assert not ledger.done(2, 0)
    assert ledger.is_current(0, 0)
    assert not ledger.is_current(0, 1)
    assert not ledger.is_current(1, 0)
    assert ledger.sent(1, path("a", "c")) == 0
    assert ledger.keep(1) == {1: A, 2: C}
    assert ledger.lost(B) == [0, 2]
    assert ledger.lost(B) == []
    assert (ledger.waiting(), ledger.banned, ledger.peers()) == ([0, 2], {B}, {A, C})
    assert ledger.keep(2) == {1: A}
    assert not ledger.done(0, 0)
    assert [ledger.sent(0, path("a", "c")), ledger.sent(2, path("a", "d"))] == [1, 1]
    assert all(ledger.done(index, attempt) for index, attempt in ((0, 1), (1, 0), (2, 1)))
    assert ledger.complete
    assert ledger.shares() == {Hop(1, A): (0, 1, 2), Hop(2, C): (0, 1), Hop(2, D): (2,)}


def test_a_failed_one_goes_again_through_the_same_replicas() -> None:
    ledger = Ledger(1)
    assert (ledger.attempt(0), ledger.path(0)) == (-1, ())
    ledger.sent(0, path("a", "b"))
    assert ledger.path(0) == path("a", "b")
    ledger.failed(0, 0)
    assert ledger.attempt(0) == 0
    assert ledger.waiting() == [0]
    assert ledger.keep(0) == {1: A, 2: B}
    for other in (path("a", "c"), path("c", "b")):
        with pytest.raises(ValueError, match="may not go to stage"):
            ledger.sent(0, other)
    assert ledger.sent(0, path("a", "b")) == 1
    ledger.failed(0, 0)
    assert ledger.is_current(0, 1)
    assert ledger.done(0, 1)
    ledger.failed(0, 1)
    assert ledger.complete


def test_what_must_not_be_sent() -> None:
    ledger = Ledger(2)
    ledger.sent(0, path("a"))
    for index in (0, 2, -1):
        with pytest.raises(ValueError, match="is not to be sent"):
            ledger.sent(index, path("a"))
    assert ledger.lost(B) == []
    with pytest.raises(ValueError, match="may not go to stage 1 at b"):
        ledger.sent(1, path("b"))
    assert ledger.keep(1) == {}
    with pytest.raises(ValueError, match="not complete"):
        ledger.shares()


def test_after_all_was_done_a_loss_opens_the_batch_again() -> None:
    ledger = Ledger(2)
    for index, peer in enumerate("ab"):
        ledger.sent(index, path(peer, "c"))
        ledger.done(index, 0)
    assert ledger.lost(A) == [0]
    assert not ledger.complete
    assert ledger.keep(0) == {2: C}
    ledger.sent(0, path("b", "c"))
    ledger.done(0, 1)
    assert ledger.shares() == {Hop(1, B): (0, 1), Hop(2, C): (0, 1)}


def test_a_peer_that_holds_two_stages_is_lost_at_both() -> None:
    ledger = Ledger(2)
    ledger.sent(0, path("a", "b"))
    ledger.sent(1, path("c", "a"))
    assert ledger.hops(A) == {Hop(1, A), Hop(2, A)}
    assert ledger.lost(A) == [0, 1]
    assert (ledger.keep(0), ledger.keep(1)) == ({2: B}, {1: C})
    assert ledger.hops(A) == set()


def test_who_has_a_substitute_is_not_pardoned() -> None:
    ledger = Ledger(2)
    ledger.sent(0, path("a", "b"))
    ledger.sent(1, path("a", "b"))
    assert ledger.lost(B) == [0, 1]
    assert ledger.pardon(B)
    assert ledger.keep(0) == {1: A, 2: B}
    ledger.lost(B)
    ledger.sent(0, path("a", "c"))
    assert not ledger.pardon(B)
    assert ledger.banned == {B}
    ledger.lost(C)
    assert ledger.pardon(B)
    assert not ledger.pardon(C)
    assert ledger.keep(0) == ledger.keep(1) == {1: A, 2: B}


class LedgerMachine(RuleBasedStateMachine):
    """Whatever may happen to a batch, in any order; in the end it is completed, and every count is looked at."""

    def __init__(self, ledger: type[Ledger] = Ledger) -> None:
        super().__init__()
        self.swarm = Swarm(ledger(NUM_MICROBATCHES))

    @precondition(lambda self: self.swarm.ledger.waiting())
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(self.swarm.ledger.waiting()))
        self.swarm.send(index, lambda peers: data.draw(st.sampled_from(peers)))

    @precondition(lambda self: self.swarm.letters)
    @rule(data=st.data(), steps=st.integers(1, 12), twice=st.booleans())
    def deliver(self, data: st.DataObject, steps: int, twice: bool) -> None:
        """One packet goes some hops while all others wait."""
        letters = self.swarm.letters
        letter = data.draw(st.sampled_from(letters))
        self.swarm.deliver(letter, twice=twice)
        for _ in range(steps - 1):
            if letters and (letters[-1].index, letters[-1].attempt) == (letter.index, letter.attempt):
                self.swarm.deliver(letters[-1])

    @precondition(lambda self: self.swarm.letters)
    @rule(data=st.data())
    def lose_a_packet(self, data: st.DataObject) -> None:
        self.swarm.letters.remove(data.draw(st.sampled_from(self.swarm.letters)))

    @rule(index=st.integers(0, NUM_MICROBATCHES - 1), attempt=st.integers(0, 4))
    def lose_patience(self, index: int, attempt: int) -> None:
        """Rightly or not."""
        self.swarm.ledger.failed(index, attempt)

    @rule(data=st.data(), noticed=st.booleans())
    def kill(self, data: st.DataObject, noticed: bool) -> None:
        peer = self.anybody(data)
        self.swarm.crash(peer, restarts=False)
        if noticed:
            self.swarm.ledger.lost(peer)

    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        self.swarm.ledger.lost(self.anybody(data))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        self.swarm.crash(self.anybody(data), restarts=True)

    @rule(data=st.data())
    def pardon(self, data: st.DataObject) -> None:
        self.swarm.ledger.pardon(self.anybody(data))

    @precondition(lambda self: self.swarm.ledger.complete)
    @rule()
    def settle(self) -> None:
        if self.swarm.settled():
            self.swarm.check_shares()

    @invariant()
    def nothing_can_be_counted_twice(self) -> None:
        self.swarm.check()

    def anybody(self, data: st.DataObject) -> PeerId:
        return data.draw(st.sampled_from(sorted(self.swarm.replicas)))

    def teardown(self) -> None:
        self.swarm.finish(lambda peers: peers[0])


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = LedgerMachine.TestCase


class LetsGo(Ledger):
    """Sends a micro-batch to anybody."""

    def keep(self, index: int) -> Mapping[int, PeerId]:
        return {}


class Credulous(Ledger):
    """Takes any answer for that of the attempt under way."""

    def is_current(self, index: int, attempt: int) -> bool:
        return super().is_current(index, self.attempt(index))


class Satisfied(Ledger):
    """Leaves at it what was done."""

    def lost(self, peer: PeerId) -> list[int]:
        done = set(self._done)
        again = super().lost(peer)
        self._done |= done
        self._waiting -= done
        return again


class Forgiving(Ledger):
    """Lets all come back."""

    def pardon(self, peer: PeerId) -> bool:
        self._banned.discard(peer)
        return True


@pytest.mark.parametrize("broken", [LetsGo, Credulous, Satisfied, Forgiving])
def test_a_ledger_that_counts_wrongly_is_found(broken: type[Ledger]) -> None:
    found = settings(
        max_examples=1000,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(lambda: LedgerMachine(broken), settings=found)
