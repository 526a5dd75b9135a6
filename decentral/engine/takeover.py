"""Bringing a stage here: what it is made of, who is asked for it, and how far the run is.

Decisions are those of ``pipeline.recovery``; this is how they are carried out. Whatever cannot be had now is a text
that says why, and is tried again by the caller. Legend: N = values of a stage.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from decentral.engine.disks import Disks, Store
from decentral.engine.recut import moved_on, recut
from decentral.errors import FrameError, MismatchError
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.courier import COMMIT, SETTLE, Courier, Undelivered
from decentral.pipeline.handover import fetch_kept, fetch_live, shapes_signature, values_of
from decentral.pipeline.holders import Holders
from decentral.pipeline.options import PipelineOptions
from decentral.pipeline.packets import Commit, Settle, Settled
from decentral.pipeline.parcels import most_bytes
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.position import Position
from decentral.pipeline.recovery import Recovery, Source, blend, decide
from decentral.pipeline.scoped import Scoped
from decentral.pipeline.stored import AtHand
from decentral.ports.clock import Clock
from decentral.ports.transport import Transport
from decentral.state.download.downloader import Download, NoDownload
from decentral.state.worker_state import WorkerState
from decentral.swarm.message import from_wire, to_wire
from decentral.swarm.timing import Timing
from decentral.tensors.layout import Layout
from decentral.types import PeerId

#: A question or a commit that may have been lost on its way is repeated.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the run is, as the holders of its stages say."""

    step: int = 0
    """The next one."""
    batch: int = -1
    """Last committed batch of the slot that was asked for."""
    loss: float = math.nan
    """Of the last batch."""
    norms: Mapping[tuple[int, PeerId], float] = field(default_factory=dict)
    """Of the last mean gradient, by stage and replica."""


@dataclass(frozen=True, slots=True)
class Brought:
    """Weights that are in place."""

    recovery: Recovery
    donors: tuple[PeerId, ...]
    received_bytes: int = 0
    state: WorkerState | None = None
    """Of an earlier life, at the step at which the run is now."""
    position: Position | None = None
    """Where the loop goes on; ``None`` to begin where the run is."""
    together: bool = False
    """Whether all stages come back at once: there is nothing to heal."""


