"""The head's part in moves of blocks: it measures, decides on the next cut, and leads all to it between two batches.

    after every batch    note what a block takes at each holder; now and then look whether another cut is worth it
    if one is            order:  all who hold blocks, or are to, stop and make ready         nothing has changed yet
                         all are ready in time:   the head changes to the new cut            the point of no return
                         else:                    it stays with the old one
                         tell all which cut is in force, until they have heard it

Which cut comes next is decided by ``pipeline.balance``, and what a member does is in ``mover``.
"""

import asyncio
import math
import statistics
from collections import deque
from collections.abc import Mapping

from decentral.engine.mover import Mover
from decentral.errors import CallRefused, FrameError, PeerUnreachable, TransportError
from decentral.monitor.events import Recut
from decentral.monitor.journal import Journal
from decentral.pipeline.balance import Machine, next_cut
from decentral.pipeline.holders import Holders
from decentral.pipeline.moves import FOLLOW, PREPARE, Follow, Prepare, Prepared
from decentral.pipeline.packets import Load
from decentral.pipeline.placement import CutInForce, Placement
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.types import PeerId

#: After a cut has changed, or could not be, so many batches are measured before the next one.
_BATCHES = 3
#: A block that takes longer to fetch than a batch moves once that is at most this share of the time since the last.
_SHARE = 0.05
#: Machines that come so long after the first are not waited for with the first cut.
_GATHER_S = 120.0
#: The first cut may take so long, as machines build their blocks; later ones twice as long as a batch, and ...
_FIRST_S = 600.0
#: ... at least so long, of which most is spent on machines that are gone without a word.
_LEAST_S = 20.0
#: Between two looks.
_LOOK_S = 0.25


