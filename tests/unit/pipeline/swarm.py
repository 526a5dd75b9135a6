"""A head and replicas of stages as the ledger sees them: packets without values, on a network that does anything.

Replicas count as the production ones have to: a micro-batch once for all attempts, when its gradient comes by, and only
if they have seen it on the way there. A dead one's counts are gone; one that starts again under its id has none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from decentral.pipeline.ledger import Ledger
from decentral.pipeline.packets import Hop
from decentral.pipeline.routing import stage_order
from decentral.types import PeerId

HEAD = PeerId("head")
NUM_MICROBATCHES = 4
NUM_STAGES = 4

Choose = Callable[[Sequence[PeerId]], PeerId]


@dataclass
class Replica:
    """What one peer holds, by stage and index."""

    stages: tuple[int, ...]
    alive: bool = True
    seen: set[tuple[int, int]] = field(default_factory=set)
    counted: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class Letter:
    """A packet under way to ``path[hop]``."""

    index: int
    attempt: int
    path: tuple[Hop, ...]
    hop: int
    back: bool


class Swarm:
    """Two replicas of every stage, one peer that holds two stages, and a head that decides by ``ledger``."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.replicas = {
            PeerId(f"{stage}{name}"): Replica((stage,)) for stage in range(1, NUM_STAGES + 1) for name in "ab"
        }
        self.replicas[PeerId("23")] = Replica((2, 3))
        self.letters: list[Letter] = []
        self.last: dict[int, Letter] = {}
        """Of each micro-batch, as it was sent last."""
        self.unnoticed: set[PeerId] = set()
        """Who has lost its counts without the head's knowledge."""

    def send(self, index: int, choose: Choose) -> None:
        """Send a waiting micro-batch on a path through whom it must, and else whomever ``choose`` chooses."""
        self._staff(index)
        kept = self.ledger.keep(index)
        between = [
            Hop(stage, kept[stage] if stage in kept else choose(self._holders(stage)))
            for stage in stage_order(NUM_STAGES, index, swap=True)
        ]
        path = (Hop(0, HEAD), *between, Hop(0, HEAD))
        self.last[index] = Letter(index, self.ledger.sent(index, path), path, 1, back=False)
        self.letters.append(self.last[index])

    def deliver(self, letter: Letter, *, twice: bool = False) -> None:
        """A packet arrives, and its answer is under way; with ``twice`` it is under way still."""
        if not twice:
            self.letters.remove(letter)
        hop = letter.path[letter.hop]
        if hop.peer == HEAD:
            if letter.back:
                self.ledger.done(letter.index, letter.attempt)
            else:
                self.letters.append(replace(letter, hop=letter.hop - 1, back=True))
            return
        replica, what = self.replicas[hop.peer], (hop.stage, letter.index)
        if not replica.alive:
            return
        if not letter.back:
            replica.seen.add(what)
            self.letters.append(replace(letter, hop=letter.hop + 1))
        elif what in replica.seen:
            replica.counted.add(what)
            self.letters.append(replace(letter, hop=letter.hop - 1))
        else:
            self.ledger.failed(letter.index, letter.attempt)

    def crash(self, peer: PeerId, *, restarts: bool) -> None:
        """A replica loses all it has; it is back at once, or dead."""
        replica = self.replicas[peer]
        replica.alive = restarts
        replica.seen.clear()
        replica.counted.clear()
        if peer not in self.ledger.banned:
            self.unnoticed.add(peer)

    def settled(self) -> bool:
        """Ask all that have a share of a complete batch for it, and send again what they have not counted."""
        for hop, indices in self.ledger.shares().items():
            replica = self.replicas[hop.peer]
            if not replica.alive:
                self.ledger.lost(hop.peer)
            elif not {(hop.stage, index) for index in indices} <= replica.counted:
                self.unnoticed.discard(hop.peer)
                self.ledger.lost(hop.peer)
                assert self.ledger.pardon(hop.peer)
        return self.ledger.complete

    def finish(self, choose: Choose) -> None:
        """From here on everything arrives, the newest first, and the head knows who is dead; checks what comes out."""
        for _ in range(20):
            for peer, replica in self.replicas.items():
                if not replica.alive and peer not in self.ledger.banned:
                    self.ledger.lost(peer)
            for index in self.ledger.waiting():
                self.send(index, choose)
            while self.letters:
                self.deliver(self.letters[-1])
                self.check()
            if self.ledger.complete and self.settled():
                self.check_shares()
                return
            for index in range(NUM_MICROBATCHES):  # packets that met the dead, or were lost
                for attempt in range(100):
                    self.ledger.failed(index, attempt)
        raise AssertionError("the batch is not completed")

    def check(self) -> None:
        """Nobody's counts can ever be in the same batch as the same counts of another replica of the stage."""
        owners = [what for _, replica in self._trusted() for what in replica.counted]
        assert len(owners) == len(set(owners)), "counted twice"
        assert {peer for peer, replica in self._trusted() if replica.counted} <= self.ledger.peers()
        ledger = self.ledger
        assert 0 <= ledger.in_flight <= NUM_MICROBATCHES - len(ledger.waiting())
        assert ledger.complete == (ledger.in_flight == 0 and not ledger.waiting())
        self.unnoticed -= ledger.banned
        for index, letter in self.last.items():
            if index not in ledger.waiting() and not ledger.is_current(index, letter.attempt):
                at = [hop for hop in letter.path[1:-1] if hop.peer not in self.unnoticed]
                assert all((hop.stage, index) in self.replicas[hop.peer].counted for hop in at), "done without a count"
        if ledger.complete and not self.unnoticed:
            self.check_shares()

    def check_shares(self) -> None:
        """Every micro-batch is counted at every stage by one live replica, and the shares say exactly by which."""
        shares = self.ledger.shares()
        assert all(list(indices) == sorted(set(indices)) and indices for indices in shares.values())
        everything = sorted((hop.stage, index) for hop, indices in shares.items() for index in indices)
        assert everything == [
            (stage, index) for stage in range(1, NUM_STAGES + 1) for index in range(NUM_MICROBATCHES)
        ], "not once at every stage"
        trusted = dict(self._trusted())
        assert all(hop.peer in trusted for hop in shares), "a share of a replica that is gone"
        for peer, replica in trusted.items():
            share = {(hop.stage, index) for hop, indices in shares.items() if hop.peer == peer for index in indices}
            assert replica.counted == share, f"{peer} counted something else"

    def _trusted(self) -> list[tuple[PeerId, Replica]]:
        """Replicas that live and are not lost to the head."""
        banned = self.ledger.banned
        return [(peer, replica) for peer, replica in self.replicas.items() if replica.alive and peer not in banned]

    def _holders(self, stage: int) -> list[PeerId]:
        """Whom the head may choose; some may be dead without its knowledge."""
        banned = self.ledger.banned
        return [peer for peer, replica in self.replicas.items() if stage in replica.stages and peer not in banned]

    def _staff(self, index: int) -> None:
        """A stage without a replica takes one back that is not dead, if it may, else a spare."""
        for stage in range(1, NUM_STAGES + 1):
            if stage in self.ledger.keep(index) or self._holders(stage):
                continue
            back = (peer for peer, replica in self.replicas.items() if stage in replica.stages and replica.alive)
            if not any(self.ledger.pardon(peer) for peer in back):
                self.replicas[PeerId(f"spare {len(self.replicas)}")] = Replica((stage,))
