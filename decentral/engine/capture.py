"""Takes a worker's state between two inner steps, so that little of the training's time is spent on it.

1. On the event loop, at one moment: references to anchors, outer states and all that is on its way. These tensors are
   never changed in place, so nothing is copied.
2. On the clock's thread, for which training stands still: copies of the local parameters and of the trainer's state.
3. On the second thread: what there is to compute, and the names.

The way back is ``resume``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decentral.engine.course import Course
from decentral.engine.facts import EndedFacts, Facts, FragmentFacts, Made, SyncFacts
from decentral.engine.fragment import Fragment, Pending
from decentral.engine.options import Parts
from decentral.engine.replica import Replica
from decentral.engine.syncs import InFlightSync, InFlightSyncs, Kept, Landing, Stepped
from decentral.exchange.api import Exchange, Memory
from decentral.ports.trainer import Model, Stateful
from decentral.state import draws
from decentral.state.snapshot import Snapshot
from decentral.state.worker_state import WorkerState
from decentral.tensors.finite import all_finite
from decentral.tensors.layout import Layout
from decentral.tensors.nested import mapped

#: Roles of tensors in ``WorkerState.own`` (see ``engine.fragment``). Those of the exchange have its own in front.
LOCAL, BASE, LAUNCHED, CARRIED = "local", "base", "launched", "carried"
ARRIVED, ARRIVED_FROM = "arrived", "arrived_from"
AHEAD, LEAD = "ahead", "lead"
EXCHANGE = "exchange."


@dataclass(frozen=True, slots=True)
class Moment:
    """What the worker itself says of the moment."""

    round: int
    tokens: int
    since: int
    num_members: Sequence[int]
    closed: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A worker at one moment."""

    moment: Moment
    step: int
    course: Mapping[str, float]
    fragments: list[Fragment]
    syncs: list[tuple[InFlightSync, Landing | None]]
    """With how each had ended, if it had."""
    kept_N: tuple[Tensor | None, ...]
    memory: Memory
    local_N: list[Tensor]
    trainer: Mapping[str, Any]
    held_s: float
    """For so long training stood still."""


