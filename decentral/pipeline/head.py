"""A head at work: batches of its data through the stages and back, each micro-batch counted once at every stage.

    for every batch:
        while not all micro-batches are back:
            send those that wait, each on a path of its own    at most ``window`` are under way
            take in what comes:  activations  -> loss, gradient, on its way back
                                 gradients    -> done
                                 a failure    -> again, without the replica that is lost
        step of the head's own weights
        commit: tell every replica what it is to have counted, while the next batch begins

Tokens and labels stay here. A head decides alone and waits for nobody but the stages; what it cannot know (who counted
what before it died) it need not know, because a micro-batch is only ever sent through one living replica of a stage.
"""

import asyncio
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from decentral.errors import CallRefused, DivergedError, FrameError
from decentral.monitor.events import BatchCounted, Resent, StageLost, Validated
from decentral.monitor.journal import Journal
from decentral.pipeline.batch import Batch, Came, Failure
from decentral.pipeline.commits import Commits
from decentral.pipeline.compute import HeadCompute
from decentral.pipeline.courier import BACKWARD, FAILED, FORWARD, SETTLE, Courier, Undelivered
from decentral.pipeline.errands import Errands
from decentral.pipeline.holders import Holders
from decentral.pipeline.ledger import Ledger
from decentral.pipeline.options import PipelineOptions
from decentral.pipeline.packets import MAX_MICROBATCHES, Failed, Hop, Load, Packet, Settle
from decentral.pipeline.placement import CutInForce, Placement
from decentral.pipeline.position import Position
from decentral.pipeline.routing import stage_order
from decentral.ports.clock import Clock
from decentral.ports.model_blocks import BatchSource, ModelBlocks
from decentral.ports.trainer import StepReport, Steps
from decentral.swarm.message import from_wire, to_wire
from decentral.tensors.layout import Layout
from decentral.types import PeerId

#: Between two looks at who lives, who is late, and who wants this worker to stop.
_LOOK_S = 0.25
#: A micro-batch is sent again if it is not back after so long, or after so many times what the last ones took.
_MIN_PATIENCE_S = 15.0
_PATIENCE_FACTOR = 5.0
#: Failures of one micro-batch, with nobody lost, after which its batch is given up: something in it cannot be computed.
_MAX_TROUBLES = 12
#: Of a new measurement in the moving average.
_SMOOTHING = 0.2
#: A replica that lives and refuses, or does not answer, so often in a row is lost to the batch.
_MAX_REFUSALS = 3
#: So many batches in a row without a finite loss end the head.
_MAX_SPOILT = 10
#: When this worker is to stop, the commit under way may take so long; at the end of the run longer, as a stage that
#: was lost may have to come back for it.
_LEAVE_S = 8.0
_LAST_COMMIT_S = 60.0


class Moves(Protocol):
    """What changes the cut between two batches."""

    @property
    def waits_for(self) -> str:
        """Why there is no cut yet."""
        ...

    def heard(self, load: Load) -> None:
        """How fast a holder of a stage is."""
        ...

    def counted(self, seconds: float) -> None:
        """A batch has passed all stages, in so long."""
        ...

    def next(self, step: int) -> Placement | None:
        """The cut to change to before ``step``; ``None`` to stay."""
        ...

    async def move(self, new: Placement, step: int, stop: asyncio.Event) -> None:
        """Change to it, if all who are to take part do."""
        ...


