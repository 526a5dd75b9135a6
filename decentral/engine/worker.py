"""The worker, from top to bottom as the algorithm: train, send fragments on their way, take in what comes back.

    while rounds are left:
        take inner steps until something is due                  on the clock's thread; peers are served meanwhile
        launch: pseudo-gradient = anchor - local parameters      its exchange and the outer step run beside the training
        land:   Mixed   -> blend the new anchor into the local parameters
                Aborted -> nothing is lost: the work stays with the worker and enters the next round
                           behind or out of sync -> download the swarm's state, move the local work along

Without overlap a fragment lands at the step of its launch, and training waits for it. With overlap it lands some steps
later, or when it comes if that is later still, and training waits only if its next launch is due by then: there never
are two versions of a fragment on their way.

One coroutine decides; everything that waits has a deadline, and everything that may fail ends in a value. The module is
longer than others so that the algorithm stands in one place.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from decentral import __version__
from decentral.engine.background import Background
from decentral.engine.beginning import wait_for_workers
from decentral.engine.capture import Capture, Moment, Picture
from decentral.engine.course import Course
from decentral.engine.facts import Made
from decentral.engine.faults import Faults, Ruined
from decentral.engine.hello import serve_hello
from decentral.engine.membership import Membership
from decentral.engine.meter import Meter
from decentral.engine.mixing import make_exchange
from decentral.engine.options import Outcome, Parts, RunOptions
from decentral.engine.protection import Protection
from decentral.engine.replica import Continuation, Replica
from decentral.engine.report import Held, Report
from decentral.engine.resume import Comeback, Sending, bring_back
from decentral.engine.reunion import Known, Reunion
from decentral.engine.rows import RowClaims
from decentral.engine.saving import Saving
from decentral.engine.syncs import InFlightSync, InFlightSyncs, Kept, Stepped
from decentral.engine.timetable import Timetable
from decentral.engine.validation import Validation
from decentral.engine.watchdog import Watchdog
from decentral.errors import IdentityError, UnreachableError, UsageError
from decentral.exchange.api import Aborted, Excuse, Memory, Reason
from decentral.monitor.events import Launched, RolledBack, Stopped
from decentral.state.download.donor import Donor
from decentral.state.download.downloader import Download, Downloader, NoDownload
from decentral.state.snapshot import Snapshot
from decentral.state.worker_state import WorkerState
from decentral.swarm.matching import middle_round
from decentral.swarm.presence import ACTIVE, Presence, State
from decentral.tensors.layout import Layout
from decentral.types import PeerId, SyncKey

#: A round in flight may take so long to end after a signal to stop.
_LEAVE_S = 8.0
#: A worker that fails says so for so long at most.
_GOODBYE_S = 2.0
_JOIN_ATTEMPTS = 20


class Worker:
    """One member of a swarm.

    Args:
        options: equal on all workers.
        parts: this worker's ports and trainer.
    """

    def __init__(self, options: RunOptions, parts: Parts) -> None:
        self._options = options
        self._restored, parts = parts.restored, replace(parts, restored=None)  # nobody else is to hold on to it
        self._parts = parts
        self._clock = parts.clock
        self._journal = parts.journal
        layout = Layout.of(parts.model.parameters(), options.plan.num_fragments, options.pattern)
        numels = tuple(layout.numel(fragment) for fragment in range(layout.num_fragments))
        me, feedback = parts.transport.peer_id, options.feedback(layout.num_fragments)
        onward = Continuation(options.mix_alpha, options.eager)
        self._background = Background()
        self._replica = Replica(parts.model, layout, options.rule, feedback, onward, me, options.weight_by)
        self._meter = Meter(layout.total_numel, __version__, parts.device)
        self.report = Report(parts, self._meter)
        self.membership = Membership(
            Presence(me, options.run_id, 0, State.JOINING, 0, 0, ""),
            metrics=self.report.metrics,
            transport=parts.transport,
            directory=parts.directory,
            clock=parts.clock,
            identity=parts.identity,
            timing=options.timing,
            journal=parts.journal,
            at_beat=self._at_beat,
        )
        self._exchange = make_exchange(
            options,
            parts,
            self.membership.roster,
            numels,
            layered=[layout.layered(fragment) for fragment in range(layout.num_fragments)],
            sends_changes=feedback.sends_changes,
            until_launch_s=lambda fragment: self._course.until_launch_s(fragment),
            anchor=self._replica.anchor,
            move=self._move,
        )
        self._donor = Donor(parts.transport, layout.signature, self._snapshot, parts.clock)
        cut = (layout.signature, numels, options.rule.num_buffers)
        self._common = self._exchange.has_common_anchor
        secret = None if self._common else parts.identity.sign(b"positions")
        self._downloader = Downloader(parts.transport, *cut, options.timing, parts.clock, secret)
        ports = (self._exchange, self.membership, parts.clock)
        self._syncs = InFlightSyncs(self._replica, *ports, me, options.rounds, self._goes_on, self._background)
        self._timetable = Timetable(options, numels, self._exchange.progress, self._syncs)
        self._course = Course(self._timetable, self._exchange, parts.clock, parts.look_s, own_steps=options.own_steps)
        self._num_members = [0] * layout.num_fragments
        """Of the last round of each fragment; 0 before that."""
        self._watchdog = Watchdog(parts.clock, options.timing)
        made = Made.by(options, layout, feedback.keeps)
        self._capture = Capture(made, layout, parts, self._replica, self._syncs, self._course, self._exchange)
        self.rows = RowClaims(parts.transport, self.membership, parts.clock, options.timing)
        self._protection = Protection(parts, self.membership.roster, options.timing, layout.total_numel)
        kept = (self._capture.state, self._protection.offer)
        self._saving = Saving(parts, self._meter, self._background, self._picture, *kept)
        self._saved: Snapshot | None = None
        """What others may have of an earlier life as long as this one has nothing."""
        self._resumed: Sequence[Sending] = ()
        """What was on its way in an earlier life and is to be sent off again."""
        self._validation = Validation(options, parts, self._replica, self.membership, common=self._common)
        self._faults = Faults(self._replica, self.report)
        self._done = self._closed = False

    # -- life ---------------------------------------------------------------------------------------------------------

    async def found(self, step: int = 0) -> None:
        """Found a swarm on the model's parameters; ``step`` inner steps are behind it if an earlier one was lost."""
        rounds = self._course.found(step)
        await self._clock.run(lambda: self._replica.found(rounds))
        await self._serve()
        self._tell(State.TRAINING)

    async def resume(self, known: Known | None = None) -> None:
        """Go on from the state of an earlier life (``Parts.restored``) as if there had been no pause.

        If those ``known`` are in a swarm that runs, it is joined; all who come back take over the newest that one has.

        Raises:
            MismatchError: the state is another model's, or another release's.
            UsageError: there is none.
        """
        state = self._restored
        if state is None:
            raise UsageError("There is no saved state to resume from.", hint="Found the run, or join it.")
        back = await self._comeback(state, go_on=True)
        saved = self._saved = back.snapshot
        self.membership.update(round=min(back.rounds), digest=saved.name)
        await self._serve()
        if known is not None and await self._reunite(known, back):
            return
        await self._clock.run(lambda: self._replica.restore(back.replica))
        self._course.resume(back.facts.course, back.rounds)
        self._num_members[:] = back.num_members
        back.remind(self._exchange)
        self._resumed = back.syncs
        self._show_anchors()
        self.membership.update(since=back.facts.since)
        self._tell(State.TRAINING)
        self._journal.record(back.event(self.round, back.work_steps))

    async def _reunite(self, known: Known, back: Comeback) -> bool:
        """Look for others; whether this worker has gone on from what they have."""
        began, saved, beat_s = self._clock.monotonic(), back.snapshot, self._options.timing.beat_s
        async with Background() as beside:
            beside.begin(self.membership.run())
            found = await Reunion(known, self.membership, self._clock, beat_s, self._meter.explain).found()
            if found.members:
                with suppress(UnreachableError):  # They have died since: it goes on with what it has itself.
                    await self._download_from(found.members)
            elif found.returning and self._common:
                download = await self._downloader.fetch_newest(found.returning, saved, self.report.downloading)
                if isinstance(download, Download) and download.snapshot.name != saved.name:
                    await self._take_over(download, await self._comeback(back.saved, go_on=False), began)
        return self._replica.has_state

    async def _comeback(self, state: WorkerState, *, go_on: bool) -> Comeback:
        """What to go on from; the trainer and the counters are set to it at once."""
        if not go_on and not state.closed:
            self.rows.forfeit()
        back = await self._clock.run(lambda: bring_back(state, self._options, self._parts, go_on=go_on))
        self._meter.resume(state.tokens, state.step)
        self._validation.resume(state.val_loss)
        return back

    async def join(self, peers: Sequence[PeerId]) -> None:
        """Join the swarm that ``peers`` are in: download the current state and take part from its next round.

        With a state of an earlier life (``Parts.restored``) it goes on from that: trainer, and work surely not counted.

        Raises:
            UnreachableError: nobody could give the state.
            MismatchError: they train another model.
        """
        await self._serve()
        # A download may last longer than a record lives, and a founder that takes itself for alone keeps no means.
        async with Background() as beside:
            beside.begin(self.membership.run())
            await self._download_from(peers)

    async def _download_from(self, peers: Sequence[PeerId]) -> None:
        began, state = self._clock.monotonic(), self._restored
        back = None if state is None else await self._comeback(state, go_on=False)
        problem = NoDownload("there is no donor")
        for _ in range(_JOIN_ATTEMPTS):
            for peer in peers:
                await self.membership.tell(peer)
            donors, have = self.membership.donors(peers, common=self._common), back.snapshot if back else None
            download = await self._downloader.fetch(donors, have, self.report.downloading)
            if isinstance(download, Download):
                return await self._take_over(download, back, began)
            problem = download
            if problem.other_model:
                break
            await asyncio.sleep(self._options.timing.beat_s)
        raise problem.error()

    async def _take_over(self, download: Download, back: Comeback | None, began: float) -> None:
        """Go on from a downloaded state, which was asked for at ``began``, as a member."""
        if self._clock.monotonic() - began > self._options.timing.beat_s:  # others may be rounds further by now
            await self.membership.tell(download.donor)
        if back is None:
            await self._protection.take_up([other.peer for other in self.membership.others()])
        await self._adopt(download, back)
        # Else those who know it as joining would go on without it, and the round would split in two.
        await self.membership.announce()
        self.report.joined(download, self._clock.monotonic() - began, self._replica.residual_norm)
        if back is not None:
            self._journal.record(back.event(self.round, self._replica.pending_steps))

    async def run(self, stop: asyncio.Event) -> Outcome:
        """Train until the run is done or ``stop`` is set; then say goodbye.

        Whatever ends it, the others hear that it leaves, unless they are told by another worker of its identity.

        Raises:
            DivergedError: the parameters were not finite again and again, or all that was learnt is lost.
            IdentityError: another live worker has the same identity.
            Exception: what the trainer or anything beside it raised.
        """
        reason = "failed"
        try:
            async with self._background as beside:
                for work in (self.membership.run(), self._exchange.run(), self._protection.run()):
                    beside.begin(work)
                try:
                    done = await self._train(stop)
                    if done:  # whoever reads the model afterwards finds what the swarm has come to
                        await self._clock.run(self._replica.load_anchors)
                        self._done = True
                    self._closed = True
                finally:
                    self._parts.inner.over()
                    self._saving.over()
                reason = "run is done" if done else "asked to stop"
                if done:
                    self._tell(State.DONE)
                    await self.membership.linger(stop)
                else:
                    self._tell(State.LEAVING)
                    await self.membership.announce()
                return self._outcome(done)
        except Exception as err:
            if not isinstance(err, IdentityError):
                self._tell(State.LEAVING)
                await self.membership.announce(_GOODBYE_S)
            raise
        finally:
            self._journal.record(Stopped(reason, self.round, self._meter.tokens))

    async def _train(self, stop: asyncio.Event) -> bool:
        """All rounds that are left, which is to be done, or those until ``stop`` is set. Nothing is on its way then."""
        if self._course.step == 0:
            await wait_for_workers(self._options, self.membership, self._clock, self._meter.explain, stop)
            self._show_anchors()  # once more, now that it is known to whom
        self._meter.start(self._clock.monotonic())
        self._saving.begin_at(self._course.step)
        for sending in self._resumed:
            self._syncs.resume(sending.key, sending.step, sending.group, sending.taken, sending.landing)
        if self._resumed:  # without overlap it is waited for before the next step
            await self._sync(stop)
        self._restored, self._saved, self._resumed = None, None, ()  # as large as all that this worker has
        while not (done := self.round >= self._options.rounds and not self._syncs) and not stop.is_set():
            self.membership.check_single()
            await self._train_to(self._timetable.next_event(self._course.step), stop)
            if not stop.is_set():
                try:
                    await self._sync(stop)
                except Ruined as fault:
                    await self._roll_back(fault, stop)
            await self._saving.at_rest(self._course.step)
        await self._come_to_rest(stop)
        return done

    # -- where it is --------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether all rounds are finished, nothing is on its way, and the model is what they came to."""
        return self._done

    @property
    def step(self) -> int:
        """Inner steps that are behind the run."""
        return self._course.step

    @property
    def round(self) -> int:
        """The round this worker is in: the earliest that a fragment has not finished."""
        return self._course.round

    def anchors(self) -> dict[str, Tensor]:
        """Named parameters of the anchors, float32 on the CPU; never changed in place."""
        return self._replica.anchors()

    async def keep(self) -> None:
        """Keep what this worker has, whatever ended it, unless nothing is left of what it has learnt."""
        if self._replica.has_state and not self._validation.ruined:
            await self._saving.at_end(closed=self._closed)

    async def state(self) -> WorkerState:
        """All that it needs to go on, of a worker that does not run any more."""
        picture = await self._picture(self._closed)
        return await self._clock.run_aside(lambda: self._capture.state(picture))

    async def save_now(self) -> None:
        """Keep what this worker has as soon as it stands between two inner steps; returns when that is done."""
        await (self._saving.now() if self._background.is_open else self.keep())

    async def _picture(self, closed: bool) -> Picture:
        moment = Moment(self.round, self._meter.tokens, self.membership.own.since, tuple(self._num_members), closed)
        return await self._capture.picture(moment)

    async def _serve(self) -> None:
        for part in (self.membership, self._exchange, self._donor, self._protection, self.rows):
            await part.start()
        await serve_hello(self._parts.transport, self._options.run_id, self._options.config, self.membership.records)

    # -- inner steps --------------------------------------------------------------------------------------------------

    async def _train_to(self, step: int, stop: asyncio.Event) -> None:
        """Inner steps up to global step ``step``, in chunks."""
        course = self._course
        while course.step < step and not stop.is_set():
            await self._saving.at_rest(course.step)
            count, began = course.chunk(self._saving.next_step(course.step, step)), self._clock.monotonic()
            if self._options.own_steps:  # else they come when others have done their part
                self._watchdog.asked(count * course.step_s)
            steps = await self._parts.inner.take(course.step, count, stop)
            seconds, stalled = self._clock.monotonic() - began, self._watchdog.came()
            self._replica.trained(steps.report, steps.count)
            course.trained(steps.report, steps.count, seconds)
            members = len(self.membership.roster.active_peers(self._clock.monotonic()))
            waiting_s = max(0.0, seconds - steps.compute_s)
            self._meter.trained(course.step, steps, num_members=max(1, members), waiting_s=waiting_s)
            if stalled and not stop.is_set():  # those who hear of it now do not go on without this worker
                self._meter.explain("")
                self._tell(State.TRAINING)
                await self.membership.announce()

    def _at_beat(self) -> None:
        """Give back memory; and a worker whose trainer hangs is alive, but nobody is to wait for it."""
        self._donor.forget_idle()
        self._syncs.forget_freed()
        if self._watchdog.look():
            self._meter.explain(f"no inner step for {self._watchdog.silent_s:.0f} s")
            self._tell(State.STALLED)

    # -- outer rounds -------------------------------------------------------------------------------------------------

    async def _sync(self, stop: asyncio.Event) -> None:
        """What is due at this step: landings that cannot be put off, launches, other landings."""
        course, timetable = self._course, self._timetable
        for sync in timetable.to_wait_for(course.step):
            await self._land(sync, stop)
        if self._common and (ahead_s := timetable.stand_still_s(course.step)):
            await self._rest(self._background.begin(asyncio.sleep(ahead_s)), stop)
        if stop.is_set():
            return
        if due := timetable.to_launch(course.step):
            self._end_stretch()
            for key in due:
                group, share = timetable.group_of(key.fragment), self._share(key.fragment)
                await self._syncs.launch(key, course.step, group, share, timetable.slack_s)
                self._journal.record(Launched(key.round, key.fragment, course.step))
            self.report.paced(timetable.delay_steps, timetable.follow_the_link(self.membership.others))
            course.launched(self.membership.paces_s)
        for sync in timetable.to_land(course.step):
            await self._land(sync, stop)

    def _end_stretch(self) -> None:
        """The inner steps since the last launch are one event of the journal."""
        if (done := self._course.end_stretch()) is not None:
            self._journal.record(done)

    def _share(self, fragment: int) -> float:
        """Of this worker in the next mean, as the last one was."""
        return 1 / (self._num_members[fragment] or 1 + len(self.membership.others()))

    async def _land(self, sync: InFlightSync, stop: asyncio.Event) -> None:
        """Take in what came of a sync, waiting for it if it is still under way."""
        if self._syncs.get(sync.key.fragment) is not sync:  # before a repair
            return
        end = await self._take_in(sync, stop)
        if isinstance(end, Stepped) and end.judged.unsound:
            await self._reload(end.key, stop)
        elif isinstance(end, Stepped):
            self._faults.sound(end.key.fragment)
            if (validated := await self._validation.after(end)) is not None:
                self.report.validated(end.key.round + 1, validated.loss, best=validated.best)
                self._capture.validated(validated.digest, validated.loss)
                if validated.best:
                    await self._saving.at_rest(self._course.step, best=True)
        elif end is not None and end.judged.repair and not self._validation.awaits_others(end.key):
            await self._repair(end.judged.aborted, stop)

    async def _take_in(self, sync: InFlightSync, stop: asyncio.Event) -> Stepped | Kept | None:
        """Wait for the end of a sync and take it in; ``None`` if the worker is to stop before that.

        A repair, if it asks for one, is up to the caller.
        """
        fragment, began = sync.key.fragment, self._clock.monotonic()
        self._tell(State.SYNCING)
        await self._rest(sync.task, stop)
        if not sync.landed:
            return None
        landing, waited_s = await self._syncs.fetch(sync), self._clock.monotonic() - began
        end, excuse = landing.end, landing.excuse
        if landing.passed:
            await self._bring_home(sync)
            for passed in landing.passed:
                self.report.mixed(passed)
            self._course.passed(sync, landing)
        if excuse is not None:
            self.report.sat_out(end.key, excuse)
        if isinstance(end, Stepped):
            await self._bring_home(sync)
            self._replica.give_back(end.key, end.judged.uncounted)
            self._num_members[fragment] = len(end.judged.mixed.members)
            self._timetable.landed(sync, landing)
        else:
            self._replica.give_back(end.key, uncertain=end.judged.aborted.uncertain)
            self._replica.skip(end.key)
        held = Held.of(end.verdict, sync.held_s, waited_s, self._clock.monotonic() - began)
        if isinstance(end, Stepped):
            self.report.mixed(end, held=held, delay_steps=self._course.step - sync.step, excuse=excuse)
        else:
            self.report.aborted(end, held=held)
        if not self._syncs:
            round_ = self._course.go_on(self.membership.paces_s)
            if round_ is not None:
                self._replica.jump(round_)
        self._tell(State.TRAINING)
        if excuse is not None:
            self._faults.check_finite(end.key.round)
        return end

    async def _rest(self, task: asyncio.Task[Any], stop: asyncio.Event) -> None:
        """Wait for something, or for the signal to stop; saves are made meanwhile."""
        while not task.done() and not stop.is_set():
            # Looks for the signal now and then; a task that waits for it would have to be made for every round.
            await asyncio.wait({task}, timeout=self._parts.look_s)
            if not task.done():
                await self._saving.at_rest(self._course.step, waits=True)

    async def _bring_home(self, sync: InFlightSync) -> None:
        """The anchor that has come is taken in by the local parameters; the old one goes beside the training."""
        spent: list[Any] = [*await self._clock.run(lambda: self._replica.land(sync.key.fragment)), sync.taken]
        sync.taken = None
        self._background.begin(self._clock.run_aside(spent.clear))

    async def _come_to_rest(self, stop: asyncio.Event) -> None:
        """Before leaving: what is on its way may end, if it does so soon."""
        self._end_stretch()
        if self._syncs:
            await asyncio.wait({sync.task for sync in self._syncs}, timeout=_LEAVE_S)
        for sync in self._syncs:
            if sync.landed:
                await self._take_in(sync, stop)
            else:
                await self._syncs.cancel(sync)
                self._replica.give_back(sync.key)
        await self._saving.finish(_LEAVE_S)

    def _goes_on(self) -> bool:
        """Whether a sync that was late goes on to the next round.

        If training waits for it, the others would meanwhile wait in vain for the other fragments of a member.
        """
        self._tell(State.SYNCING)
        if not self._options.own_steps:  # its steps of the next round are still to come, and others wait for them
            return False
        waits = not self._timetable.delay_steps and self._timetable.plan.num_fragments > 1
        return not (waits and self.membership.own.state in ACTIVE)

    def _show_anchors(self) -> None:
        """Tell the exchange of new anchors."""
        for fragment, of in enumerate(self._replica.fragments):
            self._exchange.adopted(fragment, of.state.digest, of.state.anchor_N)

    async def _move(self, fragment: int, shift_N: Tensor, partner: PeerId, spread: float) -> None:
        """Move an anchor as a swap outside of any round demands."""
        await self._clock.run_aside(lambda: self._replica.move(fragment, shift_N))
        self.report.pulled(SyncKey(self.round, fragment), partner, spread)

    # -- state --------------------------------------------------------------------------------------------------------

    async def _repair(self, verdict: Aborted, stop: asyncio.Event) -> None:
        """Download the swarm's state; if that fails, train on and try again after the next round's verdict."""
        # What else is on its way counts for the state that is about to be replaced: first see what comes of it.
        for other in self._syncs:
            await self._take_in(other, stop)
        if stop.is_set():
            return
        self._tell(State.REPAIRING)
        began = self._clock.monotonic()
        donors = self.membership.donors([verdict.source] if verdict.source else [], common=self._common)
        task = self._background.begin(self._downloader.fetch(donors, report=self.report.downloading))
        await self._rest(task, stop)
        if not task.done():
            task.cancel()
            return
        if isinstance(download := task.result(), NoDownload):
            self._meter.explain(f"{verdict.reason}, and no repair: {download}")
            self._tell(State.REPAIRING)
            return
        await self._validation.undone()
        await self._adopt(download)
        self.report.repaired(download, self._clock.monotonic() - began, verdict.reason)

    async def _reload(self, key: SyncKey, stop: asyncio.Event) -> None:
        """What this worker brought was nothing, though it means no harm: it begins anew, with anchors of others."""
        self._faults.unsound(key)
        await self._clock.run(self._replica.reset)
        if self.membership.others():
            await self._repair(Aborted(Reason.UNSOUND, Excuse.UNSOUND), stop)

    async def _roll_back(self, fault: Ruined, stop: asyncio.Event) -> None:
        """What the run has learnt is lost: go on from anchors that were good, as all do who have seen the same."""
        good = self._validation.good(fault)
        for other in self._syncs:
            with suppress(Ruined):
                await self._take_in(other, stop)
        if stop.is_set():
            raise fault
        await self._validation.roll_back(good, self.round)
        self._exchange.remember(Memory(), good.anchors)
        self._show_anchors()
        self.report.rolled_back(RolledBack(self.round, good.round, good.loss, fault.message))
        self._tell(State.TRAINING)
        await self._saving.at_rest(self._course.step, best=True)  # what was saved last leads nowhere

    async def _adopt(self, download: Download, back: Comeback | None = None) -> None:
        """Go on from a downloaded state, where its donor is, and from that of an earlier life as far as it is good."""
        snapshot, restored = download.snapshot, None if back is None else back.replica
        await self._clock.run(lambda: self._replica.adopt(snapshot, restored))
        donor = self.membership.roster.get(download.donor)  # it has gone on meanwhile
        donor_step = max(snapshot.step, donor.metrics.step if donor is not None else 0)
        overdue = self._replica.pending_steps >= self._timetable.plan.inner_steps
        self._course.adopt(snapshot.step, snapshot.rounds, download.donor, donor_step, overdue=overdue)
        self._show_anchors()
        self._meter.explain("")
        # Junior to everybody who was there when this round began, the founder included.
        self.membership.update(since=min(snapshot.rounds) + 1)
        self._tell(State.TRAINING)

    async def _snapshot(self) -> Snapshot | None:
        return self._replica.snapshot(self._course.step) if self._replica.has_state else self._saved

    def _tell(self, state: State) -> None:
        """Bring the own record up to date.

        Who is rounds behind is no member until it has caught up: three newcomers would be the majority that holds
        another anchor than the worker they have it from.
        """
        if state in ACTIVE and self._watchdog.stalled:
            state = State.STALLED
        elif state in ACTIVE and self._common:
            others = self.membership.others()
            if others and self.round < min(middle_round(others), self._options.rounds) - 1:
                state = State.CATCHING_UP
        # Where everybody has an anchor of its own there is nothing to agree on.
        digest = self._replica.digest_of(self.round) if self._common else ""
        self.membership.update(state=state, round=self.round, digest=digest, round_s=self._course.pace_s)

    def _outcome(self, done: bool) -> Outcome:
        return Outcome(done, self.round, self._meter.tokens, self._replica.snapshot(0).name, self._replica.anchors())