class MoveLead:
    """Of one head.

    Args:
        mover: this process's own part.
        transport: to the members.
        clock: for the time.
        timing: bounds of calls.
        holders: who lives, and holds what.
        cut: in force here.
        num_blocks: of the model.
        min_machines: so many are waited for with the first cut, for a while.
        journal: hears of new cuts.
    """

    def __init__(
        self,
        mover: Mover,
        transport: Transport,
        clock: Clock,
        timing: Timing,
        holders: Holders,
        cut: CutInForce,
        num_blocks: int,
        min_machines: int,
        journal: Journal,
    ) -> None:
        self.waits_for = ""
        """Why there is no first cut yet; empty if there is one."""
        self._mover = mover
        self._transport = transport
        self._clock = clock
        self._timing = timing
        self._holders = holders
        self._cut = cut
        self._num_blocks = num_blocks
        self._min_machines = min_machines
        self._journal = journal
        self._gather_until = clock.monotonic() + _GATHER_S
        self._loads: dict[int, Load] = {}
        """Of each stage, the last one that was heard."""
        self._block_s: dict[PeerId, deque[float]] = {}
        self._batch_s: deque[float] = deque(maxlen=_BATCHES)
        self._not_before = 0
        """Step before which nothing moves."""
        self._moved_s = math.nan
        """What fetching a block took in the last move."""
        self._moved_at = math.nan
        """When that ended."""
        self._room: dict[PeerId, int] = {}
        """Of machines that turned out to have less room than they said."""

    def heard(self, load: Load) -> None:
        """How fast a holder is."""
        self._loads[load.stage] = load

    def counted(self, seconds: float) -> None:
        """A batch has passed all stages, in so long."""
        self._batch_s.append(seconds)
        for stage, (first, stop) in enumerate(self._cut.spans, 1):
            if (load := self._loads.get(stage)) is not None and load.seconds > 0:
                times_s = self._block_s.setdefault(load.peer, deque(maxlen=_BATCHES))
                times_s.append(load.seconds / (stop - first))

    # -- deciding -----------------------------------------------------------------------------------------------------

    def next(self, step: int) -> Placement | None:
        """The cut to change to before ``step``; ``None`` to stay, or if there is none that could be made."""
        if step < self._not_before:
            return None
        machines = self._machines()
        if not self._cut.num_stages:
            missing = self._min_machines - sum(machine.room > 0 for machine in machines)
            room = sum(machine.room for machine in machines)
            if room < self._num_blocks:
                self.waits_for = f"waits for workers: there is room for {room} of {self._num_blocks} blocks"
                return None
            if missing > 0 and self._clock.monotonic() < self._gather_until:
                self.waits_for = f"waits for {missing} more workers before the blocks are dealt out"
                return None
            self.waits_for = ""
        if (now := self._now()) is None:
            return None
        twice = any(len(self._holders.of(stage)) > 1 for stage in range(1, now.num_stages + 1))
        new = next_cut(now, machines, self._num_blocks, self._most(), must=twice)
        return None if new is None else Placement(max(new.number, self._mover.last + 1), new.bounds, new.peers)

    def _now(self) -> Placement | None:
        """The cut in force with its holders of now; ``None`` if a stage has none.

        One that was away for a while may hold what another one has taken meanwhile: one of them is enough.
        """
        cut = self._cut.placement
        held = [self._holders.of(stage) for stage in range(1, cut.num_stages + 1)]
        if not all(held):
            return None
        peers = tuple(peers[0] for peers in held)
        return Placement(cut.number, cut.bounds, peers) if len(set(peers)) == len(peers) else None

    def _machines(self) -> list[Machine]:
        """All who may hold blocks. The head has enough to do."""
        return [
            Machine(other.peer, min(other.room, self._room.get(other.peer, other.room)), self._pace(other.peer))
            for other in self._holders.present()
            if other.peer != self._transport.peer_id
        ]

    def _pace(self, peer: PeerId) -> float:
        times_s = self._block_s.get(peer, ())
        return statistics.median(times_s) if len(times_s) >= _BATCHES else math.nan

    def _most(self) -> float:
        """Blocks that a machine can be given at once; 0 as long as not all holders are measured."""
        if len(self._batch_s) < _BATCHES or any(math.isnan(self._pace(peer)) for peer in self._holding()):
            return 0
        if math.isnan(self._moved_s):
            return 1
        if self._moved_s == 0:
            return math.inf
        spared = self._moved_s <= _SHARE * (self._clock.monotonic() - self._moved_at)
        return max(statistics.median(self._batch_s) // self._moved_s, float(spared))

    def _holding(self) -> set[PeerId]:
        return {peer for stage in range(1, self._cut.num_stages + 1) for peer in self._holders.of(stage)}

    # -- leading ------------------------------------------------------------------------------------------------------

    async def move(self, new: Placement, step: int, stop: asyncio.Event) -> None:
        """Change to another cut while no micro-batch is under way, or stay with the old one."""
        began, now = self._clock.monotonic(), self._now()
        if now is None:
            return
        self._mover.last = self._mover.preparing = new.number
        members = sorted({*now.peers, *new.peers})
        limit_s = max(_LEAST_S, 2 * max(self._batch_s, default=0.0)) if now.bounds else _FIRST_S
        answers = await self._prepared(members, to_wire(Prepare(now, new, step)), began + limit_s, stop)
        done = all(answer is not None and answer.state == "ready" for answer in answers.values())
        if done:
            await self._mover.follow(new)
        self._mover.preparing = 0  # who asks before that waits on
        await asyncio.gather(*[self._told(peer) for peer in members])
        self._note(now, new, answers, done=done, step=step, seconds=self._clock.monotonic() - began)

    async def _prepared(
        self, members: list[PeerId], order: bytes, until: float, stop: asyncio.Event
    ) -> Mapping[PeerId, Prepared | None]:
        """What all say in the end; as soon as one cannot, nobody is waited for."""
        answers: dict[PeerId, Prepared | None] = {}

        async def ask(peer: PeerId) -> None:
            answer: Prepared | None = None
            while self._clock.monotonic() < until and not stop.is_set():
                if any(other is None or other.state != "ready" for other in answers.values()):
                    break
                answer = await self._order(peer, order)
                if answer is None or answer.state != "busy":
                    break
            answers[peer] = None if answer is None or answer.state == "busy" else answer

        await asyncio.gather(*map(ask, members))
        return answers

    async def _order(self, peer: PeerId, order: bytes) -> Prepared | None:
        """What a member says to an order; ``None`` if it is gone or refuses, and ``busy`` if nothing was heard."""
        try:
            timeout_s = self._timing.call_timeout_s(len(order))
            reply = await self._transport.call(
                peer, PREPARE, order, timeout_s=timeout_s, max_reply_bytes=Prepared.max_bytes
            )
            return from_wire(Prepared, reply)
        except PeerUnreachable:
            self._holders.bury(peer)
        except (CallRefused, FrameError):
            pass
        except TransportError:
            return Prepared("busy", "", 0, 0.0) if self._holders.is_present(peer) else None
        return None

    async def _told(self, peer: PeerId) -> None:
        """Tell a member which cut is in force, and hear what it holds; who cannot be reached asks for it later."""
        order = to_wire(Follow(self._cut.placement))
        until = self._clock.monotonic() + _LEAST_S
        while self._holders.is_present(peer) and self._clock.monotonic() < until:
            try:
                timeout_s = self._timing.call_timeout_s(len(order))
                await self._transport.call(peer, FOLLOW, order, timeout_s=timeout_s, max_reply_bytes=0)
                return await self._mover.hear(peer)
            except PeerUnreachable:
                self._holders.bury(peer)
            except TransportError:
                await asyncio.sleep(_LOOK_S)

    def _note(
        self,
        now: Placement,
        new: Placement,
        answers: Mapping[PeerId, Prepared | None],
        *,
        done: bool,
        step: int,
        seconds: float,
    ) -> None:
        """Learn from it, and measure anew."""
        held = {peer: stop - first for peer, (first, stop) in zip(now.peers, now.spans, strict=True)}
        reasons = []
        for peer, answer in answers.items():
            if answer is None or answer.state != "ready":
                reasons.append(f"{peer[-6:]} {answer.why if answer is not None and answer.why else 'did not answer'}")
            if answer is not None and answer.state == "unfit":
                self._room[peer] = held.get(peer, 0)
        self._not_before = step if done or not now.bounds else step + _BATCHES
        fetched = [(answer.seconds, answer.num_fetched) for answer in answers.values() if answer is not None]
        if times_s := [took_s / count for took_s, count in fetched if count]:
            self._moved_s, self._moved_at = max(times_s), self._clock.monotonic()
        self._loads.clear()
        self._block_s.clear()
        self._batch_s.clear()
        num_moved = sum(count for _, count in fetched) if done else 0
        why = "; ".join(reasons)[:200]
        self._journal.record(Recut(self._cut.number, step, self._cut.spans, num_moved, seconds, why))
