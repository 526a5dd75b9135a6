"""The worker, from top to bottom as the algorithm: train, mix, take the outer step, repair if the swarm says so.

    while rounds are left:
        take inner steps up to the next event of the plan        on the clock's thread; peers are served meanwhile
        Launch: pseudo-gradient = anchor - local parameters      starts an exchange
        Apply:  Mixed   -> outer step, new anchor, blend
                Aborted -> nothing is lost: the work stays in the local parameters and enters the next round
                           behind or out of sync -> download the swarm's state, move the local work along

One coroutine decides; everything that waits has a deadline, and everything that may fail ends in a value. The module is
longer than others so that the algorithm stands in one place.
"""

import asyncio
import contextlib
import math
from collections.abc import Sequence

from torch import Tensor

from decentral import __version__
from decentral.engine.hello import serve_hello
from decentral.engine.membership import Membership
from decentral.engine.meter import Meter
from decentral.engine.mixing import make_exchange
from decentral.engine.options import Outcome, Parts, RunOptions
from decentral.engine.replica import Replica
from decentral.engine.report import Report
from decentral.errors import DivergedError, UnreachableError
from decentral.exchange.api import Aborted, Contribution, Reason, Verdict
from decentral.monitor.events import Joined, Repaired, SatOut, Stopped, StretchDone, Validated
from decentral.outer.rule import Mixed
from decentral.schedule.plan import Launch
from decentral.state.download import Donor, Download, Downloader
from decentral.state.snapshot import Snapshot
from decentral.swarm.matching import evaluator, middle_round
from decentral.swarm.presence import Metrics, Presence, State
from decentral.tensors.layout import Layout
from decentral.types import PeerId, SyncKey

#: A stretch of inner steps is cut so that a signal to stop is seen within about this time.
_CHUNK_S = 1.0
#: A round in flight may take so long to end after a signal to stop.
_LEAVE_S = 8.0
#: A worker that is done serves the others for so long at most.
_LINGER_S = 15.0
#: The first round waits for so long at most for the workers that the run asks for.
_GATHER_S = 120.0
_JOIN_ATTEMPTS = 20
_MAX_DIVERGED = 3
_REPAIR = frozenset({Reason.BEHIND, Reason.OUT_OF_SYNC})