class HeadLoop:
    """Implements ``ports.trainer.InnerLoop`` for a head: every inner step is a batch.

    Args:
        compute: embedding and output layer.
        blocks: the model.
        source: this head's data.
        slot: which part of the data it draws.
        batch: number of the first batch, that of the head before this one or 0.
        options: of the pipeline.
        cut: the stages there are.
        moves: changes them; ``None`` in a run whose cut is fixed.
        courier: to the stages.
        holders: who lives.
        clock: for the thread and the time.
        journal: hears what was counted, lost and sent again.
    """

    def __init__(
        self,
        compute: HeadCompute,
        blocks: ModelBlocks,
        source: BatchSource,
        *,
        slot: int,
        batch: int,
        options: PipelineOptions,
        cut: CutInForce,
        moves: Moves | None,
        courier: Courier,
        holders: Holders,
        clock: Clock,
        journal: Journal,
    ) -> None:
        self.loss = math.nan
        self.grad_norm = math.nan
        self.resent = 0
        self.failures: Counter[int] = Counter()
        """Replicas lost, by stage."""
        self.step = 0
        self.waits_for = ""
        """Why no micro-batch can be sent; empty if they can."""
        self.validated: tuple[int, float] = (0, math.nan)
        """Round and loss of the last validation."""
        self._compute = compute
        self._blocks = blocks
        self._source = source
        self._slot = slot
        self._number = batch
        self._options = options
        self._cut = cut
        self._moves = moves
        self._courier = courier
        self._holders = holders
        self._clock = clock
        self._journal = journal
        self._router = options.router()
        self._layout = Layout.of(compute.parameters())
        self._errands = Errands()
        self._commits = Commits(slot, blocks.num_tokens, cut, courier, holders, clock)
        self._batches: dict[tuple[int, bool], Batch] = {}
        """Those under way: one in training or validation, and the one before that is being committed."""
        self._committing: asyncio.Task[None] | None = None
        self._trip_s = 0.0
        self._lost: set[int] = set()
        """Stages known to have lost all holders ..."""
        self._missed: set[PeerId] = set()
        """... and replicas that were lost, until a micro-batch comes through all stages, or through them, again."""
        self._complete = False
        """Whether there ever was a holder of every stage."""
        self._mending = False
        """Whether a batch that is being committed goes through some stage once more: the next one waits for it."""
        self._spoilt = 0
        """Batches in a row whose loss was not finite."""

    async def start(self) -> None:
        """Begin to answer."""
        await self._courier.serve(0, FORWARD, self._on_forward)
        await self._courier.serve(0, BACKWARD, self._on_backward)
        await self._courier.serve(0, FAILED, self._on_failed)

    async def finish(self, stop: asyncio.Event) -> None:
        """Wait until the last batch is committed: a stage may have been lost just now, and be brought back for it."""
        await self._committed(stop, _LAST_COMMIT_S)

    async def close(self) -> None:
        """End what is under way: a batch that is complete is committed first, if that is soon."""
        await self._committed(asyncio.Event(), _LEAVE_S)
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)
        await self._errands.end(0.0)

    async def take(self, first_step: int, count: int, stop: asyncio.Event) -> Steps:
        """See ``InnerLoop``."""
        self.step, last = first_step, first_step + count
        tokens, compute_s, data_s = 0, 0.0, 0.0
        losses: list[float] = []
        while self.step < last and not stop.is_set():
            if self.step < self._commits.ahead:  # the stages are: their learning rate and their rounds are
                self.step = min(self._commits.ahead, last)
                continue
            if self._moves is not None and not await self._cut_anew(self._moves, stop):
                break
            await self._validate_if_due(stop)
            asked = self._clock.monotonic()
            data = await self._clock.run(lambda: self._draw(self._number))
            data_s += self._clock.monotonic() - asked
            batch = self._open(Batch(self._number, self.step, True, Ledger(len(data)), data))
            began = self._clock.monotonic()
            compute_s += await self._drive(batch, stop)
            if self._moves is not None and batch.ledger.complete:
                self._moves.counted(self._clock.monotonic() - began)
            over = batch.ledger.complete or batch.spoilt
            if not over or not await self._committed(stop, math.inf):
                # Asked to stop: nobody counts it, and a successor draws it again.
                self._close(batch)
                break
            tokens += await self._finish(batch)
            losses.append(batch.loss)
            self.step += 1
            self._number += 1
        loss = sum(losses) / len(losses) if losses else math.nan
        return Steps(self.step - first_step, StepReport(tokens, loss, self.grad_norm, data_s), compute_s + data_s)

    async def _cut_anew(self, moves: Moves, stop: asyncio.Event) -> bool:
        """Change the cut if it is time to, and wait for the first one; whether there is one to go on with."""
        while (new := moves.next(self.step)) is not None or not self._cut.num_stages:
            self.waits_for = moves.waits_for
            if new is None:
                await asyncio.sleep(_LOOK_S)
            elif self._spoilt or not await self._committed(stop, math.inf):
                break  # a batch that counts for nothing is not waited for by stages, which may be at other steps
            else:
                await moves.move(new, self.step, stop)
            if stop.is_set() or (new is not None and self._cut.num_stages):
                break
        return not stop.is_set()

    def over(self) -> None:
        """See ``InnerLoop``: what others still need of this worker goes on in ``finish``."""

    def position(self) -> Position:
        """Where it goes on after the steps that are behind it."""
        return Position(slot=self._slot, batch=self._number, loss=self.loss)

    async def _committed(self, stop: asyncio.Event, within_s: float) -> bool:
        """Wait for the end of the commit under way; whether it has come before ``stop`` and in time."""
        until = self._clock.monotonic() + within_s
        while (committing := self._committing) is not None:
            if committing.done():
                committing.result()
                self._committing = None
            elif stop.is_set() or self._clock.monotonic() >= until:
                return False
            else:
                await asyncio.wait({committing}, timeout=_LOOK_S)
        return True

    def _draw(self, number: int) -> list[tuple[Tensor, Tensor]]:
        return [self._source.batch(self._slot, number, index) for index in range(self._options.num_microbatches)]

    def _open(self, batch: Batch) -> Batch:
        self._batches[batch.number, batch.train] = batch
        return batch

    def _close(self, batch: Batch) -> None:
        del self._batches[batch.number, batch.train]

    # -- one batch ----------------------------------------------------------------------------------------------------

    async def _drive(self, batch: Batch, stop: asyncio.Event) -> float:
        """Bring all micro-batches through the stages and back; returns the seconds spent on computing."""
        computing_s = 0.0
        while not batch.ledger.complete and not batch.spoilt and not stop.is_set():
            self._errands.check()
            self._look_for_losses(batch)
            if batch.counted or not self._mending:
                computing_s += await self._launch(batch)
            try:
                async with asyncio.timeout(_LOOK_S):
                    came = await batch.came.get()
            except TimeoutError:
                self._look_for_the_late(batch)
                continue
            if isinstance(came, Failure):
                self._fail(batch, came)
            else:
                began = self._clock.monotonic()
                await self._take_in(batch, came)
                computing_s += self._clock.monotonic() - began
        return computing_s

    async def _launch(self, batch: Batch) -> float:
        """Send what waits, as far as the window allows; returns the seconds spent on computing."""
        began = self._clock.monotonic()
        for index in batch.ledger.waiting():
            if batch.ledger.in_flight >= self._options.window or began < batch.paused_until:
                break
            path = self._path(batch, index)
            if path is None:
                break
            attempt = batch.ledger.sent(index, path)
            batch.sent_at[index] = self._clock.monotonic()
            key, inputs = (self._slot, batch.number, index), batch.data[index][0]
            x = await self._clock.run(functools.partial(self._compute.embed, key, inputs, train=batch.train))
            marks = self._blocks.marks(inputs)
            packet = Packet(self._slot, batch.number, index, attempt, path, 0, batch.train, (), b"", marks)
            self._errands.run(self._send(batch, packet, x, backward=False))
        return self._clock.monotonic() - began

    def _path(self, batch: Batch, index: int) -> tuple[Hop, ...] | None:
        """Through every stage and back; ``None`` while a stage has nobody."""
        order = stage_order(self._cut.num_stages, index, swap=self._options.swap)
        candidates: dict[int, Sequence[PeerId]] = {}
        for stage in order:
            holders = [peer for peer in self._holders.of(stage) if peer not in batch.ledger.banned]
            if not holders and not (holders := self._pardoned(batch, stage)):
                self._note_lost(stage)
                return None
            candidates[stage] = holders
        self._complete = True
        self.waits_for = ""
        me, kept = Hop(0, self._courier.peer_id), batch.ledger.keep(index)
        slots = sorted(self._holders.slots() | {self._slot})
        key = {"slot": slots.index(self._slot), "num_slots": len(slots), "batch": batch.number, "index": index}
        chosen = [kept.get(stage) or self._router.choose(stage, candidates[stage], **key) for stage in order]
        return (me, *map(Hop, order, chosen), me)

    def _pardoned(self, batch: Batch, stage: int) -> list[PeerId]:
        """Replicas of a stage that were taken for lost in this batch, live all the same, and have no substitute."""
        heard = [peer for peer in self._holders.of(stage) if self._holders.seq(peer) > batch.lost_at.get(peer, -1)]
        return [peer for peer in heard if batch.ledger.moved(peer, stage) or batch.ledger.pardon(peer)]

    def _note_lost(self, stage: int) -> None:
        self.waits_for = f"nobody holds stage {stage}"
        if self._complete and stage not in self._lost:
            self._lost.add(stage)
            self._journal.record(StageLost(stage, self.step, self.loss))

    async def _send(self, batch: Batch, packet: Packet, values: Tensor, *, backward: bool) -> None:
        try:
            failed = await self._courier.send(packet, values, backward=backward)
        except ValueError:
            batch.spoilt = not batch.ledger.complete  # not finite: nothing in this batch can be saved
            return
        if failed is not None:
            if failed.gone:
                self._holders.bury(failed.peer)
            failure = Failure(packet.index, packet.attempt, failed.peer, failed.reason)
            batch.came.put_nowait(failure)

    async def _take_in(self, batch: Batch, came: Came) -> None:
        """Activations get their loss and go back as a gradient; a gradient ends the way of its micro-batch."""
        packet, index = came.packet, came.packet.index
        if not batch.ledger.is_current(index, packet.attempt):
            return
        key = (self._slot, batch.number, index)
        if came.backward:
            for load in packet.loads:
                self._router.told(load)
                if self._moves is not None:
                    self._moves.heard(load)
            count = index not in batch.counted_embedding
            batch.counted_embedding.add(index)
            await self._clock.run(lambda: self._compute.finish(key, came.values, count=count))
            self._end_trip(batch, index, packet.attempt)
            return
        count = index not in batch.counted_output
        batch.counted_output.add(index)
        targets = batch.data[index][1]
        loss, gradient = await self._clock.run(
            lambda: self._compute.loss(key, came.values, targets, train=batch.train, count=count)
        )
        batch.losses.setdefault(index, loss)
        if not math.isfinite(loss):
            batch.spoilt = True
        elif batch.train:
            self._errands.run(self._send(batch, packet, gradient, backward=True))
        else:
            self._end_trip(batch, index, packet.attempt)

    def _end_trip(self, batch: Batch, index: int, attempt: int) -> None:
        self._lost.clear()
        for hop in batch.ledger.path(index):
            batch.refusals.pop(hop.peer, None)
            self._missed.discard(hop.peer)
        if batch.ledger.done(index, attempt):
            took_s = self._clock.monotonic() - batch.sent_at[index]
            self._trip_s = self._trip_s + _SMOOTHING * (took_s - self._trip_s) if self._trip_s else took_s

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def _look_for_losses(self, batch: Batch) -> None:
        """Replicas that died since the last look."""
        used = batch.ledger.in_use()
        holders = {stage: self._holders.of(stage) for stage in {hop.stage for hop in used}}
        for peer in sorted({hop.peer for hop in used if hop.peer not in holders[hop.stage]}):
            self._lose(batch, peer, "it is gone")

    def _look_for_the_late(self, batch: Batch) -> None:
        """Micro-batches that should be back by now: a message may have been lost on the way."""
        limit_s = max(_MIN_PATIENCE_S, _PATIENCE_FACTOR * self._trip_s)
        now = self._clock.monotonic()
        for index, sent_at in list(batch.sent_at.items()):
            attempt = batch.ledger.attempt(index)
            if now - sent_at > limit_s and batch.ledger.is_current(index, attempt):
                batch.ledger.failed(index, attempt)
                self._note_resent(batch, index, "it did not come back")

    def _fail(self, batch: Batch, failure: Failure) -> None:
        if not batch.ledger.is_current(failure.index, failure.attempt):
            return
        culprit = failure.culprit
        if culprit is not None and culprit in batch.ledger.peers():
            self._errands.run(self._look_after(culprit, min(batch.ledger.hops(culprit)).stage))
            batch.refusals[culprit] += 1
            sure = any(hop.peer == culprit for hop in batch.confirmed)
            if not self._holders.is_present(culprit) or (batch.refusals[culprit] >= _MAX_REFUSALS and not sure):
                self._lose(batch, culprit, failure.reason)
                return
            batch.paused_until = self._clock.monotonic() + _LOOK_S
        batch.troubles[failure.index] += 1
        if batch.troubles[failure.index] > _MAX_TROUBLES:
            batch.spoilt = True
        batch.ledger.failed(failure.index, failure.attempt)
        self._note_resent(batch, failure.index, failure.reason)

    async def _look_after(self, peer: PeerId, stage: int) -> None:
        """Another hop could not reach a replica: if this head cannot either, it is gone."""
        reply = await self._courier.ask(peer, stage, SETTLE, to_wire(Settle(self._slot)))
        if isinstance(reply, Undelivered) and reply.gone:
            self._holders.bury(peer)

    def _lose(self, batch: Batch, peer: PeerId, reason: str) -> None:
        """Whatever a replica counts of this batch is not to be relied on."""
        batch.lost_at[peer] = self._holders.seq(peer)
        batch.refusals.pop(peer, None)
        if peer not in self._missed:
            self._missed.add(peer)
            self.failures.update({hop.stage for hop in batch.ledger.hops(peer)})
        for index in batch.ledger.lost(peer):
            self._note_resent(batch, index, reason)

    def _note_resent(self, batch: Batch, index: int, reason: str) -> None:
        self.resent += 1
        self._journal.record(Resent(batch.number, index, batch.ledger.attempt(index) + 1, reason[:200]))

    # -- the end of a batch -------------------------------------------------------------------------------------------

    async def _finish(self, batch: Batch) -> int:
        """Step the head's own weights and have the batch committed beside the next one; returns its tokens."""
        self._spoilt = self._spoilt + 1 if batch.spoilt else 0
        if self._spoilt >= _MAX_SPOILT:
            raise DivergedError(
                f"the loss was not finite in {_MAX_SPOILT} batches in a row (step {batch.step})",
                hint="Lower the learning rate or the outer learning rate, or look at this machine's data.",
            )
        count = 0 if batch.spoilt else len(batch.data)
        norm = await self._clock.run(lambda: self._step(batch, count))
        if count:
            self.grad_norm, self.loss = norm, batch.loss
        copy_N = None
        if self._options.swap:
            copy_N = await self._clock.run(lambda: self._layout.gather(self._compute.parameters(), 0))
        tokens = count * self._blocks.num_tokens
        batch.counted = True
        self._committing = asyncio.create_task(self._commit(batch, copy_N))
        return tokens

    def _step(self, batch: Batch, count: int) -> float:
        norm = self._compute.apply([self._slot], count, batch.step)
        self._compute.drop(self._slot)
        return norm

    async def _commit(self, batch: Batch, copy_N: Tensor | None) -> None:
        """Have every replica count its share, after those that keep copies of heads have one of this one.

        Nobody may count a batch that no copy of the head has counted. A replica that came back under its old identity
        has forgotten its share, and the only one of a stage may have died before it heard of the commit: it, or who
        comes in its place, gets that share once more. Those who have counted the batch do not count it again.
        """
        spoilt, count = batch.spoilt, 0 if batch.spoilt else len(batch.data)
        if copy_N is not None:
            await self._commits.have_kept(batch.number, copy_N)
        indices, tokens = tuple(range(count)), count * self._blocks.num_tokens
        self._journal.record(BatchCounted(0, batch.step, self._slot, batch.number, indices, tokens))
        while lacking := await self._commits.everywhere(batch, {} if spoilt else batch.ledger.shares()):
            self._mending = True
            for hop in lacking:
                self._lose(batch, hop.peer, "it has not counted its share")
                if hop.peer in self._holders.of(hop.stage):
                    batch.ledger.pardon(hop.peer)
            await asyncio.sleep(_LOOK_S)
            await self._drive(batch, asyncio.Event())
            if not batch.ledger.complete:  # what comes of it now is not finite: it stays uncounted there
                break
        self._mending = False
        self._close(batch)

    # -- validation ---------------------------------------------------------------------------------------------------

    async def _validate_if_due(self, stop: asyncio.Event) -> None:
        """The head of the lowest slot measures the loss on held-out data now and then, through all stages."""
        options = self._options
        every = options.eval_every_rounds * options.inner_steps
        if not every or self.step % every or not self.step or self._slot != min(self._holders.slots() | {self._slot}):
            return
        if not (count := min(self._source.num_held_out, MAX_MICROBATCHES)):
            return
        data = await self._clock.run(lambda: [self._source.held_out(index) for index in range(count)])
        batch = self._open(Batch(self._number, self.step, False, Ledger(len(data)), data))
        await self._drive(batch, stop)
        self._close(batch)
        if batch.ledger.complete:
            self.validated = (self.step // options.inner_steps, batch.loss)
            self._journal.record(Validated(*self.validated))

    # -- what comes ---------------------------------------------------------------------------------------------------

    async def _on_forward(self, sender: PeerId, request: bytes) -> bytes:
        return await self._receive(sender, request, backward=False)

    async def _on_backward(self, sender: PeerId, request: bytes) -> bytes:
        return await self._receive(sender, request, backward=True)

    async def _receive(self, sender: PeerId, request: bytes, *, backward: bool) -> bytes:
        try:
            packet, values = await self._courier.read(sender, request, 0, backward=backward)
        except FrameError as err:
            raise CallRefused(str(err)) from err
        batch = self._batches.get((packet.batch, packet.train))
        # What is no attempt under way is stale, and of no use; so no more than two for each of the window wait here.
        if packet.slot == self._slot and batch is not None and self._is_current(batch, packet.index, packet.attempt):
            if packet.path != batch.ledger.path(packet.index):
                raise CallRefused(f"micro-batch {packet.index} was sent on another path")
            mark = packet.index, packet.attempt, backward
            if mark not in batch.seen and (not backward or (*mark[:2], False) in batch.seen):
                batch.seen.add(mark)
                batch.came.put_nowait(Came(packet, values, backward))
        return b""

    async def _on_failed(self, sender: PeerId, request: bytes) -> bytes:
        try:
            failed = from_wire(Failed, request)
        except FrameError as err:
            raise CallRefused(str(err)) from err
        for train in (True, False):
            batch = self._batches.get((failed.batch, train))
            if failed.slot == self._slot and batch is not None:
                known = self._is_current(batch, failed.index, failed.attempt)
                if known and sender in batch.ledger.peers():
                    failure = Failure(failed.index, failed.attempt, failed.culprit, failed.reason)
                    batch.came.put_nowait(failure)
        return b""

    @staticmethod
    def _is_current(batch: Batch, index: int, attempt: int) -> bool:
        return index < len(batch.data) and batch.ledger.is_current(index, attempt)
