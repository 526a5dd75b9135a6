"""Who holds which stage, as this worker believes: a view of the swarm's roster. Makes no calls."""

from decentral.pipeline.assignment import Member
from decentral.pipeline.placement import CutInForce, number_of
from decentral.ports.clock import Clock
from decentral.swarm.presence import Presence, State, stages_of
from decentral.swarm.roster import Roster
from decentral.types import PeerId

#: What a member is that takes no more part: it has gone or is about to, or it has done all its steps.
_AWAY = frozenset({State.LEAVING, State.DONE})
#: In the digest of a member that comes back with what it has on its disk, before it holds anything.
RETURNS = "returns"


class Holders:
    """The roster by stages.

    Args:
        roster: of the whole swarm, this worker included.
        clock: for the time.
        cut: what stages are here. Who has another one holds none of them.
    """

    def __init__(self, roster: Roster, clock: Clock, cut: CutInForce) -> None:
        self._roster = roster
        self._clock = clock
        self._cut = cut
        self.done: PeerId | None = None
        """This worker, once the head that it held has done all its steps; it may have other stages to serve."""
        self._buried: dict[PeerId, float] = {}
        """Who could not be reached, and when."""

    def present(self) -> list[Presence]:
        """Records of those who live and take part, in order of peer id."""
        live = self._roster.live(self._clock.monotonic())
        dead = self._still_buried()
        return [presence for presence in live if presence.state not in _AWAY and presence.peer not in dead]

    def of(self, stage: int) -> tuple[PeerId, ...]:
        """Live holders of a stage, in order of peer id."""
        return tuple(presence.peer for presence in self.present() if stage in self._here(presence, presence.holds))

    def head(self) -> PeerId | None:
        """Who is the head, in a run that has one; ``None`` if nobody lives who is."""
        return next(iter(self.of(0)), None)

    def is_present(self, peer: PeerId) -> bool:
        """Whether a peer lives and takes part."""
        return any(presence.peer == peer for presence in self.present())

    def is_head(self, peer: PeerId, slot: int) -> bool:
        """Whether a peer says that it is, or is about to be, the head of a data slot; it may be dead meanwhile."""
        known = self._roster.get(peer)
        return known is not None and known.slot == slot and 0 in stages_of(known.holds) | stages_of(known.takes)

    def slots(self) -> frozenset[int]:
        """Data slots of the live heads."""
        return frozenset(presence.slot for presence in self.present() if 0 in stages_of(presence.holds))

    def is_over(self) -> bool:
        """Whether a head has done all its steps and no other one is at work."""
        heads = [presence for presence in self.records() if 0 in stages_of(presence.holds)]
        done = {presence.peer for presence in heads if presence.state is State.DONE or presence.peer == self.done}
        return bool(done) and all(head.peer in done for head in self.present() if 0 in stages_of(head.holds))

    def is_coming_back(self) -> bool:
        """Whether somebody comes back to the run, and nothing of it may begin anew."""
        return any(presence.digest == RETURNS for presence in self.present())

    def lost(self) -> list[int]:
        """Stages that nobody holds, the head as 0.

        Who is to have one by this cut, and has not heard of it yet, counts for it. While somebody has a newer cut
        nothing but a head can be said to be lost.
        """
        present, number = self.present(), self._cut.number
        held = {stage for presence in present for stage in self._here(presence, presence.holds)}
        if any(number_of(presence.cut) > number for presence in present):
            return [] if 0 in held else [0]
        held |= {self._cut.placement.stage_of(each.peer) for each in present if number_of(each.cut) < number} - {0}
        return [stage for stage in range(self._cut.num_stages + 1) if stage not in held]

    def members(self) -> list[Member]:
        """All who take part, for ``assignment``."""
        return [
            Member(
                presence.peer,
                self._here(presence, presence.holds),
                self._here(presence, presence.takes),
                stages_of(presence.stored),
                presence.metrics.queue,
                stages_of(presence.unfit),
            )
            for presence in self.present()
            if not presence.holds or self._here(presence, presence.holds)
        ]

    def _here(self, presence: Presence, named: str) -> frozenset[int]:
        """Those that a record names, of this cut. There is a head in all of them."""
        stages = stages_of(named)
        return stages if number_of(presence.cut) == self._cut.number else stages & {0}

    def seq(self, peer: PeerId) -> int:
        """Number of the last record of a peer; -1 for none."""
        known = self._roster.get(peer)
        return -1 if known is None else known.seq

    def records(self) -> list[Presence]:
        """All records that are remembered, of the dead as well."""
        return [presence for presence, _ in self._roster.with_ages(self._clock.monotonic())]

    def bury(self, peer: PeerId) -> None:
        """A peer could not be reached."""
        self._roster.bury(peer)
        self._buried[peer] = self._clock.monotonic()

    def _still_buried(self) -> frozenset[PeerId]:
        """Those of whom all news is older than that: who died a moment ago is still the talk of others."""
        if self._buried:
            now = self._clock.monotonic()
            ages = {presence.peer: age_s for presence, age_s in self._roster.with_ages(now)}
            self._buried = {peer: at for peer, at in self._buried.items() if now - ages.get(peer, 0.0) <= at}
        return frozenset(self._buried)