class Capture:
    """Takes pictures of one worker, and makes states of them.

    Args:
        made: by what.
        layout: how the parameters are cut.
        parts: the user's model, and the clock for its thread.
        replica: anchors, outer states and work.
        syncs: what is on its way.
        course: where the worker is.
        exchange: remembers things of its own.
    """

    def __init__(
        self,
        made: Made,
        layout: Layout,
        parts: Parts,
        replica: Replica,
        syncs: InFlightSyncs,
        course: Course,
        exchange: Exchange,
    ) -> None:
        self._made = made
        self._layout = layout
        self._model = parts.model
        self._device = parts.device
        self._clock = parts.clock
        self._replica = replica
        self._syncs = syncs
        self._course = course
        self._exchange = exchange
        self._validated = ("", math.nan)

    def validated(self, digest: str, loss: float) -> None:
        """Anchors and outer states of this digest have this loss."""
        self._validated = digest, loss

    async def picture(self, moment: Moment) -> Picture:
        """The worker as it is now, while it neither trains nor launches nor lands anything."""
        began = self._clock.monotonic()
        async with self._syncs.stepping:  # an outer step is in it with what it came from, or not at all
            fragments = [each.copy() for each in self._replica.fragments]
            syncs = [(sync, sync.landing) for sync in self._syncs]
            kept_N, memory, course = self._replica.kept, self._exchange.memory(), self._course.facts()
        local_N, trainer = await self._clock.run(
            lambda: (self._replica.local(), trainer_state(self._model, self._device))
        )
        held_s = self._clock.monotonic() - began
        return Picture(moment, self._course.step, course, fragments, syncs, kept_N, memory, local_N, trainer, held_s)

    def state(self, picture: Picture) -> WorkerState:
        """The state of a picture, on any thread."""
        moment, fragments = picture.moment, picture.fragments
        own: dict[str, Tensor] = {}
        found = [self._sync(picture, sync, landing, own) for sync, landing in picture.syncs]
        for fragment, (of, local_N) in enumerate(zip(fragments, picture.local_N, strict=True)):
            self._put(own, LOCAL, fragment, self._finite(of, local_N))
            self._put(own, BASE, fragment, None if of.base_N is of.state.anchor_N else of.base_N)
            self._put(own, CARRIED, fragment, of.carried_N)
            if (arrived := of.arrived) is not None:
                self._put(own, ARRIVED, fragment, None if arrived.anchor_N is of.state.anchor_N else arrived.anchor_N)
                self._put(own, ARRIVED_FROM, fragment, None if arrived.old_N is of.base_N else arrived.old_N)
            if of.ahead is not None:
                self._put(own, AHEAD, fragment, of.ahead.delta_N)
                self._put(own, LEAD, fragment, of.ahead.buffer_N)
            self._put(own, self._made.keeps, fragment, picture.kept_N[fragment])
        for role, tensors in picture.memory.tensors.items():
            for fragment, values_N in tensors.items():
                self._put(own, f"{EXCHANGE}{role}", fragment, values_N)
        anchors: dict[str, Tensor] = {}
        outer: dict[str, Tensor] = {}
        for fragment, of in enumerate(fragments):
            anchors |= self._layout.scatter(of.state.anchor_N, fragment)
            for number, buffer_N in enumerate(of.state.outer.buffers_N):
                self._put(outer, str(number), fragment, buffer_N)
        facts = Facts(
            made=self._made,
            fragments=tuple([_facts(of, members) for of, members in zip(fragments, moment.num_members, strict=True)]),
            syncs=tuple([sync for sync in found if sync is not None]),
            course={name: value if math.isfinite(value) else 0.0 for name, value in picture.course.items()},
            since=moment.since,
            exchange=dict(picture.memory.facts),
        )
        digest = Snapshot(picture.step, tuple([of.state for of in fragments])).name
        name, loss = self._validated
        return WorkerState(
            step=picture.step,
            round=moment.round,
            tokens=moment.tokens,
            digest=digest,
            closed=moment.closed and not any(of.doubtful for of in picture.fragments),
            anchors=anchors,
            outer=outer,
            own=own,
            facts=facts.to_json(),
            trainer=picture.trainer,
            val_loss=loss if name == digest else math.nan,
        )

    def _put(self, tensors: dict[str, Tensor], role: str, fragment: int, values_N: Tensor | None) -> None:
        if values_N is not None:
            for name, values in self._layout.scatter(values_N, fragment).items():
                tensors[f"{role}/{name}"] = values

    def _sync(
        self, picture: Picture, sync: InFlightSync, landing: Landing | None, own: dict[str, Tensor]
    ) -> SyncFacts | None:
        """A sync as it is to go on; ``None`` for one whose work is given back instead."""
        fragment, of, end = sync.key.fragment, picture.fragments[sync.key.fragment], landing and landing.end
        if isinstance(end, Kept):
            of.give_back()
            of.skip(end.key.round)
            return None
        key, taken, ended = sync.key, sync.taken, None
        if taken is None:  # it is taken in already
            return None
        delta_N = taken.delta_N()
        if isinstance(end, Stepped) and landing is not None:
            key, ended = end.key, _ended(end, landing)
        elif of.state.round > key.round:  # it was stopped right after its outer step
            return None
        elif not all_finite(delta_N.numpy()):
            of.launched = Pending()
            return None
        if of.ahead is None or ended is None:
            self._put(own, LAUNCHED, fragment, delta_N)
        return SyncFacts(key.round, fragment, sync.step, sync.group, taken.tokens, taken.steps, ended)

    def _finite(self, of: Fragment, local_N: Tensor) -> Tensor:
        """The local parameters, or if they are not finite what a launch would replace them by."""
        if all_finite(local_N.numpy()):
            return local_N
        of.lose_work()
        of.base_N = of.state.anchor_N
        return of.state.anchor_N


def _facts(of: Fragment, num_members: int) -> FragmentFacts:
    outer = of.state.outer
    return FragmentFacts(
        round=of.state.round,
        num_steps=outer.num_steps,
        counted=outer.counted,
        pending=(of.pending.tokens, of.pending.steps),
        launched=(of.launched.tokens, of.launched.steps),
        diverged=of.launches_diverged,
        ends=tuple(of.ends.items()),
        num_members=num_members,
        share=0.0 if of.ahead is None else of.ahead.share,
        arrived=None if of.arrived is None else of.arrived.missed,
    )


def _ended(end: Stepped, landing: Landing) -> EndedFacts:
    mixed, applied = end.judged.mixed, end.applied
    return EndedFacts(
        members=mixed.members,
        uncounted=end.judged.uncounted,
        missed=mixed.missed,
        digest=applied.digest,
        delta_norm=applied.delta_norm,
        residual_norm=applied.residual_norm,
        excuse=landing.excuse,
        late=not landing.in_time,
    )


def trainer_state(model: Model, device: str) -> dict[str, Any]:
    """A copy of the trainer's own state and of the random state that it may draw from; empty if it says nothing."""
    if not isinstance(model, Stateful):
        return {}
    state = mapped(model.state_dict(), lambda _, value: value.detach().to("cpu", copy=True))
    return {"state": state, "draws": draws.taken(device)}


def load_trainer_state(model: Model, device: str, saved: Mapping[str, Any]) -> None:
    """Set the trainer to a state of an earlier life, if there is one and it can."""
    if not saved or not isinstance(model, Stateful):
        return
    if saved["state"]:
        model.load_state_dict(saved["state"])
    draws.put_back(saved["draws"], device)
