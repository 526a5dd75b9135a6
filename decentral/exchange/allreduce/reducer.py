"""The serving side of a reduction: collects the parts of a shard and answers every member with the same bytes."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from decentral.codecs.frame import unpack
from decentral.errors import FrameError, PeerUnreachable, TransportError
from decentral.exchange.allreduce.account import Used, digest_of, encoded, mean_seed, merged
from decentral.exchange.allreduce.answers import Answers
from decentral.exchange.allreduce.books import Books
from decentral.exchange.allreduce.messages import Mean, Result, Shard, unpack_participants
from decentral.exchange.allreduce.participants import MAX_PARTICIPANTS_BYTES, Participants
from decentral.exchange.backlog import Backlog
from decentral.exchange.merge import MAX_WEIGHT
from decentral.exchange.rest import MeanRest
from decentral.exchange.shard import Entry, ShardContributions
from decentral.exchange.wire import MAX_SHARDS_EACH, Part, Wire
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.tensors.finite import all_finite
from decentral.types import PeerId, SyncKey

SHARD = "shard"
RESULT = "result"
COMING = "coming"
#: The answer to a contribution while others are still missing.
PENDING = b""
#: The answers of a member that is asked whether it is coming.
YES, NO = b"y", b"n"
_MAX_ASKED = 16
#: Reductions open at a time, for each fragment: those of a round that hangs and of the one after it.
_MAX_OPEN_EACH = 4 * MAX_SHARDS_EACH
_TICK_S = 0.25


@dataclass(frozen=True, slots=True)
class Values:
    """Where a member's values of one round come from and go to; shards are read and written by the clock's thread.

    Legend: N = values in the fragment.
    """

    ours_N: Tensor
    """What to encode."""
    weight: float
    """0 to listen only."""
    sent_N: Tensor
    """Takes what the others decode of ours."""
    mean_N: Tensor
    """Takes the mean."""
    in_place: set[int] = field(default_factory=set)
    """Shards of which the mean was made here, and is there."""


@dataclass(slots=True)
class _Reduction:
    """A shard being reduced."""

    participants: Participants
    part: Part
    contributions: ShardContributions
    opened_at: float
    asked_at: float
    """When the members still missing were last asked whether they are coming."""
    brought: dict[PeerId, tuple[Shard, bytes]] = field(default_factory=dict)
    """What is in, with the digests of the parts, if the answer is to be signed."""
    gone: set[PeerId] = field(default_factory=set)
    """Members that are not coming."""
    closing: bool = False
    """The mean is being taken; nothing enters any more."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class Reducer:
    """Reduces the shards that fall to this peer; needs neither the anchor nor to be at that round itself.

    Args:
        transport: to answer through.
        clock: for durations.
        roster: members that died are not waited for.
        wire: sizes and codecs.
        answers: where those of each fragment are kept.
        timing: backstops.
        books: to sign answers and to keep what they are of; ``None`` where nobody signs.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        wire: Wire,
        answers: Sequence[Answers],
        timing: Timing,
        books: Books | None = None,
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._wire = wire
        self._answers = answers
        self._timing = timing
        self._books = books
        self._open: dict[tuple[bytes, int], _Reduction] = {}
        self._beside: dict[bytes, Values] = {}
        """Of the rounds that this worker is in as a member."""
        self.rest = MeanRest(wire.numels)
        self.backlogs = [Backlog() for _ in wire.numels]
        """Of each fragment: who was counted in the rounds that this worker was in."""
        self.round_weight = 0.0
        """Of what this worker itself brings to a round if it is in all of it; 0 as long as that is not known."""

    async def start(self) -> None:
        """Begin to answer."""
        limit = self._wire.longest_contribution(MAX_PARTICIPANTS_BYTES)
        await self._transport.serve(SHARD, self._on_shard, max_request_bytes=limit, max_concurrent=4096)
        await self._transport.serve(RESULT, self._on_result, max_request_bytes=Result.max_bytes)

    @contextlib.contextmanager
    def beside(self, packed_participants: bytes, values: Values) -> Iterator[None]:
        """This worker is in a round as a member: between the two of them nothing needs to be decoded."""
        self._beside[packed_participants] = values
        try:
            yield
        finally:
            del self._beside[packed_participants]

    async def _on_shard(self, sender: PeerId, request: bytes) -> bytes:
        """Enter a contribution and hold the call until the shard is closed, at most ``hold_s`` seconds."""
        shard = from_wire(Shard, request, len(request))
        participants = unpack_participants(shard.participants)
        part = self._part(participants, shard.index, sender)
        answers = self._answers[participants.key.fragment]
        answer = _answer(answers, shard)
        if answer is not None:
            return answer
        reduction = self._reduction(shard, participants, part)
        await self._enter(sender, shard, reduction)
        until = self._clock.monotonic() + self._timing.hold_s
        while (left_s := until - self._clock.monotonic()) > 0:
            await self._ask_missing(shard, reduction)
            await self._close_if_due(shard, reduction)
            answer = _answer(answers, shard)
            if answer is not None:
                return answer
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _TICK_S)):
                    await reduction.closed.wait()
        return PENDING

    def _part(self, participants: Participants, index: int, sender: PeerId) -> Part:
        """The shard meant, if the sender and this peer have to do with it."""
        if sender not in participants.members:
            raise FrameError("the sender is no participant")
        parts = self._parts(participants)
        if index >= len(parts) or parts[index].reducer != self._transport.peer_id:
            raise FrameError(f"shard {index} is not reduced here")
        return parts[index]

    def _parts(self, participants: Participants) -> tuple[Part, ...]:
        """The shards of a round."""
        if participants.key.fragment >= len(self._wire.numels):
            raise FrameError(f"there is no fragment {participants.key.fragment}")
        return self._wire.parts(participants.key, participants.members, participants.reducers)

    async def _enter(self, sender: PeerId, shard: Shard, reduction: _Reduction) -> None:
        """Enter a contribution; one that is repeated, or too late, is not even decoded."""
        if sender not in reduction.contributions.awaited() or reduction.closing:
            return
        entry = await self._clock.run_aside(lambda: self._entry(sender, shard, reduction.part))
        if not reduction.closing and sender in reduction.contributions.awaited():
            reduction.contributions.enter(sender, entry)
            if self._signing(reduction.part) is not None:
                reduction.brought[sender] = shard, entry.digest

    def _entry(self, sender: PeerId, shard: Shard, part: Part) -> Entry:
        """The contribution, checked."""
        if not shard.frame:
            return Entry(0.0, None)
        if not 0 < shard.weight <= MAX_WEIGHT:
            raise FrameError(f"values with weight {shard.weight}")
        digest, books = digest_of(shard.frame), self._signing(part)
        if books is not None:
            books.check_shard(sender, shard, digest)
        own = self._beside.get(shard.participants) if sender == self._transport.peer_id else None
        if own is not None:
            # A copy: whoever is done with the round writes to its own values, and a shard may be closed after that.
            return Entry(shard.weight, own.sent_N[part.start : part.stop].clone(), digest)
        return Entry(shard.weight, unpack(shard.frame, self._wire.codec, part.numel), digest)

    def _reduction(self, shard: Shard, participants: Participants, part: Part) -> _Reduction:
        known = self._open.get((shard.participants, shard.index))
        if known is None:
            self._drop_stale()
            if len(self._open) >= _MAX_OPEN_EACH * len(self._wire.numels):
                raise ValueError("too many open reductions")
            now = self._clock.monotonic()
            known = _Reduction(participants, part, ShardContributions(participants.members), now, now)
            self._open[shard.participants, shard.index] = known
        return known

    def _drop_stale(self) -> None:
        """Forget reductions whose members all stopped asking."""
        horizon = self._clock.monotonic() - 2 * self._timing.transfer_timeout_s
        self._open = {key: reduction for key, reduction in self._open.items() if reduction.opened_at > horizon}

    async def _close_if_due(self, shard: Shard, reduction: _Reduction) -> None:
        """Close over those that are in once nobody worth waiting for is missing."""
        if reduction.closing or reduction.closed.is_set() or not self._is_due(reduction):
            return
        reduction.closing = True
        participants, fragment = reduction.participants, reduction.participants.key.fragment
        answers, backlog = self._answers[fragment], self.backlogs[fragment]
        rounds = {peer: backlog.rounds(peer) for peer in participants.members}
        try:
            answer = await self._clock.run_aside(lambda: self._mean(shard.participants, reduction, rounds))
        finally:
            reduction.closing = False  # should this call be cancelled meanwhile, another one closes
        if answer is None:
            answers.ask(shard.participants, shard.index)
        else:
            answers.accept(shard.participants, shard.index, answer)
        self._open.pop((shard.participants, shard.index), None)
        reduction.closed.set()

    def _is_due(self, reduction: _Reduction) -> bool:
        """Whether nobody worth waiting for is missing. Asked for every member: looks no further than the first such."""
        now = self._clock.monotonic()
        age_s = now - reduction.opened_at
        missing = (member for member in reduction.contributions.awaited() if member not in reduction.gone)
        if age_s >= self._timing.transfer_timeout_s:
            return True
        if age_s < self._timing.ttl_s:
            # All members were alive when the participants were named: silence counts only after a full time to live.
            return next(missing, None) is None
        return not any(self._roster.is_live(member, now) for member in missing)

    def _mean(self, packed_participants: bytes, reduction: _Reduction, rounds: Mapping[PeerId, float]) -> bytes | None:
        """The answer to all members, who may bring work of so many ``rounds``; ``None`` if there is no finite mean."""
        key, part, contributions = reduction.participants.key, reduction.part, reduction.contributions
        round_weight = self.round_weight
        mean_S, findings = merged(self._wire, key, part, contributions, round_weight, rounds)
        if mean_S is None or not all_finite(mean_S.numpy()):
            return None
        rest_S = self.rest.of(key, part.start, part.stop) if self._wire.keep_rest else None
        frame, sent_S, left_S = self._encode(mean_S, rest_S, mean_seed(key, part))
        own = self._beside.get(packed_participants)
        if own is not None:
            own.mean_N[part.start : part.stop] = sent_S
            own.in_place.add(part.index)
        if self._wire.keep_rest and left_S is not None:
            self.rest.hold(packed_participants, key, part.start, left_S)
        mean = Mean.of(contributions.contributors(), frame, findings)
        books = self._signing(part)
        if books is not None:
            brought = [self._used(index, reduction, rounds) for index in mean.contributors]
            return books.close(packed_participants, part.index, mean, round_weight, brought)
        return to_wire(mean)

    def _encode(self, mean_S: Tensor, rest_S: Tensor | None, seed: int) -> tuple[bytes, Tensor, Tensor | None]:
        """See ``account.encoded``."""
        held_to = self._wire.signs(mean_S.numel())
        return encoded(self._wire.mean_codec, mean_S, rest_S, seed, held_to=held_to)

    def _signing(self, part: Part) -> Books | None:
        """The books, if means of this shard are signed."""
        return self._books if self._wire.signs(part.numel) else None

    def _used(self, index: int, reduction: _Reduction, rounds: Mapping[PeerId, float]) -> tuple[Used, bytes]:
        """What one member has brought, for the account."""
        member = reduction.participants.members[index]
        shard, digest = reduction.brought[member]
        return Used(index, shard.weight, rounds[member], digest, shard.seal), shard.frame

    async def settle(self, packed_participants: bytes, *, mixed: bool) -> None:
        """A round has ended for this worker: what was left out of its means is owed, or void."""
        # On the thread that takes means: rests are nobody else's.
        await self._clock.run_aside(lambda: self.rest.settle(packed_participants, mixed=mixed))

    async def start_afresh(self, key: SyncKey) -> None:
        """What was left out of earlier means of this fragment is not to be added any more."""
        await self._clock.run_aside(lambda: self.rest.void(key))

    async def _ask_missing(self, shard: Shard, reduction: _Reduction) -> None:
        """Now and then ask those who are missing whether they are coming: some died, some are in another round."""
        now = self._clock.monotonic()
        if reduction.closed.is_set() or now - reduction.asked_at < self._timing.hold_s / 2:
            return
        reduction.asked_at = now

        async def ask(member: PeerId) -> None:
            try:
                answer = await self._transport.call(
                    member, COMING, shard.participants, timeout_s=self._timing.hold_s, max_reply_bytes=1
                )
            except PeerUnreachable:
                self._roster.bury(member)
                reduction.gone.add(member)
            except TransportError:
                return
            else:
                if answer == NO:
                    reduction.gone.add(member)

        missing = [member for member in reduction.contributions.awaited() if member not in reduction.gone]
        async with asyncio.TaskGroup() as group:
            for member in missing[:_MAX_ASKED]:
                group.create_task(ask(member))

    async def _on_result(self, sender: PeerId, request: bytes) -> bytes:
        """Another member asks for an answer it could not get from the reducer, or a worker for a round it missed."""
        asked = from_wire(Result, request)
        packed, index = asked.participants, asked.index
        participants = unpack_participants(packed)
        if index >= len(self._parts(participants)):
            raise FrameError(f"there is no shard {index}")
        answers = self._answers[participants.key.fragment]
        if sender not in participants.members:
            # It will take what it gets and what it does not get binds nobody: nothing is forsworn.
            return answers.get(packed, index) or PENDING
        answer = answers.ask(packed, index)
        reduction = self._open.pop((packed, index), None)
        if reduction is not None:
            reduction.closed.set()
        return answer if answer is not None else PENDING


def _answer(answers: Answers, shard: Shard) -> bytes | None:
    """The shard's answer if it is closed; raises if it was given up."""
    if answers.forsworn(shard.participants, shard.index):
        raise ValueError("this reduction was given up")
    return answers.get(shard.participants, shard.index)
