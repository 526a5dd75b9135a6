"""A worker of a pipeline: which stages it holds, how it comes to hold others, and when it gives them up.

    found or join:  the stage that was asked for, or that needs somebody most; or wait as a spare
    resume:         join if the run lives; else agree with others that come back where it goes on (``agreement``)
    now and then:   is a stage lost?            who takes it follows from what everybody knows (``assignment``)
                    is it this worker?          from a replica, healed from neighbours, or from a checkpoint
                    is a spare's time to save?  the stages' weights as they are now, onto its own disk

Each stage is a swarm of its own (``stage_worker``). This module decides about places and nothing else.
"""

import asyncio
import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from decentral.engine.agreement import Agreement
from decentral.engine.background import Background, unless
from decentral.engine.builder import Builder
from decentral.engine.hello import serve_hello
from decentral.engine.keeping import Keeping
from decentral.engine.membership import Membership
from decentral.engine.moved import MovedStage
from decentral.engine.mover import Mover
from decentral.engine.options import Outcome
from decentral.engine.pipeline_figures import figures_of
from decentral.engine.pipeline_process_options import PipelineProcessOptions as PipelineProcessOptions
from decentral.engine.pipeline_process_options import PipelineProcessParts as PipelineProcessParts
from decentral.engine.places import Places
from decentral.engine.reunion import Known, Reunion
from decentral.engine.slots import Slots
from decentral.engine.stage_worker import StageWorker
from decentral.engine.takeover import Brought, Standing, Takeover
from decentral.errors import (
    ConfigError,
    DataError,
    DecentralError,
    IdentityError,
    IncapableError,
    MismatchError,
    UnreachableError,
)
from decentral.monitor.events import StagePlaced, StageRecovered
from decentral.pipeline.assignment import appointed
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.courier import Courier
from decentral.pipeline.head import HeadLoop
from decentral.pipeline.holders import RETURNS, Holders
from decentral.pipeline.recovery import Source
from decentral.pipeline.stored import AtHand, Lacking, Start
from decentral.swarm.presence import Metrics, Presence, State, named, stages_of
from decentral.types import PeerId

SPARE: Final = "spare"
#: Between two looks at who holds what.
_LOOK_S: Final = 0.5
#: A stage that nobody has held yet waits so long for a joiner before a spare takes it.
_JOINERS_S: Final = 30.0
#: A process that fails says so for so long at most.
_GOODBYE_S: Final = 2.0
#: Between two attempts to take a stage that could not be taken.
_RETRY_S: Final = 2.0
#: What a machine lacks that cannot hold a stage.
_UNFIT: Final = (ConfigError, DataError, IncapableError)


