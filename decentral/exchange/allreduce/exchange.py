"""All-reduce over a living swarm: one list of participants, one reducer for each shard, one verdict.

1. The member calls the leader of the round and gets the participants (``leader``): who is in, with equal anchors.
2. It sends each shard of its pseudo-gradient to that shard's reducer, which answers all members with the same encoded
   mean (``reducer``). Nobody averages for itself, so there is nothing to disagree about.
3. If a reducer is lost, the member asks the others for the answer (``answers``). Either one of them has it and all get
   it, or none will ever use it.

So members that can reach each other end a round with bit-equal means or with none, whenever and wherever one of them
is killed. A member that could not be reached at that moment may differ; the next round finds that out and it repairs.

Legend: N = values in the fragment.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decentral.codecs.frame import pack, reread, unpack
from decentral.errors import CallRefused, CallTimeout, FrameError, PeerUnreachable, TransportError
from decentral.exchange.allreduce.answers import Answers
from decentral.exchange.allreduce.audit import Auditor
from decentral.exchange.allreduce.books import Books
from decentral.exchange.allreduce.called import Called, contradicts
from decentral.exchange.allreduce.leader import CONVENE, Leader
from decentral.exchange.allreduce.members import Members
from decentral.exchange.allreduce.messages import (
    MAX_DOUBTED,
    Answer,
    Convene,
    ConveneReply,
    Mean,
    Result,
    Shard,
    unpack_mean,
    unpack_participants,
)
from decentral.exchange.allreduce.participants import MAX_PARTICIPANTS_BYTES, Quorum
from decentral.exchange.allreduce.plausible import absurd
from decentral.exchange.allreduce.reducer import COMING, NO, PENDING, RESULT, SHARD, YES, Reducer, Values
from decentral.exchange.allreduce.vote import Vote
from decentral.exchange.api import Aborted, Contribution, Exchange, Memory, Reason, Restrained, Verdict
from decentral.exchange.bounds import Beside, Finding, Kind, beside
from decentral.exchange.progress import Progress
from decentral.exchange.wire import Part, Wire, in_turn, seed_of
from decentral.outer.rule import Mixed
from decentral.ports.clock import Clock
from decentral.ports.identity import Identity
from decentral.ports.transport import Transport
from decentral.swarm.matching import leaders
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.tensors.blank import blank_like
from decentral.types import PeerId, SyncKey, short_id

_MAX_ASKED_AT_ONCE = 8
#: So many are asked for a mean that this member was not there for, before it repairs.
_MAX_DONORS = 3
#: For members that missed rounds: as much as anchor and momentum take. With half of it newcomers whose download takes
#: several rounds had to repair.
_ANSWERS_BYTES_PER_VALUE = 8
#: So much is kept even if nobody seems to miss anything: while rounds are short, word of a newcomer comes late.
_SPARE_ANSWERS_BYTES = 1 << 24
#: Parts are kept of the last round, for members that do a shard over, and of some that take longer.
_KEPT_ROUNDS = 1.5
#: A leader that others can reach and we cannot is tried so often.
_MAX_RETRIES = 3


@dataclass(frozen=True, slots=True)
class _Reduced:
    """What became of all shards."""

    outcome: Mixed | Aborted
    sent_N: Tensor | None = None
    """What of ours was sent."""
    silent: tuple[tuple[PeerId, str], ...] = ()
    """Who brought nothing."""
    restrained: tuple[Restrained, ...] = ()


class AllReduce(Exchange):
    """Both a member's and, through its parts, a leader's and a reducer's side.

    Args:
        transport: to the peers.
        clock: for durations.
        roster: who is alive.
        wire: sizes and codecs, equal on all members.
        timing: patience and backstops.
        inner_steps: in a round.
        quorum: how many members make a round; ``None`` for everybody worth waiting for.
        identity: signs what this worker brings and answers; ``None`` where nobody does.
        anchor: see ``Members``.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        wire: Wire,
        timing: Timing,
        inner_steps: int,
        quorum: Quorum | None,
        identity: Identity | None,
        anchor: Callable[[int], tuple[str, Tensor] | None],
    ) -> None:
        super().__init__(Progress(len(wire.numels)))
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._wire = wire
        self._timing = timing
        self._inner_steps = inner_steps
        self._quorum = quorum
        spare_bytes = _SPARE_ANSWERS_BYTES // len(wire.numels)
        self._answers = [Answers(_ANSWERS_BYTES_PER_VALUE * numel, spare_bytes) for numel in wire.numels]
        self._leader = Leader(transport, clock, roster, self.progress, timing, quorum)
        budget_bytes = int(_KEPT_ROUNDS * sum(wire.contribution_limit(numel, 0) for numel in wire.numels))
        self._books = Books(identity, budget_bytes) if identity is not None else None
        self._reducer = Reducer(transport, clock, roster, wire, self._answers, timing, self._books)
        self._auditor: Auditor | None = None
        if self._books is not None:
            self._auditor = Auditor(
                transport, clock, roster, wire, timing, self._answers, self._books, self._leader.distrust
            )
        self._vote = Vote(transport, clock, timing, len(wire.numels))
        self._members = Members(transport, clock, roster, self.progress, timing, self._leader.expected, anchor)
        self._dice = torch.Generator().manual_seed(seed_of(f"doubts/{transport.peer_id}"))

    async def start(self) -> None:
        """Begin to serve other members."""
        await self._leader.start()
        await self._reducer.start()
        await self._vote.start()
        if self._auditor is not None:
            await self._auditor.start()
        await self._transport.serve(COMING, self._on_coming, max_request_bytes=MAX_PARTICIPANTS_BYTES)
        await self._members.start()

    async def run(self) -> None:
        """Do drawn shards over."""
        if self._auditor is not None:
            await self._auditor.run()

    def memory(self) -> Memory:
        """What it still owes to means."""
        return Memory({"rest": self._reducer.rest.owed()})

    def remember(self, memory: Memory, anchors_N: Sequence[Tensor]) -> None:
        """See ``Exchange``."""
        self._reducer.rest.restore(memory.tensors.get("rest", {}))

    async def mix(self, key: SyncKey, mine: Contribution) -> Verdict:
        """Mix ``mine`` with the other members' contributions to ``key``.

        A weight of 0 listens only: nothing is sent, the mean is received.
        """
        began = self._clock.monotonic()
        self.progress.participants[key] = None
        if mine.num_inner_steps and mine.weight:
            self._reducer.round_weight = mine.weight / mine.num_inner_steps * self._inner_steps
        try:
            called = await self._participants(key, mine)
            called_at = self._clock.monotonic()
            if isinstance(called, Aborted):
                return Verdict(called, waiting_s=called_at - began)
            self.progress.participants[key] = called.packed
            reduced = await self._reduce(called, mine)
            if isinstance(reduced.outcome, Mixed):
                if called.missed is None:
                    self.progress.donor = None
                self._reducer.backlogs[key.fragment].counted(reduced.outcome.members)
            await self._end(called, reduced.outcome)
            return Verdict(
                reduced.outcome,
                reduced.sent_N,
                absent=called.absent + reduced.silent,
                waiting_s=called_at - began,
                transfer_s=self._clock.monotonic() - called_at,
                missed=called.missed is not None,
                restrained=reduced.restrained + (self._auditor.found() if self._auditor is not None else ()),
            )
        finally:
            del self.progress.participants[key]
            self.progress.finish(key)

    async def _end(self, called: Called, outcome: Mixed | Aborted) -> None:
        """This worker is through with a round."""
        with_all = isinstance(outcome, Mixed) and set(called.participants.members).issuperset(self._roster)
        self._answers[called.participants.key.fragment].end(called.packed, with_all=with_all)
        await self._reducer.settle(called.packed, mixed=isinstance(outcome, Mixed))

    async def _on_coming(self, sender: PeerId, request: bytes) -> bytes:
        """A reducer asks whether it should wait for us: yes if we are among its participants, or nowhere yet."""
        key = unpack_participants(request).key
        participants = self.progress.participants
        return YES if key in participants and participants[key] in (None, request) else NO

    async def _participants(self, key: SyncKey, mine: Contribution) -> Called | Aborted:
        """Ask the leader, whoever that turns out to be, until the participants are named."""
        began = self._clock.monotonic()
        until = began + self._timing.max_patience_s + self._timing.ttl_s
        unreachable: dict[PeerId, int] = {}
        doubted: dict[PeerId, Called | Aborted] = {}
        """Leaders whose word most members contradict, with what they said."""
        visited: set[PeerId] = set()
        redirect: PeerId | None = None
        stalling: set[PeerId] = set()
        while self._clock.monotonic() < until:
            if redirect in visited:
                # Two peers send us to each other: their rosters differ. A beat or so lets them agree.
                await asyncio.sleep(self._timing.beat_s / 4)
                stalling, visited = visited, set()
            leader = redirect or self._first_candidate(key, {*unreachable, *doubted})
            visited.add(leader)
            redirect = None
            slack_s = max(0.0, mine.slack_s - (self._clock.monotonic() - began))
            base = mine.base
            call = Convene(key, base.digest, base.num_steps, tuple(unreachable), slack_s, tuple(doubted))
            reply = await self._convene(leader, call)
            if reply is None:
                self._roster.bury(leader)
                unreachable[leader] = unreachable.get(leader, 0) + 1
                held = await self._participants_of_others(key, mine)
                if held is not None:
                    return held
            elif reply.kind is Answer.REDIRECT and reply.source is not None and reply.source not in doubted:
                if unreachable.get(reply.source, 0) >= _MAX_RETRIES:
                    who = short_id(reply.source)
                    return Aborted(Reason.ALONE, f"cannot reach {who}, which leads the round and which others reach")
                redirect = reply.source
            elif reply.kind is Answer.WAIT and not doubted:
                stalling = {leader}
            elif (end := await self._weighed(key, mine, leader, reply, doubted)) is not None:
                return end
        if doubted:
            return next(iter(doubted.values()))
        for peer in stalling - {self._transport.peer_id}:
            self._leader.pass_over(peer, key.round)
        return Aborted(Reason.DEADLINE, f"no participants within {self._timing.max_patience_s:.0f} s")

    def _first_candidate(self, key: SyncKey, passed: Collection[PeerId]) -> PeerId:
        """The best candidate for leader that has not failed; in the end oneself."""
        candidates = leaders(self._roster.active(self._clock.monotonic()), key)
        return next(self._leader.may_lead(candidates, key.round, passed), self._transport.peer_id)

    async def _convene(self, leader: PeerId, message: Convene) -> ConveneReply | None:
        """One call to a leader; ``None`` if it does not answer as it should."""
        timeout_s = self._timing.hold_s + self._timing.grace_s
        try:
            reply = await self._transport.call(
                leader, CONVENE, to_wire(message), timeout_s=timeout_s, max_reply_bytes=MAX_PARTICIPANTS_BYTES
            )
            return from_wire(ConveneReply, reply)
        except (TransportError, FrameError):
            return None

    async def _participants_of_others(self, key: SyncKey, mine: Contribution) -> Called | None:
        """The participants as a lost leader has told somebody else, if we are one: a second list splits the round."""
        told = (await self._members.ask(key)).values()
        held = (self._checked(key, mine, where.participants) for where in told if where is not None)
        return next((called for called in held if isinstance(called, Called)), None)

    async def _weighed(
        self,
        key: SyncKey,
        mine: Contribution,
        leader: PeerId,
        reply: ConveneReply,
        doubted: dict[PeerId, Called | Aborted],
    ) -> Called | Aborted | None:
        """What a leader's answer comes to, which counts as long as most members do not contradict it.

        Returns:
            How the call ends; ``None`` to ask again: the next candidate, if this one is ``doubted`` from now on.
        """
        said = self._said(key, mine, reply)
        if said is not None and (leader == self._transport.peer_id or not self._is_doubtful(said)):
            return self._ended(key, said, doubted)
        word = await self._members.word(key)
        most = word.list_of_most()
        told = self._missed(key, mine, *most) if most is not None else None
        if isinstance(told, Called):
            return self._ended(key, told, doubted)
        first = next(iter(doubted.values()), said)
        end = said or first
        if end is None or not contradicts(word, key, mine.base.digest, end):
            if isinstance(end, Aborted) and end.reason is Reason.OUT_OF_SYNC:
                end = replace(end, source=word.holder_of_most(end.source))
            return end
        if len(doubted) == MAX_DOUBTED:
            return first
        if reply.kind is Answer.WAIT:
            await asyncio.sleep(self._timing.beat_s / 4)
        else:
            doubted[leader] = end
        return None

    def _is_doubtful(self, said: Called | Aborted) -> bool:
        """Whether a leader's word is worth a question: it sends this worker away, or names few."""
        if isinstance(said, Aborted) and said.reason is Reason.OUT_OF_SYNC:
            return True
        if isinstance(said, Aborted) or said.missed is not None:
            return self._quorum is None
        return self._quorum is None and self._names_few(said)

    def _names_few(self, called: Called) -> bool:
        """Whether half of those are missing for whom a leader would wait. Of two as well: to ask costs little."""
        expected = self._leader.expected()
        return 2 * len(set(expected).difference(called.participants.members)) >= len(expected)

    def _ended(self, key: SyncKey, end: Called | Aborted, doubted: Mapping[PeerId, object]) -> Called | Aborted:
        """Leaders that were doubted until another one named most members lead no more for a while."""
        if isinstance(end, Aborted) or end.participants.leader in doubted or self._names_few(end):
            return end
        self._leader.doubt(doubted, key.round)
        return replace(end, doubted=tuple(doubted))

    def _said(self, key: SyncKey, mine: Contribution, reply: ConveneReply) -> Called | Aborted | None:
        """What a leader's answer says of the round; ``None`` if it does not say."""
        match reply.kind:
            case Answer.PARTICIPANTS:
                return self._checked(key, mine, reply.participants)
            case Answer.BEHIND:
                return self._missed(key, mine, reply.participants, reply.source)
            case Answer.OUT_OF_SYNC:
                return Aborted(Reason.OUT_OF_SYNC, "most members hold another anchor", reply.source)
        return None

    def _checked(self, key: SyncKey, mine: Contribution, packed: bytes) -> Called | Aborted:
        """The participants, if this member is one."""
        try:
            participants = unpack_participants(packed)
        except FrameError as err:
            return Aborted(Reason.REFUSED, str(err))
        if (
            participants.key != key
            or self._transport.peer_id not in participants.members
            or participants.base != mine.base.digest
        ):
            return Aborted(
                Reason.REFUSED,
                f"the leader {short_id(participants.leader)} answered with participants of another round",
            )
        now = self._clock.monotonic()
        self._roster.vouch(participants.members, now)
        return Called(participants, packed)

    def _missed(self, key: SyncKey, mine: Contribution, packed: bytes, source: PeerId | None) -> Called | Aborted:
        """The round that ended without us: of its participants the means can be had, else all must be repaired."""
        behind = Aborted(Reason.BEHIND, f"round {key.round} is over", source)
        try:
            participants = unpack_participants(packed) if packed else None
        except FrameError:
            return behind
        if participants is None or participants.key != key or participants.base != mine.base.digest:
            return behind
        if self._transport.peer_id in participants.members:
            return behind
        return Called(participants, packed, behind)

    async def _reduce(self, called: Called, mine: Contribution) -> _Reduced:
        """All shards, or nothing.

        Alone, what we bring is the mean, and no codec spoils it; unless somebody is on its way to join, who will want
        to catch up with our rounds.
        """
        members, me = called.participants.members, self._transport.peer_id
        if members == (me,) and mine.weight and len(self._roster.live(self._clock.monotonic())) == 1:
            return _Reduced(Mixed(mine.delta_N, members), mine.delta_N)
        relative = bool(mine.base.counted) and members == mine.base.counted
        values_N = mine.relative_N if relative and mine.relative_N is not None else mine.delta_N
        if self._wire.sends_changes and not relative:
            await self._reducer.start_afresh(called.participants.key)
        weight = mine.weight if called.missed is None else 0.0
        values = Values(values_N, weight, blank_like(values_N), blank_like(values_N))
        key, index = called.participants.key, members.index(me) if me in members else -1
        parts = self._wire.parts(key, members, called.participants.reducers)
        with self._reducer.beside(called.packed, values):
            async with asyncio.TaskGroup() as group:
                tasks = {part: group.create_task(self._mean(called, part, values)) for part in in_turn(parts, me)}
        means: list[Mean] = []
        for outcome in (tasks[part].result() for part in parts):
            if isinstance(outcome, Aborted):
                return _Reduced(called.missed or replace(outcome, uncertain=weight > 0))
            means.append(outcome)
        turned = await self._judge(called, parts, means, values) if self._wire.bound else {}
        odd = [i for i, mean in enumerate(means) if not mean.contributors]
        for i in odd:
            self._leader.distrust(parts[i].reducer, key.round)
        if self._auditor is not None and weight:
            self._auditor.draw(called.packed, called.participants, parts, odd)
        contributors = [mean.contributors for mean in means]
        if not any(contributors):
            return _Reduced(
                called.missed or Aborted(Reason.REFUSED, "no shard came back as a mean", uncertain=weight > 0)
            )
        inside = set().union(*contributors)
        restrained = _restrained(members, list(zip(parts, means, strict=True)), turned)
        mixed = Mixed(
            values.mean_N,
            tuple([members[i] for i in sorted(inside)]),
            missed=tuple([(p.start, p.stop) for p, s in zip(parts, contributors, strict=True) if index not in s]),
            whole=not restrained and all(len(shard) == len(members) for shard in contributors),
            relative=relative,
        )
        silence = "among the participants, but brought nothing"
        silent = [(member, silence) for i, member in enumerate(members) if i not in inside]
        return _Reduced(mixed, values.sent_N if weight else None, tuple(silent), restrained)

    async def _mean(self, called: Called, part: Part, values: Values) -> Mean | Aborted:
        """What there is to say of a shard; its mean comes from its reducer or, if that is lost, another member."""
        limit = self._wire.mean_limit(part.numel, len(called.participants.members))
        request = None
        if values.weight:
            request = await self._clock.run_aside(lambda: self._request(called, part, values))
        if called.missed is not None:
            answer = await self._afterwards(called, part, limit)
        else:
            answer = await self._from_reducer(called, part, request, limit)
            answer = answer or await self._from_others(called, part, limit)
        who = short_id(part.reducer)
        if answer is None:
            return Aborted(Reason.DEADLINE, f"shard {part.index} was lost with its reducer {who}")
        try:
            mean = unpack_mean(answer, limit, len(called.participants.members))
            await self._clock.run_aside(lambda: self._take(called, mean, part, values))
        except FrameError as err:
            if not self._wire.bound:
                return Aborted(Reason.REFUSED, f"shard {part.index} from {who}: {err}")
            # All members have these bytes and refuse them alike: to all the shard was closed with nobody's part.
            return self._nobodys(part, values)
        return mean

    async def _judge(
        self, called: Called, parts: Sequence[Part], means: list[Mean], values: Values
    ) -> dict[int, float]:
        """Close shards with nobody's part of which the answer can be no mean.

        Returns:
            Those for which the members say so, by what they brought; with the cosine of our part.
        """
        spans = [slice(part.start, part.stop) for part in parts]

        def look() -> list[Beside]:
            sent = [values.sent_N[span] if values.weight else None for span in spans]
            for at in absurd(list(zip(sent, [values.mean_N[span] for span in spans], strict=True))):
                means[at] = self._nobodys(parts[at], values)
            if not values.weight:
                return []
            return [beside(values.sent_N[span], values.mean_N[span], self._dice) for span in spans]

        found = await self._clock.run_aside(look)
        own = self._transport.peer_id  # of one's own means there is no doubt
        doubted = [i for i, each in enumerate(found) if each.against and parts[i].reducer != own]
        told = [values.weight * each.product for each in found]
        turned = await self._vote.refused(called.packed, told, doubted)
        for i in turned:
            means[i] = self._nobodys(parts[i], values)
        return {i: found[i].cosine for i in turned}

    def _nobodys(self, part: Part, values: Values) -> Mean:
        """A shard that was closed with nobody's part."""
        values.mean_N[part.start : part.stop] = 0
        return Mean.of((), b"")

    def _request(self, called: Called, part: Part, values: Values) -> bytes:
        """The message that brings our part of a shard; notes what the others will decode of it."""
        codec, key, span = self._wire.codec, called.participants.key, slice(part.start, part.stop)
        seed = seed_of(f"{self._transport.peer_id}/{key.round}/{key.fragment}/{part.index}")
        frame = pack(codec, values.ours_N[span], seed)
        values.sent_N[span] = values.ours_N[span] if codec.lossless else reread(frame, codec, part.numel)
        if self._books is not None and self._wire.signs(part.numel):
            return to_wire(self._books.shard(called.packed, part.index, values.weight, frame))
        return to_wire(Shard(called.packed, part.index, values.weight, frame))

    def _take(self, called: Called, mean: Mean, part: Part, values: Values) -> None:
        """Unpack the mean of a shard to its place, unless it was made here and is there."""
        if part.index in values.in_place:
            return
        if self._books is not None and self._wire.signs(part.numel):
            self._books.check_mean(part.reducer, called.packed, part.index, mean)
        values.mean_N[part.start : part.stop] = unpack(mean.frame, self._wire.mean_codec, part.numel)

    async def _from_reducer(self, called: Called, part: Part, ours: bytes | None, limit: int) -> bytes | None:
        """Send our part, if there is one, and wait for the answer; ``None`` if the reducer is lost or gave up."""
        listening = to_wire(Shard(called.packed, part.index, 0.0, b""))
        request = ours or listening
        # Fragments that are on their way together share the line.
        timeout_s = self._timing.call_timeout_s((len(request) + limit) * max(1, len(self.progress.participants)))
        began = heard_at = self._clock.monotonic()
        while (now := self._clock.monotonic()) - began < 2 * self._timing.transfer_timeout_s:
            try:
                answer = await self._transport.call(
                    part.reducer, SHARD, request, timeout_s=timeout_s, max_reply_bytes=limit
                )
            except (PeerUnreachable, CallTimeout) as err:
                # Sent again in full, since the request may be what was lost; entering it twice changes nothing.
                if now - heard_at > self._timing.ttl_s or not self._roster.is_live(part.reducer, now):
                    return None
                if isinstance(err, PeerUnreachable):  # Unless it is heard of until then, the next try is the last.
                    self._roster.bury(part.reducer)
                await asyncio.sleep(self._timing.beat_s / 2)
                continue
            except CallRefused:
                if request == listening:
                    return None
                # Our part is not wanted; the mean of the others still is.
                request = listening
                continue
            if answer != PENDING:
                answers = self._answers[called.participants.key.fragment]
                return answer if answers.accept(called.packed, part.index, answer) else None
            heard_at = self._clock.monotonic()
            request = listening
        return None

    async def _from_others(self, called: Called, part: Part, limit: int) -> bytes | None:
        """Ask every other member for the answer; those who have none will not use one that comes later."""
        answers = self._answers[called.participants.key.fragment]
        own = answers.ask(called.packed, part.index)
        if own is not None:
            return own
        at_once = asyncio.Semaphore(_MAX_ASKED_AT_ONCE)

        async def ask(member: PeerId) -> bytes | None:
            async with at_once:
                return await self._result_of(member, called, part, limit)

        others = [member for member in called.participants.members if member != self._transport.peer_id]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(member)) for member in others]
        answer = next((result for task in tasks if (result := task.result()) is not None), None)
        if answer is not None:
            answers.adopt(called.packed, part.index, answer)
        return answer

    async def _afterwards(self, called: Called, part: Part, limit: int) -> bytes | None:
        """The answer to a shard of a round that ended without this member, from its reducer or another member."""
        others = [member for member in called.participants.members if member != part.reducer]
        for member in (part.reducer, *others[: _MAX_DONORS - 1]):
            answer = await self._result_of(member, called, part, limit)
            if answer is not None:
                return answer
        return None

    async def _result_of(self, member: PeerId, called: Called, part: Part, limit: int) -> bytes | None:
        """The answer to a shard, if ``member`` has it."""
        question = to_wire(Result(called.packed, part.index))
        timeout_s = self._timing.call_timeout_s(limit * max(1, len(self.progress.participants)))
        try:
            answer = await self._transport.call(member, RESULT, question, timeout_s=timeout_s, max_reply_bytes=limit)
        except TransportError:
            return None
        return answer if answer != PENDING else None


def _restrained(
    members: Sequence[PeerId], shards: Sequence[tuple[Part, Mean]], turned: Mapping[int, float]
) -> tuple[Restrained, ...]:
    """Who was bounded in any shard, or refused as its reducer, in the order of the members."""
    found: dict[tuple[int, Kind], tuple[float, int]] = {}
    for i, (part, mean) in enumerate(shards):
        no_mean = Finding(members.index(part.reducer), Kind.TURNED if i in turned else Kind.MEAN, turned.get(i, 0.0))
        for finding in mean.findings if mean.contributors else (no_mean,):
            ratio, numel = found.get((finding.index, finding.kind), (finding.ratio, 0))
            most = max(ratio, finding.ratio, key=abs)
            found[finding.index, finding.kind] = most, numel + part.numel
    total = sum(part.numel for part, _ in shards)
    ranked = sorted(found.items())
    return tuple([Restrained(members[i], kind, most, numel / total) for (i, kind), (most, numel) in ranked])
