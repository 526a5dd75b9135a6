"""The serving side of a round's beginning: answers members' calls if this peer is the leader, else sends them there."""

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence

from decentral.errors import PeerUnreachable, TransportError
from decentral.exchange.allreduce.answers import MAX_ROUNDS
from decentral.exchange.allreduce.messages import MAX_CONVENE_BYTES, Answer, Convene, ConveneReply
from decentral.exchange.allreduce.outlook import Outlook
from decentral.exchange.allreduce.participants import Gathering, Participants, Quorum
from decentral.exchange.progress import Progress
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import PeerId, SyncKey

CONVENE = "convene"
PING = "ping"
_MAX_LEAD_ROUNDS = 1 << 20
_TICK_S = 0.25
_PING_S = 1.5
_MAX_ASKED = 16
#: Who has let a round pass without naming its participants leads none of so many that follow.
_PASSED_OVER_ROUNDS = 64
#: Who has answered no mean as a reducer reduces nothing in so many rounds.
_DISTRUSTED_ROUNDS = 64


class _Session:
    """One gathering and the signal that wakes those who wait for it."""

    def __init__(self, key: SyncKey, leader: PeerId, quorum: Quorum | None) -> None:
        self.call = Gathering(key, leader, quorum)
        self.packed = b""
        self.members: frozenset[PeerId] = frozenset()
        self.asked_at = -math.inf
        """When the members still missing were last asked whether they live."""
        self.doubts: dict[PeerId, tuple[PeerId, ...]] = {}
        """By caller, better candidates whose word it does not take in this round."""
        self._called = asyncio.Event()

    def conclude(self) -> None:
        """The participants are named: wake everybody."""
        participants = self.call.participants
        assert participants is not None
        self.packed, self.members = to_wire(participants), frozenset(participants.members)
        self._called.set()

    def doubted(self, members: Collection[PeerId]) -> frozenset[PeerId]:
        """Candidates for leader whom more than half of these members doubt; each has one voice, and nobody else has."""
        told = Counter(peer for member in members for peer in set(self.doubts.get(member, ())))
        return frozenset(peer for peer, count in told.items() if 2 * count > len(members))

    async def until_called(self, timeout_s: float) -> None:
        """Return when the participants were named or after ``timeout_s``; once they are this is a plain sleep."""
        if self._called.is_set():
            await asyncio.sleep(timeout_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._called.wait()


class Leader:
    """Names the participants of those rounds for which this peer is the first candidate.

    Args:
        transport: to answer through.
        clock: for durations.
        roster: who is alive; unreachable leaders are buried in it.
        progress: how far this worker is.
        timing: patience.
        quorum: for whom to wait; ``None`` for everybody.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        progress: Progress,
        timing: Timing,
        quorum: Quorum | None = None,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._progress = progress
        self._timing = timing
        self._quorum = quorum
        self._max_sessions = MAX_ROUNDS * progress.num_fragments
        self._sessions: OrderedDict[SyncKey, _Session] = OrderedDict()
        self._serial = 0
        self._outlook = Outlook((), timing)
        self._passed_over: dict[PeerId, int] = {}
        """Those who stalled a round, or sent members away against the word of most, and the round from which on they
        may lead again. All whom they stalled or sent away know it by themselves, at the same time."""
        self._distrusted: dict[PeerId, int] = {}
        """Those who reduced and answered no mean, and the round from which on they may reduce again."""

    async def start(self) -> None:
        """Begin to answer."""
        await self._transport.serve(CONVENE, self._answer, max_request_bytes=MAX_CONVENE_BYTES, max_concurrent=4096)
        await self._transport.serve(PING, self._pong, max_request_bytes=0)

    def pass_over(self, peer: PeerId, round: int) -> None:
        """A leader let a round pass in which it answered and named nobody."""
        self._passed_over[peer] = round + _PASSED_OVER_ROUNDS

    def doubt(self, peers: Iterable[PeerId], round: int) -> None:
        """Leaders said of a round what most members contradicted, until another one named its participants.

        Half of the members do not lie: who has come to pass over so many is mistaken, and takes them all back.
        """
        for peer in peers:
            self.pass_over(peer, round)
        if 2 * len(self._passed_over) >= len(self.expected()):
            self._passed_over.clear()

    def distrust(self, peer: PeerId, round: int) -> None:
        """What a reducer answered can be no mean: where this worker leads, it reduces nothing for a while."""
        self._distrusted = {other: until for other, until in self._distrusted.items() if round < until}
        self._distrusted[peer] = round + _DISTRUSTED_ROUNDS

    def may_lead(self, candidates: Iterable[PeerId], round: int, doubted: Collection[PeerId] = ()) -> Iterator[PeerId]:
        """Those of the candidates for leader that are not passed over in this round, nor ``doubted``, in order."""
        self._passed_over = {peer: until for peer, until in self._passed_over.items() if round < until}
        return (peer for peer in candidates if peer not in self._passed_over and peer not in doubted)

    def expected(self) -> Sequence[PeerId]:
        """Members worth waiting for, as this worker knows them."""
        return self._look(self._clock.monotonic()).expected

    async def _pong(self, sender: PeerId, request: bytes) -> bytes:
        return b""

    async def _answer(self, sender: PeerId, request: bytes) -> bytes:
        """Hold the call until there is something to say, at most ``hold_s`` seconds."""
        message = from_wire(Convene, request)
        self._check(message.key)
        until = self._clock.monotonic() + self._timing.hold_s
        while True:
            reply = await self._consider(sender, message)
            now = self._clock.monotonic()
            if reply.kind is not Answer.WAIT or now >= until:
                return to_wire(reply)
            call = self._session(message.key).call
            left_s = min(call.grace_left_s(now), call.patience_left_s(now, self._patience_s()))
            await self._session(message.key).until_called(min(until - now, _TICK_S, left_s))

    def _check(self, key: SyncKey) -> None:
        if key.fragment >= self._progress.num_fragments:
            raise ValueError(f"there is no fragment {key.fragment}")
        if key.round > self._progress.next_round(key.fragment) + _MAX_LEAD_ROUNDS:
            raise ValueError(f"round {key.round} is absurd")

    async def _consider(self, sender: PeerId, message: Convene) -> ConveneReply:
        """The answer as of now."""
        key = message.key
        settled = self._settled(sender, message)
        if settled is not None:
            return settled
        now = self._clock.monotonic()
        self._roster.vouch((sender,), now)
        outlook = self._look(now)
        prospect = outlook.of(key)
        if prospect.ahead is not None:
            return ConveneReply(Answer.BEHIND, source=prospect.ahead)
        doubted = self._doubted(sender, message, outlook.expected)
        better = await self._better_leader(self.may_lead(prospect.candidates, key.round, doubted), message)
        if better in message.doubted:  # until this worker finds out by itself, or most say so
            return ConveneReply(Answer.WAIT)
        if better is not None:
            return ConveneReply(Answer.REDIRECT, source=better)
        session = self._session(key)
        # Before the call is taken: the patience of a call that everybody has left begins anew.
        session.call.drop_silent(now - 2 * self._timing.hold_s - self._timing.grace_s)
        session.call.call(message.call_of(sender), now)
        if prospect.left_behind is not None and session.call.overdue(now, self._patience_s()):
            return ConveneReply(Answer.OUT_OF_SYNC, source=prospect.left_behind)
        expected: Sequence[PeerId] = outlook.expected
        if self._passed_over or doubted:  # welcome, but who names participants of its own may never come
            expected = tuple(self.may_lead(expected, key.round, doubted))
        patience_s = self._patience_s()
        if self._quorum is None and session.call.overdue(now, patience_s) and session.call.lacks_most(expected):
            patience_s = self._timing.max_patience_s  # most would be left out, to whom that looks like a lie
        if session.call.conclude(
            now,
            expected=expected,
            patience_s=patience_s,
            serial=self._serial,
            distrusted=[peer for peer, until in self._distrusted.items() if key.round < until],
        ):
            self._serial += 1
            session.conclude()
        else:
            await self._ask_missing(session, expected)
        return self._settled(sender, message) or ConveneReply(Answer.WAIT)

    def _doubted(self, sender: PeerId, message: Convene, expected: Collection[PeerId]) -> frozenset[PeerId]:
        """Note whom a caller doubts; returns the candidates that more than half of those expected doubt."""
        if message.doubted and sender in expected:
            self._session(message.key).doubts[sender] = message.doubted
        session = self._sessions.get(message.key)
        return session.doubted(expected) if session is not None and session.doubts else frozenset()

    def _patience_s(self) -> float:
        """How long to wait for living members, by this worker's own pace."""
        own = self._roster.get(self._transport.peer_id)
        return self._timing.patience_s(own.round_s if own is not None else 0.0)

    async def _ask_missing(self, session: _Session, expected: Sequence[PeerId]) -> None:
        """Now and then ask those who have not called whether they live: nobody is to wait for one that died.

        Returns as soon as the participants are named: those who live may be far away.
        """
        now = self._clock.monotonic()
        if now - max(session.asked_at, session.call.opened_at) < self._timing.hold_s / 2:
            return
        session.asked_at = now
        missing = [peer for peer in session.call.missing(expected) if peer != self._transport.peer_id]

        async def ask(member: PeerId) -> None:
            try:
                await self._transport.call(member, PING, b"", timeout_s=_PING_S, max_reply_bytes=0)
            except PeerUnreachable:
                self._roster.bury(member)
            except TransportError:
                return

        async def ask_all() -> None:
            async with asyncio.TaskGroup() as group:
                for member in missing[:_MAX_ASKED]:
                    group.create_task(ask(member))

        async with asyncio.TaskGroup() as group:
            either = {group.create_task(ask_all()), group.create_task(session.until_called(_PING_S))}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in either:
                task.cancel()

    def _settled(self, sender: PeerId, message: Convene) -> ConveneReply | None:
        """The answer that no further waiting can change, if there is one."""
        me, key = self._transport.peer_id, message.key
        session = self._sessions.get(key)
        participants = session.call.participants if session is not None else None
        if session is not None and participants is not None and sender in session.members:
            return ConveneReply(Answer.PARTICIPANTS, participants=session.packed)
        if self._progress.next_round(key.fragment) > key.round:
            return self._behind(message, session, me)
        if session is None or participants is None:
            return None
        return self._left_out(session, participants, message)

    def _behind(self, message: Convene, session: _Session | None, source: PeerId) -> ConveneReply:
        """The round is over; from its participants the caller gets what it missed, if it has the anchor before."""
        participants = session.call.participants if session is not None else None
        if session is None or participants is None or message.base != participants.base:
            return ConveneReply(Answer.BEHIND, source=source)
        return ConveneReply(Answer.BEHIND, session.packed, source)

    def _left_out(self, session: _Session, participants: Participants, message: Convene) -> ConveneReply | None:
        """The answer to a caller whom the participants were named without, which may be this peer itself.

        It waits until a member has finished the round and is then told that it is behind. If the members have all
        died, their list of participants is void.
        """
        if message.base != participants.base:
            return ConveneReply(Answer.OUT_OF_SYNC, source=participants.members[0])
        now = self._clock.monotonic()
        records = [self._roster.get(member) for member in participants.members if self._roster.is_live(member, now)]
        ahead = next((p.peer for p in records if p is not None and p.round > participants.key.round), None)
        if ahead is not None:
            return self._behind(message, session, ahead)
        if records:
            return ConveneReply(Answer.WAIT)
        del self._sessions[participants.key]
        return None

    def _look(self, now: float) -> Outlook:
        """The outlook as of now; the last one if nothing has changed since."""
        living = self._roster.live(now)
        if living is not self._outlook.living:
            self._outlook = Outlook(living, self._timing)
        return self._outlook

    async def _better_leader(self, candidates: Iterable[PeerId], message: Convene) -> PeerId | None:
        """The candidate that comes before this peer, if one is alive.

        A candidate that the caller could not reach is tried from here: if it is silent here as well, it is buried.
        """
        for candidate in candidates:
            if candidate == self._transport.peer_id:
                return None
            if candidate not in message.unreachable or await self._responds(candidate):
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
            session = self._sessions[key] = _Session(key, self._transport.peer_id, self._quorum)
            while len(self._sessions) > self._max_sessions:
                self._sessions.popitem(last=False)
        return session