class Worker:
    """One member of a swarm.

    Args:
        options: equal on all workers.
        parts: this worker's ports and trainer.
    """

    def __init__(self, options: RunOptions, parts: Parts) -> None:
        self._options = options
        self._parts = parts
        self._clock = parts.clock
        self._journal = parts.journal
        layout = Layout.of(parts.trainer.parameters(), options.plan.num_fragments)
        numels = tuple(layout.numel(fragment) for fragment in range(layout.num_fragments))
        me, feedback = parts.transport.peer_id, options.feedback(layout.num_fragments)
        self._replica = Replica(parts.trainer, layout, options.rule, feedback, options.mix_alpha, me)
        self._meter = Meter(layout.total_numel, __version__, parts.device)
        self.membership = Membership(
            Presence(me, options.run_id, 0, State.JOINING, 0, 0, ""),
            metrics=self._metrics,
            transport=parts.transport,
            directory=parts.directory,
            clock=parts.clock,
            identity=parts.identity,
            timing=options.timing,
            journal=parts.journal,
        )
        self._report = Report(parts.journal, self._meter, parts.transport, parts.clock)
        self._exchange = make_exchange(
            options,
            parts,
            self.membership.roster,
            numels,
            sends_changes=feedback.sends_changes,
            until_launch_s=self._until_launch_s,
            anchor=self._replica.anchor,
            move=self._move,
        )
        self._donor = Donor(parts.transport, layout.signature, self._snapshot)
        num_buffers = options.rule.num_buffers
        self._downloader = Downloader(parts.transport, layout.signature, numels, num_buffers, options.timing)
        self._flights: dict[SyncKey, tuple[Contribution, asyncio.Task[Verdict]]] = {}
        self._step = 0
        self._pace_s = self._step_s = 0.0
        self._stepped_at = parts.clock.monotonic()
        self._chunk_steps = 1
        self._saved_at = parts.clock.monotonic()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def found(self) -> None:
        """Found a swarm: the trainer's initial parameters are the first anchor."""
        await self._clock.run(self._replica.found)
        await self._serve()
        self._tell(State.TRAINING)

    async def join(self, peers: Sequence[PeerId]) -> None:
        """Join the swarm that ``peers`` are in: download the current state and take part from its next round.

        Raises:
            UnreachableError: nobody could give the state.
        """
        await self._serve()
        began = self._clock.monotonic()
        problem = "there is no donor"
        for _ in range(_JOIN_ATTEMPTS):
            for peer in peers:
                await self.membership.tell(peer)
            download = await self._downloader.fetch(self._donors(peers))
            if isinstance(download, Download):
                await self._adopt(download)
                owed = await self._clock.run(lambda: self._replica.restore_residuals(self._parts.residuals))
                # Else those who know it as joining would go on without it, and the round would split in two.
                await self.membership.announce()
                seconds = self._clock.monotonic() - began
                round_ = min(download.head.rounds)
                self._journal.record(Joined(download.donor, round_, download.received_bytes, seconds, owed))
                return
            problem = download
            await asyncio.sleep(self._options.timing.beat_s)
        raise UnreachableError(
            f"nobody in the swarm could hand over the current state: {problem}",
            hint="`decentral status ADDR` shows who is in it.",
        )

    async def run(self, stop: asyncio.Event) -> Outcome:
        """Train until the run is done or ``stop`` is set; then say goodbye.

        Raises:
            DivergedError: the parameters were not finite again and again.
            IdentityError: another live worker has the same identity.
        """
        beside = [asyncio.create_task(self.membership.run()), asyncio.create_task(self._exchange.run())]
        reason = "failed"
        try:
            await self._gather(stop)
            self._meter.start(self._clock.monotonic())
            while not (done := self._round() >= self._options.rounds) and not stop.is_set():
                for work in beside:
                    if work.done():
                        work.result()
                self.membership.check_single()
                await self._train_to(self._options.plan.next_event_after(self._step), stop)
                if not stop.is_set():
                    await self._sync(stop)
            reason = "run is done" if done else "asked to stop"
            if done:
                self._tell(State.DONE)
                await self._linger(stop)
            else:
                self._tell(State.LEAVING)
                await self.membership.announce()
            return self._outcome(done)
        finally:
            tasks = [*beside, *(flight for _, flight in self._flights.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._journal.record(Stopped(reason, self._round(), self._meter.tokens))

    async def _serve(self) -> None:
        await self.membership.start()
        await self._exchange.start()
        await self._donor.start()
        await serve_hello(self._parts.transport, self._options.run_id, self._options.config, self.membership.records)

    async def _gather(self, stop: asyncio.Event) -> None:
        """Before the first step of a run: wait for the workers it asks for, else a founder trains alone meanwhile."""
        until = self._clock.monotonic() + _GATHER_S
        while self._step == 0 and self._clock.monotonic() < until and not stop.is_set():
            missing = self._options.min_workers - len(self.membership.roster.active(self._clock.monotonic()))
            self._meter.explain(f"waits for {missing} more workers" if missing > 0 else "")
            if missing <= 0:
                return
            await asyncio.sleep(self._options.timing.beat_s / 4)

    async def _linger(self, stop: asyncio.Event) -> None:
        """Serve those who are not done yet."""
        until = self._clock.monotonic() + _LINGER_S
        await self.membership.announce()
        while self._clock.monotonic() < until and not stop.is_set():
            if not self.membership.roster.active(self._clock.monotonic()):
                return
            await asyncio.sleep(self._options.timing.beat_s / 4)

    # -- inner steps --------------------------------------------------------------------------------------------------

    async def _train_to(self, step: int, stop: asyncio.Event) -> None:
        """Inner steps up to global step ``step``, in chunks."""
        first, began = self._step, self._clock.monotonic()
        tokens, weighted_loss = 0, 0.0
        while self._step < step and not stop.is_set():
            count = min(self._chunk_steps, step - self._step)
            start, chunk_began = self._step, self._clock.monotonic()
            report = await self._clock.run(lambda start=start, count=count: self._replica.train(start, count))  # type: ignore[misc]
            self._stepped_at = self._clock.monotonic()
            seconds = self._stepped_at - chunk_began
            self._step += count
            if seconds > 0:
                self._step_s = seconds / count
                self._chunk_steps = max(1, int(_CHUNK_S * count / seconds))
            tokens += report.tokens
            weighted_loss += report.loss * report.tokens
            members = len(self.membership.roster.active(self._clock.monotonic()))
            self._meter.trained(self._step, report, count=count, num_members=max(1, members), seconds=seconds)
        if self._step > first:
            seconds = self._clock.monotonic() - began
            self._pace_s = seconds * self._options.plan.inner_steps / (self._step - first)
            loss = weighted_loss / tokens if tokens else float("nan")
            self._journal.record(StretchDone(self._round(), self._step, tokens, loss, seconds))

    # -- outer rounds -------------------------------------------------------------------------------------------------

    async def _sync(self, stop: asyncio.Event) -> None:
        """The events due at this step, launches before applications."""
        for event in self._options.plan.events_at(self._step):
            if isinstance(event, Launch):
                await self._launch(event.key)
            elif event.key in self._flights:
                await self._apply(event.key, stop)

    async def _launch(self, key: SyncKey) -> None:
        """Take the pseudo-gradient and start its exchange."""
        await self.membership.catch_up()
        mine = await self._clock.run(lambda: self._replica.launch(key))
        if mine.excuse:
            self._sit_out(key, mine.excuse)
        self._flights[key] = (mine, asyncio.create_task(self._exchange.mix(key, mine)))

    def _sit_out(self, key: SyncKey, reason: str) -> None:
        """Nothing to give: listen in this round; give up after several without anything finite."""
        self._journal.record(SatOut(key.round, reason))
        self._meter.explain(reason)
        if self._replica.rounds_diverged >= _MAX_DIVERGED:
            raise DivergedError(
                f"the parameters were not finite in {_MAX_DIVERGED} rounds in a row (round {key.round})",
                hint="Lower the learning rate or the outer learning rate, or look at this machine's data.",
            )

    async def _apply(self, key: SyncKey, stop: asyncio.Event) -> None:
        """Wait for the verdict and act on it."""
        self._tell(State.SYNCING)
        mine, task = self._flights[key]
        verdict = await self._await(task, stop)
        del self._flights[key]
        if verdict is None:
            self._replica.give_back(key)
            return
        outcome = verdict.outcome
        if isinstance(outcome, Mixed):
            await self._commit(key, outcome, verdict, excuse=mine.excuse)
        else:
            self._replica.give_back(key)
            self._replica.skip(key)
            self._report.aborted(key, outcome, verdict)
        self._keep_up()
        if verdict.met is not None:
            self._get_in_step(verdict.met.nearest_s)
        self._tell(State.TRAINING)
        if isinstance(outcome, Aborted) and outcome.reason in _REPAIR:
            await self._repair(outcome)
        elif isinstance(outcome, Mixed):
            await self._validate(key, outcome)
            await self._save_if_due()

    async def _await(self, task: asyncio.Task[Verdict], stop: asyncio.Event) -> Verdict | None:
        """The verdict; ``None`` if the worker is to stop and the round does not end soon."""
        while not task.done() and not stop.is_set():
            # Looks for the signal now and then; a task that waits for it would have to be made for every round.
            await asyncio.wait({task}, timeout=_CHUNK_S)
        if not task.done():
            await asyncio.wait({task}, timeout=_LEAVE_S)
        if task.done():
            return task.result()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return None

    async def _commit(self, key: SyncKey, mixed: Mixed, verdict: Verdict, *, excuse: str) -> None:
        """Take the outer step."""
        counted = self._parts.transport.peer_id in mixed.members
        sent_N = verdict.sent_N if counted else None
        applied = await self._clock.run(lambda: self._replica.apply(key, mixed, sent_N))
        if not counted:
            self._replica.give_back(key)
        self._report.mixed(key, mixed, verdict, applied, excuse=excuse)
        self._show_anchor(key.fragment)

    def _show_anchor(self, fragment: int) -> None:
        """Tell the exchange of a new anchor."""
        held = self._replica.anchor(fragment)
        if held is not None:
            self._exchange.adopted(fragment, *held)

    async def _move(self, fragment: int, shift_N: Tensor, partner: PeerId, spread: float) -> None:
        """Move an anchor as a swap outside of any round demands."""
        await self._clock.run_aside(lambda: self._replica.move(fragment, shift_N))
        self._report.pulled(SyncKey(self._round(), fragment), partner, spread)

    def _keep_up(self) -> None:
        """In gossip nobody waits for a slow worker; it goes on where the others are by now.

        So its learning rate is theirs, and the run ends for it as well. A round behind is nothing: records travel.
        """
        rounds = set(self._exchange.progress.rounds())
        if self._options.pairing is None or self._flights or len(rounds) > 1:
            return
        runners = self.membership.roster.runners(self._clock.monotonic())
        if not runners:  # stopped in the middle of a sync: all look dead, itself included, until they are asked
            return
        middle = middle_round(runners)
        if middle > min(rounds) + 1:
            self._exchange.progress.resume([middle] * self._options.plan.num_fragments)
            self._replica.jump(middle)
            self._step = self._options.plan.step_of_round(middle)

    def _get_in_step(self, nearest_s: float) -> None:
        """In gossip, a worker that always is ready when nobody else is makes one stretch shorter, and meets them then.

        With several fragments it would jump over events of the plan: those meet somebody sooner or later.
        """
        plan = self._options.plan
        if math.isnan(nearest_s) or self._step_s <= 0 or plan.num_fragments > 1 or self._flights:
            return
        start = plan.launch_step(SyncKey(self._round(), 0)) - max(1, round(nearest_s / self._step_s))
        self._step = max(self._step, start)

    def _until_launch_s(self, fragment: int) -> float:
        """Seconds of inner steps before the next sync of a fragment, as the last steps tell."""
        key = SyncKey(self._exchange.progress.next_round(fragment), fragment)
        steps = self._options.plan.launch_step(key) - self._step
        return max(0.0, steps * self._step_s - (self._clock.monotonic() - self._stepped_at))

    async def _validate(self, key: SyncKey, mixed: Mixed) -> None:
        """One member validates the anchor now and then."""
        every = self._options.eval_every_rounds
        last_fragment = key.fragment == self._options.plan.num_fragments - 1
        if not every or not last_fragment or (key.round + 1) % every:
            return
        # Groups of a gossip are many, and each would pay; who is done has been here.
        runners = self.membership.roster.runners(self._clock.monotonic())
        members = mixed.members if self._options.pairing is None else tuple([p.peer for p in runners])
        if members and evaluator(members, key) == self._parts.transport.peer_id:
            val_loss = await self._clock.run(self._replica.validate)
            self._meter.validated(key.round + 1, val_loss)
            self._journal.record(Validated(key.round + 1, val_loss))

    # -- state --------------------------------------------------------------------------------------------------------

    async def _repair(self, verdict: Aborted) -> None:
        """Download the swarm's state; if that fails, train on and try again after the next round's verdict."""
        self._tell(State.REPAIRING)
        began = self._clock.monotonic()
        first = [verdict.source] if verdict.source is not None else []
        download = await self._downloader.fetch(self._donors(first))
        if isinstance(download, str):
            self._meter.explain(f"{verdict.reason}, and no repair: {download}")
            self._tell(State.REPAIRING)
            return
        await self._adopt(download)
        seconds = self._clock.monotonic() - began
        self._meter.downloaded(seconds)
        self._journal.record(
            Repaired(
                donor=download.donor,
                round=min(download.head.rounds),
                downloaded_bytes=download.received_bytes,
                seconds=seconds,
                reason=verdict.reason,
            )
        )

    async def _adopt(self, download: Download) -> None:
        """Go on from a downloaded state, where its donor is; what was launched against the old one is void."""
        for _, task in self._flights.values():
            task.cancel()
        self._flights.clear()
        snapshot = download.snapshot
        await self._clock.run(lambda: self._replica.adopt(snapshot))
        self._exchange.progress.resume(snapshot.rounds)
        for fragment in range(self._options.plan.num_fragments):
            self._show_anchor(fragment)
        plan = self._options.plan
        next_launch = min(plan.launch_step(SyncKey(round_, f)) for f, round_ in enumerate(snapshot.rounds))
        # At least one step before the next launch; work that fills a round already is not kept waiting for another.
        overdue = self._replica.pending_steps >= plan.inner_steps
        self._step = next_launch - 1 if overdue else min(snapshot.step, next_launch - 1)
        self._meter.explain("")
        # Junior to everybody who was there when this round began, the founder included.
        self.membership.update(since=min(snapshot.rounds) + 1)
        self._tell(State.TRAINING)

    async def _save_if_due(self) -> None:
        """Keep the anchors on disk now and then: whatever ends this process, little is lost."""
        save, now = self._parts.save, self._clock.monotonic()
        if save is not None and now - self._saved_at >= self._parts.save_every_s:
            self._saved_at = now
            outcome = self._outcome(done=False)
            await self._clock.run(lambda: save(outcome))

    def _donors(self, first: Sequence[PeerId]) -> list[PeerId]:
        """Whom to ask for the state: those given first, then other members, those furthest in the run before others."""
        me = self._parts.transport.peer_id
        active = sorted(self.membership.roster.active(self._clock.monotonic()), key=lambda p: -p.round)
        others = [p.peer for p in active if p.peer != me and p.peer not in first]
        return [*first, *others][:8]

    def _snapshot(self) -> Snapshot | None:
        return self._replica.snapshot(self._step) if self._replica.has_state else None

    def _round(self) -> int:
        """The round this worker is in: the earliest that a fragment has not finished."""
        return min(self._exchange.progress.rounds())

    def _tell(self, state: State) -> None:
        """Bring the own record up to date."""
        snapshot = self._snapshot()
        # In gossip there is nothing to agree on.
        digest = snapshot.name if snapshot is not None and self._options.pairing is None else ""
        self.membership.update(state=state, round=self._round(), digest=digest, round_s=self._pace_s)

    def _metrics(self) -> Metrics:
        traffic, now = self._parts.transport.traffic(), self._clock.monotonic()
        self._meter.moved(now, sent_bytes=traffic.sent_bytes, received_bytes=traffic.received_bytes)
        return self._meter.metrics(now)

    def _outcome(self, done: bool) -> Outcome:
        snapshot = self._replica.snapshot(self._step)
        anchors, residuals = self._replica.anchors(), self._replica.residuals()
        return Outcome(done, self._round(), self._meter.tokens, snapshot.name, anchors, residuals)