class PipelineProcess:
    """One process of a pipeline.

    Args:
        options: equal on all workers.
        parts: this worker's own.
    """

    def __init__(self, options: PipelineProcessOptions, parts: PipelineProcessParts) -> None:
        self._options = options
        self._pipeline = options.pipeline
        self._parts = parts
        self._me = parts.transport.peer_id
        self._cut = parts.cut
        self._clock = parts.clock
        transport, clock, timing, store = parts.transport, parts.clock, options.timing, parts.store
        self.membership = Membership(
            Presence(self._me, options.run_id, 0, State.JOINING, 0, 0, "", stored=self._stored()),
            metrics=self._metrics,
            transport=transport,
            directory=parts.directory,
            clock=clock,
            identity=parts.identity,
            timing=timing,
            journal=parts.journal,
        )
        pipeline, cut = self._pipeline, self._cut
        self._holders = Holders(self.membership.roster, clock, cut)
        holders = self._holders
        self._slots = Slots(self.membership, holders, clock, cut, timing)
        shape, marks_bytes = parts.blocks.activation_shape, parts.blocks.marks_bytes
        self._courier = Courier(transport, clock, pipeline.codec, shape, cut, timing, marks_bytes)
        self._takeover = Takeover(transport, self._courier, holders, pipeline, cut, timing, clock, store)
        self._agreement = Agreement(
            transport, holders, store, pipeline, cut, timing, lambda: bool(self._stage_workers or self._taking)
        )
        self._places = Places(transport, holders, clock, pipeline, cut, timing)
        self._background = background = Background()
        self._mover = (
            Mover(transport, clock, timing, holders, self.membership, cut, background) if pipeline.moves else None
        )
        self._builder = Builder(options, parts, cut, self._mover, holders, self._courier)
        self._stage_workers: dict[int, StageWorker] = {}
        of = (parts, self._builder, self._agreement, self._takeover, background)
        self._moved = MovedStage(self._stage_workers, *of, self._begin, self._leave)
        self._outcomes: dict[int, Outcome] = {}
        self._taking: set[int] = set()
        self._known: set[int] = set()
        """Stages that somebody has held."""
        self._reserve: frozenset[int] = frozenset()
        """Stages that this worker takes as well if nobody else comes: it has most of them on its disk."""
        self._since = parts.clock.monotonic()
        self._retry_at: dict[int, float] = {}
        self._why: dict[int, str] = {}
        """Why a lost stage that is this worker's to take could not be taken yet."""
        self._unfit: dict[int, str] = {}
        """Why this worker cannot hold a stage."""
        self._is_unplaced = False
        """Whether it came back with nothing to take, and has still to ask where it is needed."""
        self.waits_for = ""
        """Why nothing goes on, of one that comes back; empty if something does."""
        self._recoveries = 0
        self._recovery = ""
        has = (holders, self._agreement, self._takeover.disks, store, self._note_saved)
        self._keeping = Keeping(parts.save_every, parts.guard_bytes, cut, clock, *has)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def found(self) -> None:
        """Found a run: hold the stages that were asked for, else the head."""
        await self._serve()
        await self._take_all(self._parts.wanted or (0,))

    async def join(self, peers: Sequence[PeerId]) -> None:
        """Join the run that ``peers`` are in and hold the stages that were asked for, else the one that they give.

        Raises:
            UnreachableError: none of them answers, or a stage that was asked for cannot be had.
        """
        await self._serve()
        # Building a stage may last longer than a record lives, and who is thought dead is given nothing to do.
        async with Background() as beside:
            beside.begin(self.membership.run())
            await self._come_to(peers)

    async def _come_to(self, peers: Sequence[PeerId]) -> None:
        """Take a place among members of a run that goes on."""

        async def introduce() -> None:
            for peer in peers:
                await self.membership.tell(peer)

        await asyncio.gather(introduce(), self._agreement.listen(peers))
        if wanted := self._parts.wanted:
            await self._take_all(wanted)
        elif (stage := await self._places.ask(peers)) is not None:
            # If it cannot be had now, this worker waits as a spare, whose turn it is should the stage be lost.
            await self._take(stage)
        self._tell()
        if not self._stage_workers and self._mover is None:
            # A spare is needed in a hurry: what it has to import is there by then, and whether it is able is known.
            await self._clock.run(functools.partial(self._builder.compute, self._cut.num_stages, set()))

    async def resume(self, known: Known) -> None:
        """Go on with the run that this worker's disk has checkpoints of.

        If it lives, this worker joins it. Else it waits for those whom it knew, and all go on from the newest step of
        which they have every stage; as long as there is none, it waits for whoever has what is missing.

        Args:
            known: whom this worker knew.

        Raises:
            UnreachableError: the run lives, and a stage that was asked for cannot be had.
        """
        await self._clock.run_on_disk(self._parts.store.verify)
        await self._serve()
        self.membership.update(digest=RETURNS, stored=self._stored())
        async with Background() as beside:
            beside.begin(self.membership.run())
            goes_on = await self._meet(known) or await self._go_on_together()
            while not goes_on:
                await asyncio.sleep(_LOOK_S)
                goes_on = await self._go_on_together()
            self._is_unplaced = not (self._stage_workers or self._parts.wanted)
            self.membership.update(digest="")
            await self.membership.announce()

    async def run(self, stop: asyncio.Event) -> Mapping[int, Outcome]:
        """Train until the run is done or ``stop`` is set; returns what became of the stages that it held to the end.

        Raises:
            DivergedError: a stage's values were not finite again and again.
            IdentityError: another live worker has the same identity.
        """
        try:
            async with self._background as beside:
                beside.begin(self.membership.run())
                for stage_worker in self._stage_workers.values():
                    beside.begin(stage_worker.ended())
                if self._mover is not None:
                    await self._mover.start(self._moved)
                    spare = isinstance(self._parts.wanted, str)
                    self.membership.update(room=0 if spare else await self._clock.run(self._builder.room))
                while not stop.is_set() and not self._is_done():
                    self.membership.check_single()
                    await unless(stop, self._look())
                    await unless(stop, asyncio.sleep(_LOOK_S))
                if self._mover is not None and stop.is_set():
                    await self._mover.leave()
                await self._give_up(self._stage_workers)
                self._tell(State.DONE if not stop.is_set() else State.LEAVING)
                await self.membership.announce()
                return self._outcomes
        except Exception as err:
            if not isinstance(err, IdentityError):
                self._tell(State.LEAVING)
                await self.membership.announce(_GOODBYE_S)
            raise
        finally:
            await self._keeping.stop()
            abandoned = [stage_worker.abandon() for stage_worker in self._stage_workers.values()]
            await asyncio.gather(*abandoned, return_exceptions=True)

    async def save_now(self) -> None:
        """Keep the stages that it holds, each as soon as it stands between two inner steps."""
        held = list(self._stage_workers.values())
        await asyncio.gather(*[stage_worker.worker.save_now() for stage_worker in held])

    async def _serve(self) -> None:
        await self.membership.start()
        await self._places.start()
        await self._agreement.start()
        await self._takeover.start()
        options = self._options
        await serve_hello(self._parts.transport, options.run_id, options.config, self.membership.records)

    def _is_done(self) -> bool:
        """Whether all of its stages have done all steps; of a spare, whether anybody has."""
        if self._stage_workers:
            return all(stage_worker.over for stage_worker in self._stage_workers.values())
        return any(presence.state is State.DONE and presence.holds for presence in self._holders.records())

    # -- places -------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Take what is lost and this worker's to take; bring records, and now and then checkpoints, up to date."""
        if self._mover is not None:
            await self._mover.look()
            if self._mover.under_way:
                return
            self._known.update(range(self._cut.num_stages + 1))
        for stage, stage_worker in self._stage_workers.items():
            if stage_worker.over:
                self._outcomes[stage] = stage_worker.outcome()
                if stage == 0 and self._outcomes[stage].done:
                    self._holders.done = self._me
        self._known |= {stage for presence in self._holders.records() for stage in stages_of(presence.holds)}
        if await self._slots.is_doubled() and 0 in self._stage_workers:
            await self._give_up({0: self._stage_workers[0]})
            if not self._outcomes[0].done:
                del self._outcomes[0]
                await self._take(0)
        waited = self._clock.monotonic() - self._since > _JOINERS_S
        lost = [stage for stage in self._holders.lost() if stage not in self._outcomes]
        lost = [stage for stage in lost if waited or stage in self._known] if not self._holders.is_over() else []
        await self._agreement.look()
        if self._is_all_lost(lost) and not await self._go_on_together():
            return
        if self._is_unplaced and not lost:
            await self._take_if_needed()
        self._takeover.disks.look()
        await self._take_lost(lost, self._reserve if waited else frozenset())
        self._keeping.look(self._kept_for_others())
        self._tell()

    async def _take_lost(self, lost: Sequence[int], reserve: frozenset[int]) -> None:
        """Take those that are this worker's to take: instead of what it holds, and in reserve beside that."""
        chosen = appointed(self._holders.members(), lost)
        extra = [stage for stage in lost if stage in reserve and stage not in chosen]
        mine = [*(stage for stage, peer in chosen.items() if peer == self._me), *extra]
        if mine:
            await self._keeping.stop()
        else:
            self._taking.clear()
        for stage in mine:
            if self._clock.monotonic() >= self._retry_at.get(stage, 0.0):
                if not self._taking and stage not in extra:
                    await self._leave({k: held for k, held in self._stage_workers.items() if k not in mine})
                await self._take_if_fit(stage)
        self._why = {stage: why for stage, why in self._why.items() if stage in mine}

    def _is_all_lost(self, lost: Sequence[int]) -> bool:
        """Whether nobody holds or takes any stage of a run that was under way."""
        if self._mover is not None:
            return False
        nobody = len(lost) == self._cut.num_stages + 1 and not any(m.takes for m in self._holders.members())
        return nobody and not self._agreement.origin and bool(self._known)

    # -- coming back all together -------------------------------------------------------------------------------------

    async def _meet(self, known: Known) -> bool:
        """Wait for others that come back; whether there was a run that goes on, and this worker is in it now."""
        reunion = Reunion(known, self.membership, self._clock, self._options.timing.beat_s, self._explain)
        while members := (await reunion.found()).members:
            there = await self._agreement.follow(members)
            if there:
                await self._go_on(self._still_free(await self._agreement.met()))
                if not self._stage_workers:
                    await self._come_to(there)
                return True
            for peer in members:  # what was heard of them is older than the end of the run
                self._holders.bury(peer)
        return False

    async def _go_on_together(self) -> bool:
        """Take what this worker is to take where the run goes on; whether it goes on."""
        start = await self._agreement.reached()
        if isinstance(start, Lacking):
            self._explain(str(start))
            # Before its first checkpoint a run has lost nothing that matters: its stages are drawn again.
            return not start.step and self._parts.store.stored() == ()
        self._explain("")
        # Whoever has a stage in full takes it, or has most of it; for the others nobody is waited for.
        claimed = {stage for stages in start.takes.values() for stage in stages}
        self._known = set(range(self._cut.num_stages + 1)) - claimed
        await self._go_on(start)
        return True

    async def _go_on(self, start: Start) -> None:
        """Take those stages that are this worker's to take at the step where the run goes on."""
        me, wanted = self._me, self._parts.wanted
        self._reserve = frozenset(stage for stage, peer in start.reserve.items() if peer == me)
        self._since = self._clock.monotonic()
        mine = start.takes.get(me, frozenset())
        if wanted and not isinstance(wanted, str):
            mine = (mine | start.cuts) & frozenset(wanted)
        if self._mover is not None:  # blocks are dealt out by the head
            mine &= {0}
        for stage in sorted(mine):
            others = [peer for peer, stages in start.takes.items() if stage in stages and peer != me]
            await self._take_saved(stage, start.step, others)
        self._agreement.over()
        self._tell()

    async def _take_if_needed(self) -> None:
        """Ask for a place, now that every stage has a holder again."""
        self._is_unplaced = False
        others = [presence.peer for presence in self._holders.present() if presence.holds]
        try:
            stage = await self._places.ask(others)
        except UnreachableError:
            self._is_unplaced = True
        else:
            if stage is not None:
                await self._take_if_fit(stage)

    async def _take_saved(self, stage: int, step: int, others: Sequence[PeerId]) -> None:
        """Go on with a stage where it was saved; if it cannot be, it is a lost stage as any other."""
        began = self._clock.monotonic()
        self._taking.add(stage)
        self._tell(self.membership.own.state)
        await self.membership.announce()
        try:
            compute = await self._clock.run(functools.partial(self._builder.compute, stage, set(self._stage_workers)))
            at_hand = await self._agreement.at_hand(self._cut.span(stage), step)
            brought = await self._takeover.saved(compute, at_hand) if at_hand.age == 0 else "its checkpoint is gone"
            if isinstance(brought, str) or brought.position is None:
                raise ValueError(brought)
        except (*_UNFIT, ValueError) as err:
            self._taking.discard(stage)
            self._why[stage] = str(err)
            return
        position = brought.position
        if stage == 0:
            self.membership.update(slot=position.slot)
        standing = Standing(step, position.batch - 1, position.loss)
        await self._begin(stage, compute, replace(brought, together=True), standing, began, together=others)

    def _still_free(self, start: Start) -> Start:
        """Of what was to be taken that which nobody holds or is about to, where others have begun without this one."""
        taken = {stage for member in self._holders.members() for stage in member.takes}
        free = frozenset(set(self._holders.lost()) - taken)
        takes = {peer: stages & free for peer, stages in start.takes.items()}
        return replace(start, takes=takes, cuts=start.cuts & free)

    def _explain(self, what: str) -> None:
        self.waits_for = what

    async def _take_all(self, wanted: Sequence[int] | str) -> None:
        """Take stages at the start.

        Raises:
            UnreachableError: one of them cannot be had.
        """
        for stage in () if isinstance(wanted, str) else wanted:
            await self._take(stage)
            if stage in self._why:
                raise UnreachableError(
                    f"stage {stage} cannot be brought here: {self._why[stage]}",
                    hint="`decentral status ADDR` shows who holds what; without --stage K a worker takes what it can.",
                )
        self._tell()

    async def _give_up(self, stage_workers: Mapping[int, StageWorker]) -> None:
        """Leave stages in order."""
        for stage_worker in stage_workers.values():
            stage_worker.ask_to_stop()
        for stage, stage_worker in list(stage_workers.items()):
            await stage_worker.ended()
            self._outcomes[stage] = stage_worker.outcome()
            if not self._outcomes[stage].done:
                self._stage_workers.pop(stage, None)
                self._tell(State.TRAINING)

    async def _leave(self, stage_workers: Mapping[int, StageWorker]) -> None:
        """Leave stages that go on elsewhere: what they were here is no outcome, and this worker may be needed there."""
        await self._give_up(stage_workers)
        self._outcomes = {stage: outcome for stage, outcome in self._outcomes.items() if outcome.done}

    # -- taking a stage -----------------------------------------------------------------------------------------------

    async def _take_if_fit(self, stage: int) -> None:
        """Bring a lost stage here; if this worker lacks the data or the memory for it, another one is to take it."""
        if self._mover is not None and stage == 0:
            await self._mover.settle()
        try:
            async with self._mover.lock if self._mover is not None else contextlib.nullcontext():
                if self._mover is None or stage in self._holders.lost():  # nobody has been given it meanwhile
                    await self._take(stage)
        except _UNFIT as err:
            self._taking.discard(stage)
            self._tell(self.membership.own.state)
            self._note_unfit(stage, err)
            await self.membership.announce()

    def _kept_for_others(self) -> set[int]:
        """Stages whose checkpoints this worker keeps: all of a spare, else as many as it protects after its own."""
        mine, number = self._stage_workers.keys() | self._taking, self._cut.num_stages + 1
        after = {(stage + each) % number for stage in mine for each in range(1, self._parts.protect + 1)}
        return after - mine if mine else set(range(number))

    def _note_saved(self) -> None:
        self.membership.update(stored=self._stored())

    def _stored(self) -> str:
        stored = {one.span for one in self._parts.store.stored()}
        return named(s for s in range(self._cut.num_stages + 1) if self._cut.span(s) in stored)

    def _note_unfit(self, stage: int, err: DecentralError) -> None:
        self._unfit[stage] = err.message
        self.membership.update(unfit=named(self._unfit))

    async def _take(self, stage: int) -> None:
        """Bring a stage here and run it; what keeps that from happening is noted, and tried again later."""
        began = self._clock.monotonic()
        self._taking.add(stage)
        self._tell(self.membership.own.state)
        if stage == 0:
            await self._slots.take()
        else:  # whoever does not answer now is known to be gone when it is decided whom to ask
            await asyncio.gather(*[self.membership.tell(peer) for peer in self._others(stage)])
        slot = self.membership.own.slot
        await self.membership.announce()
        compute = await self._clock.run(functools.partial(self._builder.compute, stage, set(self._stage_workers)))
        origin = self._agreement.origin or self._agreement.heard
        ask = self._takeover.settle if stage == 0 else self._takeover.standing
        standing = await ask(slot, origin)
        at_hand = AtHand()
        if not self._others(stage):
            at_hand = await self._agreement.at_hand(self._cut.span(stage), standing.step)
        recovery = self._takeover.decide(stage, standing.step, at_hand.age)
        brought = await self._takeover.bring(recovery, compute, slot, standing, at_hand)
        if isinstance(brought, str) and at_hand.age:  # what cannot be fetched or used is as if it were not there
            recovery = self._takeover.decide(stage, standing.step)
            brought = await self._takeover.bring(recovery, compute, slot, standing, AtHand())
        if isinstance(brought, str):
            self._why[stage] = brought
            self._retry_at[stage] = self._clock.monotonic() + _RETRY_S
            return
        await self._begin(stage, compute, brought, standing, began)

    async def _begin(
        self,
        stage: int,
        compute: HeadCompute | StageCompute,
        brought: Brought,
        standing: Standing,
        began: float,
        together: Sequence[PeerId] = (),
    ) -> None:
        """Run a stage whose weights are here, or at its replicas."""
        slot, recovery = self.membership.own.slot, brought.recovery
        stage_worker = await self._builder.stage_worker(
            stage, compute, brought, slot, standing, began_at=began, tell=self._note_recovery
        )
        replicas = self._others(stage) if recovery.source is Source.REPLICA else []
        try:
            if recovery.source is Source.REPLICA and not replicas:
                raise UnreachableError("its last holder was lost just now")
            await stage_worker.start(standing.step, replicas, together)
        except (UnreachableError, MismatchError) as err:
            await stage_worker.abandon()
            self._why[stage] = err.message
            self._retry_at[stage] = self._clock.monotonic() + _RETRY_S
            return
        self._why.pop(stage, None)
        self._stage_workers[stage], self._is_unplaced = stage_worker, False
        if self._background.is_open:  # else it is not looked after before the process runs
            self._background.begin(stage_worker.ended())
        self._taking.discard(stage)
        seconds = self._clock.monotonic() - began
        self._parts.journal.record(
            StagePlaced(stage, slot, recovery.source, brought.donors, standing.step, brought.received_bytes, seconds)
        )
        self._tell(State.TRAINING)
        await self.membership.announce()

    def _others(self, stage: int) -> list[PeerId]:
        """Other holders of a stage."""
        return [peer for peer in self._holders.of(stage) if peer != self._me]

    def _note_recovery(self, event: StageRecovered) -> None:
        self._recoveries += 1
        donors = f" of {len(event.donors)}" if len(event.donors) > 1 else ""
        self._recovery = (
            f"stage {event.stage}: {event.source}{donors} at step {event.step}, "
            f"loss {event.loss_before:.3f} -> {event.loss_after:.3f}, {event.seconds:.0f} s"
        )

    # -- what others hear ---------------------------------------------------------------------------------------------

    def _tell(self, state: State | None = None) -> None:
        """Bring the own record up to date; without a state, with that of one that holds stages, or holds none."""
        state = state or (State.TRAINING if self._stage_workers else State.JOINING)
        rounds = [stage_worker.worker.membership.own.round for stage_worker in self._stage_workers.values()]
        changes = {
            "state": state,
            "round": min(rounds, default=self.membership.own.round),
            "round_s": max(
                (stage_worker.worker.membership.own.round_s for stage_worker in self._stage_workers.values()),
                default=0.0,
            ),
            "holds": named(self._stage_workers.keys() | self._moved.frozen),
            "takes": named(self._taking - set(self._stage_workers)),
        }
        own = self.membership.own
        if any(getattr(own, name) != value for name, value in changes.items()):
            self.membership.update(**changes)

    def _metrics(self) -> Metrics:
        figures, traffic = figures_of(self._stage_workers, self._parts.device), self._parts.transport.traffic()
        return msgspec.structs.replace(
            figures,
            sent_bytes=traffic.sent_bytes,
            received_bytes=traffic.received_bytes,
            activation_bytes=self._courier.sent_bytes,
            recoveries=self._recoveries,
            recovery=self._recovery[:200],
            reason=self._reason(figures.reason),
            note=self._parts.note(),
        )

    def _reason(self, own: str) -> str:
        """Why this worker does not contribute."""
        reasons = [f"stage {stage} cannot be brought back: {why}" for stage, why in sorted(self._why.items())]
        reasons += [f"cannot hold stage {stage}: {why}" for stage, why in sorted(self._unfit.items())]
        heads = [worker.loop for worker in self._stage_workers.values() if isinstance(worker.loop, HeadLoop)]
        reasons += [why for why in (*(head.waits_for for head in heads), self.waits_for) if why]
        return (reasons[0] if reasons else own)[:200]
