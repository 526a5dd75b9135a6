"""A replica of a stage at work: micro-batches of all heads forwards and backwards, and a step when they are committed.

A micro-batch is counted when its gradient first comes by, and never again; what comes again only passes through.
``shares`` keeps account. A head commits a batch with the list of what this replica is to have counted of it.
The step is taken when all live heads have committed theirs, on the mean gradient of this replica's share, and later
batches of a head wait for it, so that forward and backward pass of a micro-batch see the same weights.

Backward passes go first (1F1B): they free memory here and further on.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from msgspec.structs import replace
from torch import Tensor

from decentral.errors import CallRefused, FrameError
from decentral.monitor.events import BatchCounted
from decentral.monitor.journal import Journal
from decentral.pipeline.compute import Key, StageCompute
from decentral.pipeline.courier import BACKWARD, COMMIT, FORWARD, SETTLE, Courier
from decentral.pipeline.errands import Errands
from decentral.pipeline.holders import Holders
from decentral.pipeline.packets import Commit, Committed, Load, Packet, Settle, Settled, figure
from decentral.pipeline.position import Position
from decentral.pipeline.recovery import lr_scale
from decentral.pipeline.shares import Shares
from decentral.ports.clock import Clock
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import StepReport, Steps
from decentral.swarm.message import from_wire, to_wire
from decentral.types import PeerId

#: Between two looks at who lives and who wants this worker to stop.
_LOOK_S = 0.25
#: Who has taken all steps waits so long for another head, if the last one dies.
_HEADLESS_S = 60.0
#: A commit is answered when its step is taken, or with a refusal after so long.
_HOLD_S = 2.0
#: After so many patiences a batch is given up whose head goes on without committing it. A commit that was lost on its
#: way is sent again after one.
_GIVE_UP_PATIENCES = 4
#: Of a new measurement in the moving average of a micro-batch's time.
_SMOOTHING = 0.2
#: At the end, for what is to be told.
_LEAVE_S = 1.0
#: Memory for micro-batches that wait; a few of them may wait in any case.
_MAX_QUEUED_BYTES = 1 << 30
_LEAST_QUEUED = 16


@dataclass(slots=True)
class _Job:
    """A micro-batch that waits to be computed."""

    packet: Packet
    values: Tensor
    backward: bool
    since: float

    @property
    def key(self) -> Key:
        return self.packet.slot, self.packet.batch, self.packet.index


class StageLoop:
    """Implements ``ports.trainer.InnerLoop`` for a stage: its inner steps are those that heads commit.

    Args:
        stage: 1 or higher.
        compute: its blocks.
        blocks: the model.
        courier: to the other hops.
        holders: who lives.
        clock: for the thread and the time.
        journal: hears what was counted.
        patience_s: a head that has not committed so long after another one is not waited for.
        boost: factor on the learning rate of a stage that was healed, and for how many steps.
        position: where it goes on.
    """

    def __init__(
        self,
        stage: int,
        compute: StageCompute,
        blocks: ModelBlocks,
        *,
        courier: Courier,
        holders: Holders,
        clock: Clock,
        journal: Journal,
        patience_s: float,
        boost: tuple[float, int],
        position: Position,
    ) -> None:
        self.grad_norm = position.grad_norm
        """Of the last mean gradient, after clipping."""
        self.loss = position.loss
        self.microbatch_s = 0.0
        self._pass_s: dict[bool, float] = {}
        """Seconds of a backward and of a forward pass, over the last ones."""
        self.step = 0
        """The next one to take, as the heads count; this worker skips what it was not there for."""
        self._stage = stage
        self._compute = compute
        self._num_tokens = blocks.num_tokens
        self._clip_norm = blocks.clip_norm
        self._max_queued = max(_LEAST_QUEUED, _MAX_QUEUED_BYTES // (4 * math.prod(blocks.activation_shape)))
        self._courier = courier
        self._holders = holders
        self._clock = clock
        self._journal = journal
        self._patience_s = patience_s
        self._boost = boost
        self._healed_at = position.healed_at
        self._errands = Errands()
        self._waiting: dict[bool, deque[_Job]] = {True: deque(), False: deque()}
        """Backward and forward jobs."""
        self._wake = asyncio.Event()
        self._shares = Shares(position.committed)
        self._ready_since = 0.0
        self._missed: set[int] = set()
        """Slots whose head was waited for in vain."""
        self._stepped = asyncio.Event()
        """The next step is taken."""
        self._attempts: dict[Key, tuple[PeerId, int]] = {}
        """Micro-batches between forward and backward pass: head, and its attempt."""
        self._open = True
        self._heads_at = 0.0
        """When there last was a head."""
        self._headless_s = math.inf
        """So long without one is the end of the run."""

    @property
    def queue(self) -> int:
        """Micro-batches that wait for this replica."""
        return sum(map(len, self._waiting.values()))

    async def start(self) -> None:
        """Begin to answer."""
        await self._courier.serve(self._stage, FORWARD, self._on_forward)
        await self._courier.serve(self._stage, BACKWARD, self._on_backward)
        await self._courier.serve(self._stage, COMMIT, self._on_commit)
        await self._courier.serve(self._stage, SETTLE, self._on_settle)

    async def finish(self, stop: asyncio.Event) -> None:
        """All steps are taken here; serve heads that have not done theirs."""
        self._headless_s, self._heads_at = _HEADLESS_S, self._clock.monotonic()
        while not self._is_over() and not stop.is_set():
            await self.take(self.step, 1, stop)

    def _is_over(self) -> bool:
        """Whether there is no head left that might want something."""
        return self._holders.is_over() or self._clock.monotonic() - self._heads_at > self._headless_s

    async def close(self) -> None:
        """Refuse what comes from now on, tell of what will not be computed, and end what is under way."""
        self._open = False
        for job in (*self._waiting[True], *self._waiting[False]):
            self._errands.run(self._courier.report(job.packet, self._courier.peer_id, "it leaves the stage"))
        await self._errands.end(_LEAVE_S)

    async def take(self, first_step: int, count: int, stop: asyncio.Event) -> Steps:
        """See ``InnerLoop``; it lasts as long as the heads take for it."""
        self.step = max(self.step, first_step)
        tokens, compute_s = 0, 0.0
        losses: list[float] = []
        while self.step < first_step + count and not stop.is_set():
            self._errands.check()
            for place in self._shares.take_dropped():
                await self._drop(place)
            if self._is_due():
                began = self._clock.monotonic()
                tokens += await self._apply()
                compute_s += self._clock.monotonic() - began
                losses.append(self.loss)
            elif (job := self._next()) is not None:
                began = self._clock.monotonic()
                await self._work(job)
                compute_s += self._clock.monotonic() - began
            elif self._is_over():  # nobody will take these steps any more
                self.step = first_step + count
            else:
                await self._look()
        loss = sum(losses) / len(losses) if losses else math.nan
        return Steps(min(count, self.step - first_step), StepReport(tokens, loss, self.grad_norm), compute_s)

    def over(self) -> None:
        """See ``InnerLoop``: what others still need of this worker goes on in ``finish``."""

    def wake(self) -> None:
        """Look at once whether somebody wants it to stop."""
        self._wake.set()

    def position(self) -> Position:
        """Where it goes on after the steps that are behind it."""
        committed = self._shares.applied()
        return Position(committed=committed, healed_at=self._healed_at, grad_norm=self.grad_norm, loss=self.loss)

    async def _look(self) -> None:
        """Wait for news, or until it is time to look at who lives."""
        self._wake.clear()
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._wake.wait()
        except TimeoutError:
            if self._holders.slots():
                self._heads_at = self._clock.monotonic()

    # -- micro-batches ------------------------------------------------------------------------------------------------

    async def _on_forward(self, sender: PeerId, request: bytes) -> bytes:
        return await self._enqueue(sender, request, backward=False)

    async def _on_backward(self, sender: PeerId, request: bytes) -> bytes:
        return await self._enqueue(sender, request, backward=True)

    async def _enqueue(self, sender: PeerId, request: bytes, *, backward: bool) -> bytes:
        if not self._open:
            raise CallRefused(f"does not hold stage {self._stage} any more")
        if self.queue >= self._max_queued:
            raise CallRefused(f"{self.queue} micro-batches wait at stage {self._stage}")
        try:
            packet, values = await self._courier.read(sender, request, self._stage, backward=backward)
        except FrameError as err:
            raise CallRefused(str(err)) from err
        if not self._holders.is_head(packet.head, packet.slot):
            raise CallRefused(f"stage {self._stage} knows no head {packet.head} of slot {packet.slot}")
        if not self._open:
            raise CallRefused(f"does not hold stage {self._stage} any more")
        self._waiting[backward].append(_Job(packet, values, backward, self._clock.monotonic()))
        self._wake.set()
        return b""

    def _next(self) -> _Job | None:
        """What to compute next, backward passes first; jobs that wait for a commit are passed over."""
        for backward in (True, False):
            queue = self._waiting[backward]
            for _ in range(len(queue)):
                job = queue.popleft()
                if self._may_start(job):
                    return job
                queue.append(job)
        return None

    def _may_start(self, job: _Job) -> bool:
        """Whether all earlier batches of the slot that were counted here are part of the weights, or never will be."""
        slot, batch = job.packet.slot, job.packet.batch
        waited_s = self._clock.monotonic() - job.since
        if self._shares.holds_back(slot, batch) and waited_s >= _GIVE_UP_PATIENCES * self._patience_s:
            # Its head has gone on without committing it here: it counts on other replicas for that batch.
            self._shares.give_up(slot, batch)
        return not self._shares.holds_back(slot, batch)

    async def _work(self, job: _Job) -> None:
        began = self._clock.monotonic()
        packet, key = job.packet, job.key
        attempt, last = (packet.head, packet.attempt), self._attempts.get(key)
        if not job.backward:
            if packet.train:
                if last is not None and last[0] == packet.head and last[1] > packet.attempt:
                    return  # overtaken by a later attempt
                self._attempts[key] = attempt
            values = await self._clock.run(
                lambda: self._compute.forward(key, job.values, train=packet.train, marks=packet.marks)
            )
        else:
            if last != attempt:
                if last is None:
                    reason = f"stage {self._stage} does not know it"
                    self._errands.run(self._courier.report(packet, None, reason))
                return  # of an earlier attempt: the later one will come back as well
            del self._attempts[key]
            place = self._shares.count(*key)
            values = await self._clock.run(
                lambda: self._compute.backward(key, job.values, count=place is not None, into=place)
            )
            load = Load(self._stage, self._courier.peer_id, self.queue, self.microbatch_s)
            packet = replace(packet, loads=(*packet.loads, load))
        seconds = self._clock.monotonic() - began
        last_s = self._pass_s.get(job.backward)
        self._pass_s[job.backward] = seconds if last_s is None else last_s + _SMOOTHING * (seconds - last_s)
        self.microbatch_s = sum(self._pass_s.values())
        self._errands.run(self._pass_on(packet, values, backward=job.backward))

    async def _pass_on(self, packet: Packet, values: Tensor, *, backward: bool) -> None:
        try:
            failed = await self._courier.send(packet, values, backward=backward)
        except ValueError as err:
            await self._courier.report(packet, None, f"stage {self._stage}: {err}")
            return
        if failed is None:
            return
        if failed.gone:
            self._holders.bury(failed.peer)
        await self._courier.report(packet, failed.peer, failed.reason)

    # -- batches ------------------------------------------------------------------------------------------------------

    async def _on_commit(self, sender: PeerId, request: bytes) -> bytes:
        """A head's batch is complete; what it should have counted here and has not is told."""
        try:
            commit = from_wire(Commit, request)
        except FrameError as err:
            raise CallRefused(str(err)) from err
        if not self._open or not self._holders.is_head(sender, commit.slot):
            raise CallRefused(f"stage {self._stage} knows no head {sender} of slot {commit.slot}")
        waited = bool(self._shares.slots_ready())
        missing = self._shares.commit(commit)
        if not missing:
            self._missed.discard(commit.slot)
        if not waited:
            self._ready_since = self._clock.monotonic()
        self._wake.set()
        if commit.indices and not missing:
            await self._is_applied(commit)
        return to_wire(Committed(max(self.step, commit.step + 1), missing))

    async def _is_applied(self, commit: Commit) -> None:
        """Wait for the step: who dies before it, while another head is waited for, has counted nothing.

        Raises:
            CallRefused: it takes longer; the head asks again.
        """
        try:
            async with asyncio.timeout(_HOLD_S):
                while commit.slot in self._shares.slots_ready():
                    await self._stepped.wait()
        except TimeoutError:
            raise CallRefused(f"stage {self._stage} has not taken the step of batch {commit.batch} yet") from None

    async def _on_settle(self, sender: PeerId, request: bytes) -> bytes:
        try:
            slot = from_wire(Settle, request).slot
        except FrameError as err:
            raise CallRefused(str(err)) from err
        shares = self._shares
        settled = Settled(
            shares.committed(slot) + 1, self.step, shares.pending(slot), figure(self.grad_norm), figure(self.loss)
        )
        return to_wire(settled)

    def committed(self, slot: int) -> int:
        """The last batch of a slot that is, or is about to be, part of the weights; -1 for none."""
        return self._shares.committed(slot)

    def _is_due(self) -> bool:
        """Whether the step is to be taken: all live heads have committed, or were waited for long enough."""
        ready = self._shares.slots_ready()
        if not ready:
            return False
        missing = self._holders.slots() - ready - self._missed
        if missing and self._clock.monotonic() - self._ready_since < self._patience_s:
            return False
        self._missed |= missing
        return True

    async def _apply(self) -> int:
        """Take the step; returns the tokens of this replica's share."""
        taken = self._shares.take()
        commits = [ready.commit for ready in taken if not ready.late]
        step = max(commit.step for commit in commits)
        num_microbatches = sum(len(ready.indices) for ready in taken)
        places = [place for ready in taken for place in ready.sums]
        scale = lr_scale(None if self._healed_at is None else step - self._healed_at, *self._boost)
        norm = await self._clock.run(lambda: self._compute.apply(places, num_microbatches, step, scale))
        if num_microbatches:
            self.grad_norm = min(norm, self._clip_norm)
        self.loss = sum(commit.loss for commit in commits) / len(commits)
        for ready in taken:
            slot, batch, tokens = ready.commit.slot, ready.commit.batch, len(ready.indices) * self._num_tokens
            for key in [key for key in self._attempts if key[0] == slot and key[1] < batch]:
                del self._attempts[key]
                self._compute.forget(key)
            self._journal.record(BatchCounted(self._stage, step, slot, batch, ready.indices, tokens))
        self.step = max(self.step, step + 1)
        self._stepped.set()
        self._stepped = asyncio.Event()
        return num_microbatches * self._num_tokens

    async def _drop(self, place: int) -> None:
        """Throw a sum of gradients away, and with a slot's own what is under way of the slot."""
        self._attempts = {key: last for key, last in self._attempts.items() if key[0] != place}
        await self._clock.run(lambda: self._compute.drop(place))
