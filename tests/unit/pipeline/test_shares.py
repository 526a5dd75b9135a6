"""A replica's account by hand, and with the head's: batch after batch, with deaths at any moment."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from decentral.pipeline.ledger import Ledger
from decentral.pipeline.packets import Commit, Hop
from decentral.pipeline.shares import Shares
from decentral.types import PeerId


def commit(batch: int, indices: tuple[int, ...] | None, slot: int = 0) -> Commit:
    return Commit(slot, batch, batch, indices, math.nan, 0)


def test_what_is_part_of_the_weights_that_go_on_is_not_counted_again() -> None:
    shares = Shares({0: 4, 7: 2})
    assert (shares.applied(), shares.committed(0), shares.committed(7)) == ({0: 4, 7: 2}, 4, 2)
    # A head that is behind: what it sends passes through, and it is told that nothing is missing.
    assert [shares.count(0, batch, 1) for batch in (3, 4)] == [None, None]
    assert [shares.commit(commit(batch, (0, 1))) for batch in (3, 4)] == [(), ()]
    assert shares.take() == []
    assert shares.count(0, 5, 1) == 0
    assert shares.commit(commit(5, (1,))) == ()
    assert [ready.commit.batch for ready in shares.take()] == [5]
    assert shares.applied() == {0: 5, 7: 2}


def test_a_batch_by_hand() -> None:
    shares = Shares()
    assert (shares.committed(0), shares.pending(0), shares.slots_ready()) == (-1, 0, set())
    assert [shares.count(0, 0, index) for index in (1, 0, 1)] == [0, 0, None]
    assert shares.pending(0) == 2
    assert shares.holds_back(0, 1)
    assert not shares.holds_back(0, 0)
    assert not shares.holds_back(1, 1)
    assert shares.commit(commit(0, (0, 1, 2))) == (2,)
    assert shares.slots_ready() == set()
    assert shares.count(0, 0, 2) == 0
    assert shares.commit(commit(0, (0, 1, 2))) == ()
    assert shares.commit(commit(0, (0, 1, 2))) == ()
    assert (shares.committed(0), shares.slots_ready()) == (0, {0})
    assert shares.holds_back(0, 1)
    (ready,) = shares.take()
    assert (ready.indices, ready.sums, ready.late) == ((0, 1, 2), (0,), False)
    assert (shares.committed(0), shares.slots_ready(), shares.take()) == (0, set(), [])
    assert not shares.holds_back(0, 1)
    assert shares.count(0, 0, 1) is None


def test_whatever_is_held_is_committed() -> None:
    shares = Shares()
    shares.count(0, 0, 3)
    assert shares.commit(commit(0, None)) == ()
    assert [ready.indices for ready in shares.take()] == [(3,)]


def test_what_counts_elsewhere_is_dropped() -> None:
    shares = Shares()
    shares.count(0, 0, 0)
    assert shares.commit(commit(0, ())) == ()
    assert shares.holds_back(0, 0)
    assert shares.take_dropped() == {0}
    assert [ready.indices for ready in shares.take()] == [()]
    assert shares.count(0, 1, 0) == 0
    shares.give_up(0, 1)
    assert shares.pending(0) == 1
    shares.give_up(0, 2)
    assert shares.count(0, 2, 0) is None, "the sum was not thrown away yet"
    assert shares.take_dropped() == {0}
    assert shares.count(0, 2, 0) == 0


@pytest.mark.parametrize("applied", [False, True])
def test_somebody_dies_between_the_commits(applied: bool) -> None:
    """This replica has its share committed, and gets that of another one as well."""
    shares = Shares()
    shares.count(0, 0, 0)
    assert shares.commit(commit(0, (0,))) == ()
    if applied:
        shares.take()
        assert shares.count(0, 1, 0) == 0
    assert shares.commit(commit(0, (0, 1))) == (1,)
    assert shares.count(0, 0, 1) == ~0
    assert shares.commit(commit(0, (0, 1))) == ()
    assert shares.slots_ready() == (set() if applied else {0})
    assert shares.count(0, 0, 2) == ~0
    assert shares.commit(commit(0, (0, 1, 2))) == ()
    if applied:
        assert shares.commit(commit(1, (0,))) == ()
    counted = sorted((ready.commit.batch, ready.indices) for ready in shares.take())
    assert counted == ([(0, (1, 2)), (1, (0,))] if applied else [(0, (0,)), (0, (1, 2))])


def test_a_newcomer_is_needed_for_the_batch_before() -> None:
    shares = Shares()
    assert shares.count(0, 7, 0) == 0
    assert shares.count(0, 6, 4) == ~0
    assert shares.commit(commit(6, (4,))) == ()
    assert [(ready.commit.batch, ready.indices, ready.sums) for ready in shares.take()] == [(6, (4,), (~0,))]
    assert shares.commit(commit(7, (0,))) == ()
    assert shares.commit(commit(6, (4, 5))) == (5,)


def test_an_old_batch_is_over() -> None:
    shares = Shares()
    for batch in (0, 1):
        shares.count(0, batch, 0)
        assert shares.commit(commit(batch, (0,))) == ()
        shares.take()
    assert shares.count(0, 0, 1) is None
    assert shares.commit(commit(0, (0, 1))) == ()
    assert shares.take() == []


M, NUM_STAGES, NUM_BATCHES, NUM_FAULTS = 3, 2, 4, 12
HEAD = Hop(0, PeerId("head"))


@dataclass
class Replica:
    """Sums hold the names of gradients in place of their values."""

    stage: int
    alive: bool = True
    shares: Shares = field(default_factory=Shares)
    sums: dict[int, Counter[tuple[int, int]]] = field(default_factory=dict)
    attempts: dict[tuple[int, int], int] = field(default_factory=dict)
    applied: Counter[tuple[int, int]] = field(default_factory=Counter)

    def tidy(self) -> None:
        for place in self.shares.take_dropped():
            self.sums.pop(place, None)

    def step(self) -> None:
        """Take what is ready; the sums hold exactly that."""
        self.tidy()
        ready = self.shares.take()
        gradients: Counter[tuple[int, int]] = Counter()
        for place in {place for one in ready for place in one.sums}:
            gradients += self.sums.pop(place)
        assert gradients == Counter((one.commit.batch, index) for one in ready for index in one.indices)
        self.applied += gradients

    def has(self, batch: int, index: int) -> bool:
        """Whether it has counted this for good."""
        self.tidy()
        return (batch, index) in self.applied or index in self.shares._settled(0, batch)


@dataclass(frozen=True)
class Letter:
    batch: int
    index: int
    attempt: int
    path: tuple[Hop, ...]
    hop: int = 1
    back: bool = False


class World:
    """One head, two replicas of each of two stages, and faults at random moments."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.replicas = {PeerId(f"{stage}{name}"): Replica(stage) for stage in (1, 2) for name in "ab"}
        self.letters: list[Letter] = []
        self.ledgers = {0: Ledger(M)}
        self.committing: int | None = None
        self.confirmed: dict[PeerId, tuple[int, ...]] = {}
        self.finished = 0
        self.faults = 0
        self.happened: Counter[str] = Counter()

    def run(self) -> None:
        for _ in range(20_000):
            if self.finished == NUM_BATCHES:
                break
            actions = [self.launch, self.launch, self.deliver, self.deliver, self.deliver, self.commit, self.steps]
            self.rng.choice([*actions, self.notice, self.late, self.fault])()
            self.finish()
        assert self.finished == NUM_BATCHES, "stuck"
        for replica in self.replicas.values():
            replica.step()
            assert max(replica.applied.values(), default=1) == 1

    def launch(self) -> None:
        batch, ledger = self.rng.choice(list(self.ledgers.items()))
        if not ledger.waiting():
            return
        for stage in range(1, NUM_STAGES + 1):  # all pardons before anything is kept
            if not self.holders(stage, ledger):
                back = [peer for peer, one in self.replicas.items() if one.stage == stage and one.alive]
                if not any(ledger.pardon(peer) for peer in back):
                    self.replicas[PeerId(f"{stage} {len(self.replicas)}")] = Replica(stage)
        index = self.rng.choice(ledger.waiting())
        kept = ledger.keep(index)
        between = [
            Hop(stage, kept.get(stage) or self.rng.choice(self.holders(stage, ledger)))
            for stage in range(1, NUM_STAGES + 1)
        ]
        path = (HEAD, *between, HEAD)
        self.letters.append(Letter(batch, index, ledger.sent(index, path), path))

    def holders(self, stage: int, ledger: Ledger) -> list[PeerId]:
        return [peer for peer, one in self.replicas.items() if one.stage == stage and peer not in ledger.banned]

    def deliver(self) -> None:
        if not self.letters:
            return
        letter = self.rng.choice(self.letters)
        hop, ledger = letter.path[letter.hop], self.ledgers.get(letter.batch)
        key = (letter.batch, letter.index)
        if hop != HEAD:
            replica = self.replicas[hop.peer]
            replica.tidy()
            if not replica.alive:
                self.letters.remove(letter)
                if ledger is not None:
                    ledger.failed(letter.index, letter.attempt)
                return
            if replica.shares.holds_back(0, letter.batch):
                self.happened["held back"] += 1
                return
            if letter.back and key not in replica.attempts:
                self.letters.remove(letter)
                if ledger is not None:
                    ledger.failed(letter.index, letter.attempt)
                return
            if not letter.back:
                replica.attempts[key] = letter.attempt
            elif (place := replica.shares.count(0, *key)) is not None:
                self.happened["late"] += place < 0
                replica.sums.setdefault(place, Counter())[key] += 1
        elif letter.back:
            self.letters.remove(letter)
            if ledger is not None:
                ledger.done(letter.index, letter.attempt)
            return
        self.letters.remove(letter)
        back = letter.back or hop == HEAD
        self.letters.append(replace(letter, hop=letter.hop + (-1 if back else 1), back=back))

    def commit(self) -> None:
        """Commit at one replica what is complete."""
        newest = max(self.ledgers)
        if self.committing is None and self.ledgers[newest].complete:
            self.committing = newest
            self.confirmed = {}
            self.ledgers[newest + 1] = Ledger(M)
        if self.committing is None or not (ledger := self.ledgers[self.committing]).complete:
            return
        peer = self.rng.choice(list(self.replicas))
        replica, share = self.replicas[peer], self.share(peer)
        if not replica.alive:
            if share:
                self.happened["died before its commit"] += 1
                ledger.lost(peer)
            return
        replica.tidy()
        if replica.shares.commit(commit(self.committing, share)):
            self.happened["missing"] += 1
            ledger.lost(peer)
            assert ledger.pardon(peer)
        else:
            self.happened["share grew"] += peer in self.confirmed and self.confirmed[peer] != share
            self.confirmed[peer] = share

    def share(self, peer: PeerId) -> tuple[int, ...]:
        assert self.committing is not None
        return self.ledgers[self.committing].shares().get(Hop(self.replicas[peer].stage, peer), ())

    def finish(self) -> None:
        """Once all have confirmed what is theirs, look at what they have."""
        if self.committing is None or not self.ledgers[self.committing].complete:
            return
        live = {peer: one for peer, one in self.replicas.items() if one.alive}
        gone = [peer for peer, one in self.replicas.items() if not one.alive and self.share(peer)]
        if gone or any(self.confirmed.get(peer) != self.share(peer) for peer in live):
            return
        for stage in range(1, NUM_STAGES + 1):
            for index in range(M):
                owners = [peer for peer, one in live.items() if one.stage == stage and one.has(self.committing, index)]
                assert len(owners) == 1, f"batch {self.committing}, stage {stage}, {index}: {owners}"
        del self.ledgers[self.committing]
        self.committing = None
        self.finished += 1

    def steps(self) -> None:
        replica = self.rng.choice(list(self.replicas.values()))
        if replica.alive and replica.shares.slots_ready():
            replica.step()

    def notice(self) -> None:
        for peer, one in self.replicas.items():
            if not one.alive:
                for ledger in self.ledgers.values():
                    ledger.lost(peer)

    def late(self) -> None:
        """Something has not come back for long: the packet is lost, or only slow."""
        if self.rng.random() < 0.9:
            return
        ledger = self.rng.choice(list(self.ledgers.values()))
        index = self.rng.randrange(M)
        ledger.failed(index, ledger.attempt(index))

    def fault(self) -> None:
        """Rarely, and mostly when some have their share for good and others have not."""
        alive = [peer for peer, one in self.replicas.items() if one.alive]
        between = self.committing is not None and self.confirmed
        if self.faults == NUM_FAULTS or not alive or self.rng.random() > (0.5 if between else 0.02):
            return
        self.faults += 1
        peer = self.rng.choice([peer for peer in alive if peer not in self.confirmed] or alive)
        match self.rng.choice(("dies", "dies", "restarts", "is suspected")):
            case "dies":
                self.replicas[peer].alive = False
            case "restarts":
                self.replicas[peer] = Replica(self.replicas[peer].stage)
                self.confirmed.pop(peer, None)
            case "is suspected":  # not while it may have its share for good
                self.ledgers[max(self.ledgers)].lost(peer)


def test_every_batch_is_counted_once_at_every_stage() -> None:
    happened: Counter[str] = Counter()
    for seed in range(80):
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        happened += world.happened
    for what in ("held back", "late", "died before its commit", "missing", "share grew"):
        assert happened[what] > 10, what