class Takeover:
    """Brings stages to this worker.

    Args:
        transport: to the peers.
        courier: for the questions about slots.
        holders: who lives.
        options: of the pipeline.
        cut: the stages there are.
        timing: deadlines of downloads.
        clock: of downloads, and for its threads.
        store: checkpoints.
    """

    def __init__(
        self,
        transport: Transport,
        courier: Courier,
        holders: Holders,
        options: PipelineOptions,
        cut: CutInForce,
        timing: Timing,
        clock: Clock,
        store: Store,
    ) -> None:
        self._transport = transport
        self._courier = courier
        self._holders = holders
        self._options = options
        self._cut = cut
        self._timing = timing
        self._clock = clock
        self._store = store
        self.disks = Disks(transport, store, cut, timing, clock)

    async def start(self) -> None:
        """Begin to give others what is on this worker's disk."""
        await self.disks.start()

    def decide(self, stage: int, step: int, age: int | None = None) -> Recovery:
        """What ``stage`` is to be made of, as things are now, with the run at ``step``.

        Args:
            stage: 0 is the head.
            step: the next one.
            age: of the newest checkpoint at hand (``AtHand``).
        """
        told = any(presence.metrics.step > 0 or presence.round > 0 for presence in self._holders.records())
        told |= self._holders.is_coming_back()
        num_stages, me = self._cut.num_stages, self._courier.peer_id
        # A neighbour that this worker holds itself serves as well as another's.
        alive = {k for k in range(num_stages + 1) if set(self._holders.of(k)) - ({me} if k == stage else set())}
        return decide(
            stage,
            num_stages=num_stages,
            alive=alive,
            healing=self._options.healing,
            started=told or step > 0 or age is not None,
            kept={1, num_stages} if self._options.swap else set(),
            step=step,
            age=age,
        )

    async def standing(self, slot: int, origin: int) -> Standing:
        """Ask all holders of all stages how far they are.

        If none is left, a run goes on from the step ``origin``; a head has drawn a batch for every step before it.
        """
        answers = await self._ask(slot)
        losses = [answer.loss for answer in answers.values() if math.isfinite(answer.loss)]
        return Standing(
            step=max((answer.step for answer in answers.values()), default=origin),
            batch=max((answer.batch for answer in answers.values()), default=origin - 1),
            loss=losses[-1] if losses else math.nan,
            norms={hop: answer.grad_norm for hop, answer in answers.items()},
        )

    async def settle(self, slot: int, origin: int) -> Standing:
        """Make all holders agree on the last batch of a slot whose head is gone.

        Its head committed a batch only when all had counted all of it. So if one holder has it, the others may count
        theirs; if none has it, it was counted nowhere and is drawn again.
        """
        for _ in range(_TRIES):
            answers = await self._ask(slot)
            batch = max((answer.batch for answer in answers.values()), default=-1)
            step = max((answer.step for answer in answers.values()), default=0)
            commit = to_wire(Commit(slot, batch, max(0, step - 1), None, math.nan, 0))
            behind = [(stage, peer) for (stage, peer), answer in answers.items() if answer.batch < batch]
            if not behind:
                break
            await asyncio.gather(*[self._courier.ask(peer, stage, COMMIT, commit) for stage, peer in behind])
        return await self.standing(slot, origin)

    async def bring(
        self,
        recovery: Recovery,
        compute: StageCompute | HeadCompute,
        slot: int,
        standing: Standing,
        at_hand: AtHand,
    ) -> Brought | str:
        """Fill the weights of ``compute``, or fetch the state that does; in words why they cannot be had now.

        A replica's weights are not brought here: who has one joins the swarm of its stage.
        """
        layout = Layout.of(compute.parameters())
        match recovery.source:
            case Source.NOTHING:
                return "its neighbours are gone as well, and nobody has a checkpoint"
            case Source.INITIAL | Source.REPLICA | Source.MOVED:
                return Brought(recovery, ())
            case Source.CHECKPOINT:
                return await self.saved(compute, at_hand, standing, slot)
            case Source.BLEND:
                return await self._blend(recovery, compute, layout, standing)
            case Source.COPY | Source.KEPT:
                copied = await self._copy(recovery, compute, layout, slot)
                if isinstance(copied, str) and at_hand.parts:
                    # Neighbours of a head that has not counted a batch since they came back have no copy of it.
                    return await self.saved(compute, at_hand, standing, slot)
                return copied

    async def saved(
        self,
        compute: StageCompute | HeadCompute,
        at_hand: AtHand,
        standing: Standing | None = None,
        slot: int = 0,
    ) -> Brought | str:
        """A stage with all that its checkpoints have, cut out of them; in words why it cannot be had.

        Args:
            compute: knows its parameters.
            at_hand: what it is made of.
            standing: where the run is that has not waited for it; ``None`` if all go on where they were saved.
            slot: the data that a head draws from now on.
        """
        parameters, me = compute.parameters(), self._courier.peer_id
        span, parts = self._cut.span_of(parameters), at_hand.parts
        found = await asyncio.gather(*[self.disks.state(part, span, most_bytes(parameters)) for part in parts])
        if problems := [each for each in found if isinstance(each, str)]:
            return "; ".join(problems)
        states = [each for each in found if isinstance(each, WorkerState)]
        donors = tuple(dict.fromkeys(me if me in part.peers else part.peers[0] for part in parts))
        try:
            state = await self._clock.run_aside(lambda: recut(states, parameters))
            position = Position.of(state.trainer.get("state", {}))
            if standing is not None and (at_hand.age or slot != position.slot):
                position = Position(slot=slot, batch=standing.batch + 1)
                state = moved_on(state, standing.step, position)
        except (MismatchError, ValueError) as err:
            return f"its checkpoint at step {parts[0].stored.step} cannot be used: {err}"
        return Brought(Recovery(Source.CHECKPOINT), donors, state=state, position=position)

    async def _blend(
        self, recovery: Recovery, compute: StageCompute | HeadCompute, layout: Layout, standing: Standing
    ) -> Brought | str:
        signature, numel = shapes_signature(compute.parameters()), layout.numel(0)
        below, above = await asyncio.gather(*[self._live(stage, signature, numel) for stage in recovery.stages])
        if isinstance(below, NoDownload) or isinstance(above, NoDownload):
            return "; ".join(each.why for each in (below, above) if isinstance(each, NoDownload))
        hops = zip(recovery.stages, (below.donor, above.donor), strict=True)
        norm_below, norm_above = (standing.norms.get(hop, math.nan) for hop in hops)
        healed_N = blend(values_of(below), values_of(above), norm_below, norm_above, self._options.norm)
        compute.load(layout.scatter(healed_N, 0))
        return Brought(recovery, (below.donor, above.donor), below.received_bytes + above.received_bytes)

    async def _copy(
        self, recovery: Recovery, compute: StageCompute | HeadCompute, layout: Layout, slot: int
    ) -> Brought | str:
        signature, numel = shapes_signature(compute.parameters()), layout.numel(0)
        found: Download | NoDownload = NoDownload("nobody has a copy")
        for stage in recovery.stages:
            if recovery.source is Source.KEPT:
                scope, holders = self._scope(stage), self._holders.of(stage)
                one = await fetch_kept(scope, slot, holders, signature, numel, self._timing, self._clock)
            else:
                one = await self._live(stage, signature, numel)
            # Of copies of a head the newest counts: one of them may have been made by a keeper that came late.
            if isinstance(found, NoDownload) or (isinstance(one, Download) and one.head.step > found.head.step):
                found = one
        if isinstance(found, NoDownload):
            return found.why
        compute.load(layout.scatter(values_of(found), 0))
        return Brought(recovery, (found.donor,), found.received_bytes)

    async def _live(self, stage: int, signature: str, numel: int) -> Download | NoDownload:
        holders = self._holders.of(stage)
        return await fetch_live(self._scope(stage), holders, signature, numel, self._timing, self._clock)

    def _scope(self, stage: int) -> Scoped:
        return Scoped(self._transport, str(stage))

    async def _ask(self, slot: int) -> dict[tuple[int, PeerId], Settled]:
        """The answers of all holders that answer."""
        hops = [(k, peer) for k in range(1, self._cut.num_stages + 1) for peer in self._holders.of(k)]
        request = to_wire(Settle(slot))
        replies = await asyncio.gather(*[self._ask_one(stage, peer, request) for stage, peer in hops])
        return {hop: reply for hop, reply in zip(hops, replies, strict=True) if reply is not None}

    async def _ask_one(self, stage: int, peer: PeerId, request: bytes) -> Settled | None:
        """The answer of one, asked again if a message was lost."""
        for _ in range(_TRIES):
            reply = await self._courier.ask(peer, stage, SETTLE, request)
            if not isinstance(reply, Undelivered):
                try:
                    return from_wire(Settled, reply)
                except FrameError:
                    return None
            if reply.gone:
                self._holders.bury(peer)
                break
        return None
