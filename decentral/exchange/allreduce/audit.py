"""Reducers are checked: now and then a member does a drawn shard over, and whoever lied is barred by everybody.

* **The lottery.** Once a round is over each member draws, from the answers and a secret of its own, whether it does a
  shard over and which. No reducer can know that before it answers, nor afterwards who has drawn it. A shard that looks
  wrong is done over without any draw.
* **The check.** It gets the account of the answer and the parts from the reducer, and takes the mean over.
* **The proof.** Account, parts and answer are signed by those who made them: whoever has them finds the same. Who has
  found a lie tells all peers that it knows, and those that come later, and each looks for itself: nobody is barred on
  anybody's word.
* A reducer that gives no account proves nothing: it may have been restarted. From the second time on it is doubted, as
  one whose mean was refused.

What a lie is, is in ``account``.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from decentral.errors import CallTimeout, FrameError, TransportError
from decentral.exchange.allreduce.account import MAX_ACCOUNT_BYTES, Account, Case, digest_of
from decentral.exchange.allreduce.answers import Answers
from decentral.exchange.allreduce.books import Books
from decentral.exchange.allreduce.messages import Result, unpack_mean, unpack_participants
from decentral.exchange.allreduce.participants import MAX_PARTICIPANTS_BYTES, Participants
from decentral.exchange.api import Restrained
from decentral.exchange.bounds import Kind
from decentral.exchange.wire import Part, Wire
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.swarm.message import Message, from_wire, to_wire
from decentral.swarm.roster import Roster
from decentral.swarm.timing import Timing
from decentral.types import Count, PeerId

ACCOUNT = "audit.account"
EXHIBIT = "audit.exhibit"
ACCUSE = "audit.accuse"
#: The answer to an accusation: that peer is barred here.
_BARRED = b"y"
#: What is asked of a reducer takes so much of its upload limit.
_UPLOAD_SHARE = 0.25
#: Shards that wait to be done over.
_MAX_WAITING = 16
#: A peer is told of a proof so often until it has taken it in, once a round; so many peers at a time.
_MAX_TOLD, _MAX_AT_ONCE = 8, 64
#: Of an answer, what the lottery is drawn by.
_END_BYTES = 64
#: Who has accused somebody so often of what could not be found is not listened to any more.
_MAX_IDLE_ACCUSATIONS = 4
#: Of so many peers it is known how often they accused or were silent.
_MAX_COUNTED = 1024
#: From so many accounts on that a reducer has not given, one after the other, it is doubted.
_MAX_SILENT = 2


class Wanted(Message, frozen=True):
    """Which part of an account is wanted; after the last one, the answer."""

    what: ClassVar[str] = "question for an exhibit"
    max_bytes: ClassVar[int] = MAX_PARTICIPANTS_BYTES + 64
    participants: bytes
    index: Count
    number: Count


class Auditor:
    """One worker's checks of reducers, and what it is told of others'.

    Args:
        transport: to the peers.
        clock: for durations.
        roster: whom to tell.
        wire: what members agree on.
        timing: deadlines.
        answers: of the rounds that this worker was in, by fragment.
        books: signatures, and what accounts are of.
        doubt: called with a reducer that gives no accounts, and the round.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        roster: Roster,
        wire: Wire,
        timing: Timing,
        answers: Sequence[Answers],
        books: Books,
        doubt: Callable[[PeerId, int], None],
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._roster = roster
        self._wire = wire
        self._timing = timing
        self._answers = answers
        self._books = books
        self._doubt = doubt
        self._secret = digest_of(books.identity.sign(b"lottery"))
        self._waiting: asyncio.Queue[tuple[PeerId, bytes, int] | None] = asyncio.Queue(_MAX_WAITING)
        """From whom the account is to be had, of which participants and shard; or ``None`` to tell of proofs."""
        self._accusers: set[PeerId] = set()
        """Whose accusation waits."""
        self._idle: Counter[PeerId] = Counter()
        """Accusations of which nothing was found, by accuser."""
        self._silent: Counter[PeerId] = Counter()
        """Accounts not given in a row, by reducer."""
        self._told: dict[tuple[bytes, int], Counter[PeerId]] = {}
        """How often a peer was told of a proof; more than it ever will be if it has taken it in."""
        self._found: list[Restrained] = []

    async def start(self) -> None:
        """Begin to give accounts and to take accusations."""
        limit, share = Result.max_bytes, _UPLOAD_SHARE
        await self._transport.serve(ACCOUNT, self._on_account, max_request_bytes=limit, upload_share=share)
        await self._transport.serve(EXHIBIT, self._on_exhibit, max_request_bytes=Wanted.max_bytes, upload_share=share)
        await self._transport.serve(ACCUSE, self._on_accuse, max_request_bytes=limit)

    def draw(self, packed: bytes, participants: Participants, parts: Sequence[Part], odd: Collection[int]) -> None:
        """A round is over: perhaps a shard of it is to be done over.

        Args:
            packed: the participants as they came.
            participants: the same.
            parts: all shards.
            odd: those that look wrong: one of these is done over in any case.
        """
        me, signs = self._transport.peer_id, self._wire.signs
        others = [part for part in parts if part.reducer != me and signs(part.numel)]
        suspects = [part for part in others if part.index in odd]
        # An answer ends in its signature, which is of all of it.
        answers = self._answers[participants.key.fragment]
        ends = [(answers.get(packed, part.index) or b"")[-_END_BYTES:] for part in parts]
        dice = random.Random(b"".join([self._secret, *ends]))
        with contextlib.suppress(asyncio.QueueFull):
            if suspects or (others and dice.random() < self._wire.audits / len(participants.members)):
                part = dice.choice(suspects or others)
                self._waiting.put_nowait((part.reducer, packed, part.index))
            if self._books.proofs:
                self._waiting.put_nowait(None)

    def found(self) -> tuple[Restrained, ...]:
        """What was found since the last time."""
        found, self._found = tuple(self._found), []
        return found

    async def run(self) -> None:
        """Do shards over and tell of lies, one after the other, until cancelled."""
        while True:
            wanted = await self._waiting.get()
            if wanted is None or await self._look(*wanted):
                await self._tell()
            if wanted is not None:
                self._accusers.discard(wanted[0])

    async def _look(self, source: PeerId, packed: bytes, index: int) -> bool:
        """Do a shard over with what ``source`` gives, its reducer or who accuses it; whether there was a lie."""
        participants = unpack_participants(packed)
        part = self._wire.parts(participants.key, participants.members, participants.reducers)[index]
        reducer = part.reducer
        if self._transport.is_barred(reducer) or reducer == self._transport.peer_id:
            return False
        try:
            lie = await self._examine(source, packed, participants, part)
        except (TransportError, FrameError, TimeoutError):
            lie = None
        share = part.numel / self._wire.numels[participants.key.fragment]
        if lie:
            self._transport.bar(reducer)
            self._roster.drop({reducer})
            self._found.append(Restrained(reducer, Kind.PROVEN, 0.0, share))
        elif source != reducer:
            _count(self._idle, source)
        elif lie is None:
            _count(self._silent, reducer)
            if self._silent[reducer] >= _MAX_SILENT:
                self._doubt(reducer, participants.key.round)
                self._found.append(Restrained(reducer, Kind.SILENT, 0.0, share))
        else:
            del self._silent[reducer]
        return bool(lie)

    async def _examine(self, source: PeerId, packed: bytes, participants: Participants, part: Part) -> str:
        """What is wrong with an answer, with the account and the parts that ``source`` has of it; empty if nothing is.

        Raises:
            TransportError: it did not answer.
            TimeoutError: not in time.
            FrameError: it did not give what the reducer has signed for.
        """
        index, num_members = part.index, len(participants.members)
        # Taken now: if it takes long, another round may end meanwhile, and this one be forgotten.
        known = self._answers[participants.key.fragment].get(packed, index)
        packed_account = await self._ask(source, ACCOUNT, Result(packed, index), MAX_ACCOUNT_BYTES)
        account = from_wire(Account, packed_account)

        async def exhibit(number: int, limit: int) -> bytes:
            return await self._ask(source, EXHIBIT, Wanted(packed, index, number), limit)

        longest, limit = self._wire.contribution_limit(part.numel, 0), self._wire.mean_limit(part.numel, num_members)
        num_used = len(account.used)
        async with asyncio.timeout(2 * self._timing.call_timeout_s(num_used * longest + limit)):
            frames = [await exhibit(number, longest) for number in range(num_used)]
            answer = known or await exhibit(num_used, limit)
        mean = unpack_mean(answer, limit, num_members)

        def judge() -> str:
            self._books.check_mean(part.reducer, packed, index, mean)
            given = [digest_of(packed_account), *(digest_of(frame) for frame in frames)]
            if given != [mean.account, *(used.digest for used in account.used)]:
                raise FrameError("this is not what that answer is of")
            case = Case(packed, participants, part, mean, account)
            return case.lie(self._wire, frames, self._books.identity.verify)

        lie = await self._clock.run_aside(judge)
        if lie:
            self._books.prove(packed, index, packed_account, (*frames, answer))
        return lie

    async def _ask(self, peer: PeerId, method: str, question: Message, limit: int) -> bytes:
        request, timeout_s = to_wire(question), self._timing.call_timeout_s(limit)
        with contextlib.suppress(CallTimeout):
            return await self._transport.call(peer, method, request, timeout_s=timeout_s, max_reply_bytes=limit)
        return await self._transport.call(peer, method, request, timeout_s=timeout_s, max_reply_bytes=limit)

    async def _tell(self) -> None:
        """Tell all live peers of all proofs that they have not taken in yet."""
        proofs = list(self._books.proofs)
        self._told = {proof: self._told.get(proof, Counter()) for proof in proofs}
        live = [presence.peer for presence in self._roster.live(self._clock.monotonic())]

        async def tell(peer: PeerId, proof: tuple[bytes, int], told: Counter[PeerId]) -> None:
            told[peer] += 1
            with contextlib.suppress(TransportError):
                if await self._ask(peer, ACCUSE, Result(*proof), len(_BARRED)) == _BARRED:
                    told[peer] = _MAX_TOLD

        for proof, told in self._told.items():
            for gone in told.keys() - set(live):
                del told[gone]
            untold = [peer for peer in live if peer != self._transport.peer_id and told[peer] < _MAX_TOLD]
            async with asyncio.TaskGroup() as group:
                for peer in untold[:_MAX_AT_ONCE]:
                    group.create_task(tell(peer, proof, told))

    async def _on_account(self, sender: PeerId, request: bytes) -> bytes:
        """Somebody does a shard over that was reduced here, or that we have accused the reducer of."""
        asked = from_wire(Result, request)
        return self._books.account(asked.participants, asked.index)

    async def _on_exhibit(self, sender: PeerId, request: bytes) -> bytes:
        """Of such a shard, a part or the answer."""
        asked = from_wire(Wanted, request)
        return self._books.exhibit(asked.participants, asked.index, asked.number)

    async def _on_accuse(self, sender: PeerId, request: bytes) -> bytes:
        """Somebody has a proof: we shall look for ourselves."""
        asked = from_wire(Result, request)
        participants = unpack_participants(asked.participants)
        if participants.key.fragment >= len(self._wire.numels):
            raise FrameError(f"there is no fragment {participants.key.fragment}")
        parts = self._wire.parts(participants.key, participants.members, participants.reducers)
        if asked.index >= len(parts):
            raise FrameError(f"there is no shard {asked.index}")
        if self._transport.is_barred(parts[asked.index].reducer):
            return _BARRED
        if self._idle[sender] >= _MAX_IDLE_ACCUSATIONS or self._roster.get(sender) is None:
            raise ValueError("accusations of this peer are not looked at")
        if sender not in self._accusers and not self._waiting.full():
            self._accusers.add(sender)
            self._waiting.put_nowait((sender, asked.participants, asked.index))
        return b""


def _count(known: Counter[PeerId], peer: PeerId) -> None:
    """One more of a peer; if there are too many, whoever was counted first is forgotten."""
    known[peer] += 1
    if len(known) > _MAX_COUNTED:
        del known[next(iter(known))]
