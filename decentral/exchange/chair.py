"""The serving side of the roll: answers members' calls if this peer is the chair, else sends them there."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Sequence

from decentral.errors import TransportError
from decentral.exchange.messages import (
    MAX_CONVENE_BYTES,
    Answer,
    Convene,
    ConveneReply,
    pack_convene_reply,
    pack_roll,
    unpack_convene,
)
from decentral.exchange.progress import Progress
from decentral.exchange.rollcall import Roll, RollCall
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.matching import chairs, stragglers
from decentral.swarm.presence import ACTIVE, Presence, State
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

CONVENE = "convene"
PING = "ping"
_MAX_SESSIONS = 16
_MAX_LEAD_ROUNDS = 1 << 20
_TICK_S = 0.25
_PING_S = 1.5


class _Session:
    """One roll call and the signal that wakes those who wait for it."""

    def __init__(self, key: SyncKey, chair: PeerId) -> None:
        self.call = RollCall(key, chair)
        self.packed = b""
        self._called = asyncio.Event()

    def conclude(self) -> None:
        """The roll is there: wake everybody."""
        self.packed = pack_roll(self.call.roll) if self.call.roll is not None else b""
        self._called.set()

    async def until_called(self, timeout_s: float) -> None:
        """Return when the roll is called or after ``timeout_s``; once it was called this is a plain sleep."""
        if self._called.is_set():
            await asyncio.sleep(timeout_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._called.wait()


class Chair:
    """Calls the rolls of those rounds for which this peer is the first candidate.

    Args:
        transport: to answer through.
        clock: for durations.
        roster: who is alive; unreachable chairs are buried in it.
        progress: how far this worker is.
        timing: patience.
    """

    def __init__(self, transport: Transport, clock: Clock, roster: Roster, progress: Progress, timing: Timing) -> None:
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._progress = progress
        self._timing = timing
        self._sessions: OrderedDict[SyncKey, _Session] = OrderedDict()
        self._serial = 0

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(CONVENE, self._answer, max_request_bytes=MAX_CONVENE_BYTES, max_concurrent=4096)
        await self._transport.serve(PING, self._pong, max_request_bytes=0)

    async def _pong(self, sender: PeerId, request: bytes) -> bytes:
        return b""

    async def _answer(self, sender: PeerId, request: bytes) -> bytes:
        """Hold the call until there is something to say, at most ``hold_s`` seconds."""
        message = unpack_convene(request)
        self._check(message.key)
        until = self._clock.monotonic() + self._timing.hold_s
        while True:
            reply = await self._consider(sender, message)
            left_s = until - self._clock.monotonic()
            if reply.kind is not Answer.WAIT or left_s <= 0:
                return pack_convene_reply(reply)
            await self._session(message.key).until_called(min(left_s, _TICK_S))

    def _check(self, key: SyncKey) -> None:
        if key.fragment >= self._progress.num_fragments:
            raise ValueError(f"there is no fragment {key.fragment}")
        if key.round > self._progress.next_round(key.fragment) + _MAX_LEAD_ROUNDS:
            raise ValueError(f"round {key.round} is absurd")

    async def _consider(self, sender: PeerId, message: Convene) -> ConveneReply:
        """The answer as of now."""
        key, me = message.key, self._transport.peer_id
        settled = self._settled(sender, message)
        if settled is not None:
            return settled
        now = self._clock.monotonic()
        self._roster.vouch((sender,), now)
        ahead = self._ahead(key, now)
        if ahead is not None:
            return ConveneReply(Answer.BEHIND, source=ahead)
        active = self._roster.active(now)
        better = await self._better_chair(key, active, message.unreachable)
        if better is not None:
            return ConveneReply(Answer.REDIRECT, source=better)
        session = self._session(key)
        # Before the call is taken: the patience of a call that everybody has left begins anew.
        session.call.drop_silent(now - 2 * self._timing.hold_s - self._timing.grace_s)
        session.call.call(message.call_of(sender), now)
        own = self._roster.get(me)
        patience_s = self._timing.patience_s(own.round_s if own is not None else 0.0)
        expected = self._expected(active)
        majority = self._left_behind(key, active) if session.call.overdue(now, patience_s) else None
        if majority is not None:
            return ConveneReply(Answer.OUT_OF_SYNC, source=majority)
        if session.call.conclude(now, expected=expected, patience_s=patience_s, serial=self._serial):
            self._serial += 1
            session.conclude()
        return self._settled(sender, message) or ConveneReply(Answer.WAIT)

    def _settled(self, sender: PeerId, message: Convene) -> ConveneReply | None:
        """The answer that no further waiting can change, if there is one."""
        me, key = self._transport.peer_id, message.key
        session = self._sessions.get(key)
        roll = session.call.roll if session is not None else None
        if session is not None and roll is not None and sender in roll.members:
            return ConveneReply(Answer.ROLL, roll=session.packed)
        if self._progress.next_round(key.fragment) > key.round:
            return ConveneReply(Answer.BEHIND, source=me)
        return None if roll is None else self._late(roll, message)

    def _late(self, roll: Roll, message: Convene) -> ConveneReply | None:
        """The answer to a caller whom the roll was called without, which may be this peer itself.

        It waits until a member has finished the round and is then told that it is behind. If the members have all
        died, their roll is void.
        """
        if message.base != roll.base:
            return ConveneReply(Answer.OUT_OF_SYNC, source=roll.members[0])
        now = self._clock.monotonic()
        records = [self._roster.get(member) for member in roll.members if self._roster.is_live(member, now)]
        ahead = next((p.peer for p in records if p is not None and p.round > roll.key.round), None)
        if ahead is not None:
            return ConveneReply(Answer.BEHIND, source=ahead)
        if records:
            return ConveneReply(Answer.WAIT)
        del self._sessions[roll.key]
        return None

    def _ahead(self, key: SyncKey, now: float) -> PeerId | None:
        """A member, perhaps one that is done, that is past this round, if half of them are: then the round is over.

        Half, and not one, so that nobody can send all others to itself by claiming to be far ahead.
        """
        living = [p for p in self._roster.live(now) if p.state in ACTIVE or p.state is State.DONE]
        ahead = [p.peer for p in living if p.round > key.round]
        return ahead[0] if ahead and 2 * len(ahead) >= len(living) else None

    def _left_behind(self, key: SyncKey, active: Sequence[Presence]) -> PeerId | None:
        """A member of the majority if that is two rounds or more behind: whoever calls for ``key`` went on without it.

        One round is the difference between any two members for a moment. Half of them may be stragglers.
        """
        behind = [p.peer for p in active if p.round < key.round - 1]
        return behind[0] if 2 * len(behind) > len(active) else None

    def _expected(self, active: Sequence[Presence]) -> list[PeerId]:
        """Members worth waiting for: alive and not known to be slow."""
        slow = stragglers(active, self._timing.patience_factor, self._timing.min_patience_s)
        return [p.peer for p in active if p.peer not in slow]

    async def _better_chair(
        self, key: SyncKey, active: Sequence[Presence], unreachable: tuple[PeerId, ...]
    ) -> PeerId | None:
        """The candidate that comes before this peer, if one is alive.

        A candidate that the caller could not reach is tried from here: if it is silent here as well, it is buried.
        """
        for candidate in chairs(active, key):
            if candidate == self._transport.peer_id:
                return None
            if candidate not in unreachable or await self._responds(candidate):
                return candidate
            self._roster.bury(candidate)
        return None

    async def _responds(self, peer: PeerId) -> bool:
        try:
            await self._transport.call(peer, PING, b"", timeout_s=_PING_S, max_reply_bytes=0)
        except TransportError:
            return False
        return True

    def _session(self, key: SyncKey) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = _Session(key, self._transport.peer_id)
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return session
