"""One download from many donors at once, from their heads to the whole state.

The *target* is what one donor says it has, or the newest of what all have, fragment by fragment. Every donor that has
the same content of a fragment serves pieces of it, as many as it can; one that is lost costs what it had in flight, one
that gives something else is left out. The last pieces are asked of a second donor if the first is slow. What is here
already, from a checkpoint or from a try that failed, is not fetched. If nobody has the rest of the target any more, a
new one is chosen, and what is equal in it is kept. Where no two workers need hold the same, donors whose state is far
from most others' are passed by (``comparison``).

One coroutine decides; whatever is asked has a deadline.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decentral.errors import CallRefused, FrameError, PeerUnreachable, TransportError
from decentral.ports.clock import Clock
from decentral.state.download.comparison import drawn_positions, far_off
from decentral.state.download.filling import Filling
from decentral.state.download.pieces import FragmentHead, Head, head_of
from decentral.state.download.questions import OtherModelError, Questions
from decentral.state.download.sources import Pace, Progress, Source
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.swarm.message import to_wire
from decentral.types import PeerId, short_id

#: Donors at a time; further ones take the places of those that fail.
_MAX_DONORS = 8
#: Targets of one download.
_MAX_TARGETS = 8
#: A donor that is not as far as the target will be soon: it is asked again so often, each time so much later.
_MAX_LOOKS, _LOOK_AFTER_S = 3, 1.0
#: Waits are so long at least, whatever rounding makes of them.
_LEAST_WAIT_S = 0.01

#: Told how far a download is.
Report = Callable[[Progress], None]
_Key = tuple[int, int]
"""Number of a fragment, and of a piece of it."""
_Then = Callable[[asyncio.Task[Any]], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A piece on its way."""

    source: Source
    at: float
    task: asyncio.Task[bytes]


class Transfer:
    """One download under way.

    Args:
        questions: how donors are asked.
        clock: for the time, and its second thread for digests.
        donors: whom to ask, best first.
        have: a state that is here already.
        report: told after every piece.
        kept: by fragment, what came in an earlier try; left there is what comes in this one.
        newest: whether the target is the newest that anybody has, and not what the first donor has that answers.
        secret: positions at which states are compared are drawn by it; ``None`` if those of honest donors are equal.
    """

    def __init__(
        self,
        questions: Questions,
        clock: Clock,
        donors: Sequence[PeerId],
        have: Snapshot | None,
        report: Report | None,
        kept: dict[int, Filling],
        *,
        newest: bool,
        secret: bytes | None = None,
    ) -> None:
        self.received_bytes = 0
        """Of all pieces that came."""
        self.other_model = False
        """Whether a donor said that it trains another model."""
        self.num_compared = None if secret is None else 0
        """Donors with whose states the target was compared."""
        self.passed_by = set[PeerId]()
        """Donors whose states were far from most others', or other than they had said."""
        self._questions = questions
        self._clock = clock
        longest_s = questions.timing.call_timeout_s(questions.cut.piece_bytes)
        self._sources = [Source(peer, longest_s) for peer in dict.fromkeys(donors)]
        self._have = have
        self._have_pieces: dict[int, bytes] = {}
        self._report = report
        self._kept = kept
        self._newest = newest
        self._secret = secret
        self._positions: list[list[int]] = []
        """At which states were compared."""
        self._giver: Source | None = None
        """Whose state is the target, if it is that of one donor."""
        self._target: Head | None = None
        self._fillings: dict[int, Filling] = {}
        self._states: dict[int, FragmentState] = {}
        self._spoilt = False
        self._tasks: dict[asyncio.Task[Any], _Then] = {}
        """All that is waited for, with what is done when it is over; in the order in which it was begun."""
        self._looking: set[PeerId] = set()
        """Donors that were asked for a head and have not answered."""
        self._looks = Counter[PeerId]()
        self._asked: dict[_Key, list[_Asked]] = {}
        self._last: PeerId | None = None
        self._useful_bytes = 0
        """Of pieces that were missing."""
        self._needed_bytes = 0
        """Of those that have come, and of those that are missing."""
        self._pace = Pace(clock.monotonic())

    @property
    def problems(self) -> str:
        """What is wrong with the donors, one after the other."""
        return "; ".join(f"{short_id(each.peer)}: {each.problem}" for each in self._sources if each.problem)

    @property
    def donor(self) -> PeerId:
        """Who gave the last piece; if nothing was fetched, a donor that has the state."""
        return self._last or next(each.peer for each in self._sources if each.head is not None)

    async def run(self) -> tuple[Head, Snapshot] | None:
        """What was downloaded, or ``None`` if nobody could give it."""
        try:
            for attempt in range(_MAX_TARGETS):
                if attempt:
                    await asyncio.sleep(self._questions.timing.beat_s)
                target = self._target = await self._choose()
                if target is None and all(source.tried for source in self._sources):
                    return None
                if target is not None and await self._fill(target) and self._is_as_told():
                    states = tuple(self._states[number] for number in range(len(target.fragments)))
                    return target, Snapshot(target.step, states)
            return None
        finally:
            await self._drop_tasks()

    # -- what is waited for -------------------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, Any], then: _Then) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks[task] = then
        return task

    async def _turn(self, timeout_s: float | None = None) -> None:
        """Wait until something is over, and do what follows from it."""
        await asyncio.wait(self._tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in [each for each in self._tasks if each.done()]:
            self._tasks.pop(task)(task)

    async def _drop_tasks(self) -> None:
        """Wait for nothing any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._asked.clear()
        self._looking.clear()
        for source in self._sources:
            source.in_flight, source.pausing = 0, False

    # -- the target ---------------------------------------------------------------------------------------------------

    async def _choose(self) -> Head | None:
        """Ask donors what they have, and choose what is to be fetched; ``None`` if nobody has said anything of use."""
        await self._drop_tasks()
        self._target = None
        self._looks.clear()
        # Those that have failed make room for others, and are not the first whose state is taken.
        self._sources.sort(key=lambda source: (source.false, bool(source.problem)))
        for source in self._sources:
            source.head = None
        for source in self._sources[:_MAX_DONORS]:
            if not source.false:
                self._look(source)
        if self._secret is not None:
            await self._hear()
            await self._compare(self._secret)
        while self._looking and (self._newest or self._first() is None):
            await self._turn()
        target = self._newest_of_all() if self._newest else self._first()
        self._giver = next((source for source in self._sources if source.head is target), None)
        for source in self._sources:
            self._look_again(source, target)
        return target

    def _first(self) -> Head | None:
        """What the first donor has that can give; ``None`` while one before it may still answer."""
        for source in self._sources:
            if source.peer in self._looking:
                return None
            if source.head is not None:
                return source.head
        return None

    async def _hear(self) -> None:
        """Wait for what donors have; once more than half have said it, for the rest as long again, or some seconds.

        Who is stopped would hold a newcomer up for as long as the slowest line takes. More than half are not liars
        alone, who might be quick where others still have digests to make.
        """
        began, until = self._clock.monotonic(), math.inf
        while self._looking and (now := self._clock.monotonic()) < until:
            num_said = sum(source.head is not None for source in self._sources)
            if until == math.inf and num_said > len(self._looking):
                until = now + max(self._questions.timing.grace_s, now - began)
            await self._turn(None if until == math.inf else max(_LEAST_WAIT_S, until - now))
        late = set(self._looking)
        await self._drop_tasks()
        for source in self._sources:
            if source.peer in late:
                source.lose("it did not say in time what it has")

    async def _compare(self, secret: bytes) -> None:
        """Pass by donors whose states are far from most others', now that all have named what they have."""
        named = {source.peer: source.head for source in self._sources if source.head is not None}
        self._positions = drawn_positions(self._questions.cut.numels, secret + to_wire(named))
        for source in self._sources:
            source.sample = []
            if source.head is not None and len(named) > 2:  # of two nobody could say which is the right one
                said = self._questions.values(source.peer, source.head, self._positions)
                self._begin(said, partial(self._told, source))
        while self._tasks:
            await self._turn()
        told = [source for source in self._sources if source.head is not None and source.sample]
        self.num_compared = len(told) - 1 if len(told) > 2 else 0
        for number in far_off([source.sample for source in told]):
            told[number].lose("its state is far from those of most others")
            self.passed_by.add(told[number].peer)

    def _told(self, source: Source, task: asyncio.Task[list[Tensor]]) -> None:
        """A donor has said what its values are, or why it cannot."""
        try:
            source.sample = task.result()
        except TransportError as err:
            source.lose(str(err))
        except FrameError as err:
            source.accuse(str(err))

    def _is_as_told(self) -> bool:
        """Whether what came has the values of which its donor has spoken, if it was asked."""
        if self._giver is None or not self._giver.sample:
            return True
        drawn = enumerate(self._positions)
        came = [values_N[at] for number, at in drawn for values_N in self._states[number].tensors]
        if all(map(torch.equal, came, self._giver.sample)):
            return True
        self._giver.accuse("its values are not those that it had said")
        self.passed_by.add(self._giver.peer)
        return False

    def _newest_of_all(self) -> Head | None:
        """The newest of what donors have and of what is here."""
        heads = [source.head for source in self._sources if source.head is not None]
        if not heads:
            return None
        if self._have is not None:
            own = tuple(head_of(fragment, b"") for fragment in self._have.fragments)
            heads.append(Head(self._questions.layout, self._have.step, own))
        chosen = tuple(map(_newest, zip(*(head.fragments for head in heads), strict=True)))
        digests = {fragment.digest for fragment in chosen}
        step = max(head.step for head in heads if digests & {fragment.digest for fragment in head.fragments})
        return Head(self._questions.layout, step, chosen)

    def _look(self, source: Source, after_s: float = 0.0) -> None:
        """Ask a donor for its head."""
        source.tried = True
        self._looking.add(source.peer)
        self._begin(self._head(source, after_s), partial(self._said, source))

    async def _head(self, source: Source, after_s: float) -> Head:
        await asyncio.sleep(after_s)
        return await self._questions.head(source.peer)

    def _said(self, source: Source, task: asyncio.Task[Head]) -> None:
        """A donor has told what it has, or why it cannot."""
        self._looking.discard(source.peer)
        if source.false:  # since it was asked
            return
        try:
            source.said(task.result())
        except TransportError as err:
            source.lose(str(err))
        except FrameError as err:
            source.accuse(str(err))
            self.other_model |= isinstance(err, OtherModelError)
        self._look_again(source, self._target)

    def _look_again(self, source: Source, target: Head | None) -> None:
        """A donor that has yet to come to the target's rounds may soon have the same."""
        if source.head is None or target is None or self._looks[source.peer] >= _MAX_LOOKS:
            return
        if any(there < here for there, here in zip(source.head.rounds, target.rounds, strict=True)):
            self._looks[source.peer] += 1
            self._look(source, _LOOK_AFTER_S)

    # -- pieces -------------------------------------------------------------------------------------------------------

    async def _fill(self, target: Head) -> bool:
        """Fetch what is missing of the target; false if nobody can give the rest, or if it is not what it was said."""
        self._states, self._fillings, self._spoilt = {}, {}, False
        for number, fragment in enumerate(target.fragments):
            if self._have is not None and self._have.fragments[number].digest == fragment.digest:
                self._states[number] = replace(self._have.fragments[number], round=fragment.round)
                continue
            filling = await self._clock.run_aside(partial(self._filling, number, fragment))
            self._fillings[number] = self._kept[number] = filling
            self._finish(number)
        self._needed_bytes = self._useful_bytes + sum(filling.missing_bytes for filling in self._fillings.values())
        while len(self._states) < len(target.fragments):
            self._assign()
            if not self._tasks:
                return False
            await self._turn(self._until_second_s())
            if self._spoilt:
                return False
        return True

    def _filling(self, number: int, head: FragmentHead) -> Filling:
        """A fragment with all of its pieces that are here already."""
        kept, cut = self._kept.get(number), self._questions.cut
        if kept is not None and kept.head.content == head.content:
            kept.head = head
            return kept
        numel, num_parts = cut.numels[number], cut.num_parts
        filling = Filling(head, numel, num_parts, cut.pieces[number])
        if kept is not None:
            filling.take_over_from(kept)
        tensors = () if self._have is None else self._have.fragments[number].tensors
        if [values_N.numel() for values_N in tensors] == num_parts * [numel]:
            if number not in self._have_pieces:
                self._have_pieces[number] = cut.digests(number, tensors)
            filling.take_over(tensors, self._have_pieces[number], list(filling.missing))
        return filling

    def _finish(self, number: int) -> None:
        """If all of a fragment is here, see whether it is what it should be."""
        if not self._fillings[number].missing:
            self._begin(self._clock.run_aside(self._fillings[number].state), partial(self._checked, number))

    def _checked(self, number: int, task: asyncio.Task[FragmentState]) -> None:
        try:
            self._states[number] = task.result()
        except FrameError as err:
            # Piece by piece it was what all of these say that it is.
            for source in self._sources:
                if source.has(number, self._fillings[number].head.content):
                    source.accuse(str(err))
            del self._kept[number]
            self._spoilt = True

    def _assign(self) -> None:
        """Ask every donor for as many pieces as it may have in flight."""
        for source in self._sources:
            while source.is_free and (key := self._next(source)) is not None:
                self._ask(source, key)

    def _next(self, source: Source) -> _Key | None:
        """What to ask a donor for: a piece that nobody was asked for, else one that another is slow with."""
        for number, filling in self._fillings.items():
            if filling.missing and source.has(number, filling.head.content):
                for index in filling.missing:
                    if (number, index) not in self._asked:
                        return number, index
        second = self._second(source)
        return second[1] if second is not None and second[0] <= self._clock.monotonic() else None

    def _second(self, source: Source) -> tuple[float, _Key] | None:
        """The piece that another donor was asked for first, and when this one would have given it twice since."""
        slow = [
            (asked[0].at + 2 * source.took_s, (number, index))
            for (number, index), asked in self._asked.items()
            if len(asked) == 1
            and asked[0].source is not source
            and index in self._fillings[number].missing
            and source.has(number, self._fillings[number].head.content)
        ]
        return min(slow, default=None)

    def _until_second_s(self) -> float | None:
        """How long to wait at most before a piece is to be asked of a second donor."""
        seconds = [second for each in self._sources if each.is_free and (second := self._second(each)) is not None]
        return max(_LEAST_WAIT_S, min(seconds)[0] - self._clock.monotonic()) if seconds else None

    def _ask(self, source: Source, key: _Key) -> None:
        number, index = key
        source.in_flight += 1
        in_flight = sum(each.in_flight for each in self._sources)
        digest = self._fillings[number].head.digest
        work = self._questions.piece(source.peer, digest, index, in_flight=in_flight)
        task = self._begin(work, partial(self._came, source, key))
        self._asked.setdefault(key, []).append(_Asked(source, self._clock.monotonic(), task))

    def _came(self, source: Source, key: _Key, task: asyncio.Task[bytes]) -> None:
        """What was asked of a donor has come, or will not."""
        source.in_flight -= 1
        mine = next(each for each in self._asked[key] if each.task is task)
        self._asked[key].remove(mine)
        if not self._asked[key]:
            del self._asked[key]
        if task.cancelled():
            return
        try:
            self._take(source, key, task.result(), mine.at)
        except PeerUnreachable as err:
            source.lose(str(err))
        except CallRefused as err:
            pause_s = source.refused(str(err))
            if not source.pausing:
                source.pausing = True
                self._begin(asyncio.sleep(pause_s), lambda _: source.resume())
        except TransportError as err:
            source.silent(str(err))
        except FrameError as err:
            source.accuse(str(err))

    def _take(self, source: Source, key: _Key, data: bytes, asked_at: float) -> None:
        """A donor's answer. Raises FrameError if it is not what was promised."""
        number, index = key
        filling = self._fillings[number]
        self.received_bytes += len(data)
        if not data:
            source.lost(filling.head.content)
            return
        is_new = index in filling.missing
        filling.put(index, data)
        now = self._clock.monotonic()
        source.gave(now - asked_at)
        self._last = source.peer
        if not is_new:
            return
        for other in self._asked.get(key, ()):
            other.task.cancel()
        self._useful_bytes += len(data)
        if self._report is not None:
            left_s = self._pace.left_s(now, self._useful_bytes, self._needed_bytes)
            num_donors = sum(each.in_flight > 0 or each is source for each in self._sources)
            self._report(Progress(self._useful_bytes, self._needed_bytes, num_donors, left_s))
        self._finish(number)


def _newest(fragments: Sequence[FragmentHead]) -> FragmentHead:
    """Of what all say of one fragment, the newest; of several of one round what most say."""
    held = Counter((each.round, each.digest) for each in fragments)
    best = max(held, key=lambda each: (each[0], held[each], each[1]))
    return next(each for each in fragments if (each.round, each.digest) == best)
