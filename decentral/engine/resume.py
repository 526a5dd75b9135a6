"""From a worker's state back to what its parts go on from; the way there is ``capture``.

A state is read as it was made. What is on its way then either goes on, bit for bit, or is *settled*: given back as work
in the local parameters that no round has counted. If the run is cut, mixed or stepped otherwise now, the settled state
is cut again, parameter by parameter.

Legend: N = values in a fragment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decentral.engine.capture import (
    AHEAD,
    ARRIVED,
    ARRIVED_FROM,
    BASE,
    CARRIED,
    EXCHANGE,
    LAUNCHED,
    LEAD,
    LOCAL,
    load_trainer_state,
)
from decentral.engine.facts import Facts, Made, Span, SyncFacts, unreadable
from decentral.engine.fragment import Ahead, Arrived, Fragment, Pending, Restored, Taken
from decentral.engine.judge import TakeStep
from decentral.engine.options import Parts, RunOptions
from decentral.engine.replica import Applied
from decentral.engine.syncs import Landing, Stepped
from decentral.errors import FrameError
from decentral.exchange.api import Exchange, Memory, Verdict
from decentral.monitor.events import Resumed
from decentral.outer.blend import rebase
from decentral.outer.rule import Mixed, OuterState
from decentral.schedule.plan import SyncPlan
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.state.worker_state import WorkerState
from decentral.tensors.layout import Layout
from decentral.types import SyncKey


@dataclass(frozen=True, slots=True)
class Sending:
    """A sync that goes on: see ``InFlightSyncs.resume``."""

    key: SyncKey
    step: int
    group: float
    taken: Taken
    landing: Landing | None


@dataclass(frozen=True, slots=True)
class Comeback:
    """What a worker goes on from."""

    replica: Restored
    syncs: list[Sending]
    memory: Memory | None
    """Of the exchange; ``None`` to begin anew."""
    facts: Facts
    num_members: list[int]
    over: "CarriedOver"
    saved: WorkerState
    work_steps: int
    """Inner steps that no round has counted, of the fragment that waits longest."""

    def remind(self, exchange: Exchange) -> None:
        """The exchange goes on from its memory.

        Raises:
            MismatchError: it is not what this release writes.
        """
        if self.memory is None:
            return
        try:
            exchange.remember(self.memory, [of.state.anchor_N for of in self.replica.fragments])
        except (KeyError, TypeError, ValueError, FrameError) as err:
            raise unreadable(err) from err

    @property
    def rounds(self) -> list[int]:
        """The next round of every fragment."""
        return [of.state.round for of in self.replica.fragments]

    @property
    def snapshot(self) -> Snapshot:
        """What this worker has to give of it, and need not be given."""
        return Snapshot(self.saved.step, tuple([of.state for of in self.replica.fragments]))

    def event(self, round: int, work_steps: int) -> Resumed:
        """What is told of it, once a worker goes on in a round with so many inner steps of local work."""
        saved, dropped = self.saved, self.work_steps - work_steps
        return Resumed(saved.step, round, saved.tokens, work_steps, dropped, self.over.kept, self.over.anew)


def come_back(state: WorkerState, options: RunOptions, parameters: Mapping[str, Tensor], *, go_on: bool) -> Comeback:
    """What a worker goes on from.

    Args:
        state: of its earlier life.
        options: of the run as it is now.
        parameters: of the model; only names and shapes are read.
        go_on: whether what was on its way may go on: nobody has gone on without this worker.

    Raises:
        MismatchError: the state is another model's or another release's.
    """
    facts = Facts.of(state)
    layout = Layout.of(parameters, options.plan.num_fragments, options.pattern)
    made = Made.by(options, layout, options.feedback(layout.num_fragments).keeps)
    old = Layout.cut_as(parameters, facts.made.shape.names)
    restored, taken = _read(state, facts, old)
    for of in restored.fragments:
        of.doubtful = not state.closed
    same = _is_same(facts, made)
    _land_passed(restored, facts.syncs)
    if go_on and same:
        syncs = [_sending(sync, restored.fragments[sync.fragment], taken.get(sync.fragment)) for sync in facts.syncs]
    else:
        syncs = []
        _settle(restored, facts.syncs, taken)
    if not same:
        restored = _cut_again(restored, old, layout, options.plan.rounds_after(state.step))
    _refit(restored, facts.made, made, exact=same)
    num_members = [each.num_members for each in facts.fragments] if same else [0] * layout.num_fragments
    memory = _memory(state, facts, old) if go_on and same else None
    over = carried_over(state, options, parameters)
    work_steps = max(of.pending.steps for of in restored.fragments)
    return Comeback(restored, syncs, memory, facts, num_members, over, state, work_steps)


def _is_same(facts: Facts, made: Made) -> bool:
    """Whether what is on its way is good for a worker that is made like this."""
    return made.shape == facts.made.shape and not facts.cut_of


def bring_back(state: WorkerState, options: RunOptions, parts: Parts, *, go_on: bool) -> Comeback:
    """See ``come_back``; and the trainer goes on from its own state at once. On the clock's thread."""
    back = come_back(state, options, parts.model.parameters(), go_on=go_on)
    load_trainer_state(parts.model, parts.device, state.trainer)
    return back


def _read(state: WorkerState, facts: Facts, layout: Layout) -> tuple[Restored, dict[int, Tensor]]:
    """Everything as it was, and the pseudo-gradients on their way, by fragment."""
    fragments, local_N, kept_N, taken = [], [], [], {}
    for fragment, each in enumerate(facts.fragments):
        anchor_N = layout.gather(state.anchors, fragment)
        numbers = range(len(facts.made.buffers))
        outer = OuterState(
            tuple([_gather(state.outer, str(number), layout, fragment, anchor_N) for number in numbers]),
            each.num_steps,
            each.counted,
        )

        def own(role: str, fragment: int = fragment) -> Tensor | None:
            return _found(state.own, role, layout, fragment)

        base_N, arrived_N, from_N, ahead_N, lead_N = own(BASE), own(ARRIVED), own(ARRIVED_FROM), own(AHEAD), own(LEAD)
        # What was not saved was one tensor with another: that an anchor has moved is seen by their being two.
        of = Fragment(FragmentState.of(each.round, anchor_N, outer), anchor_N if base_N is None else base_N)
        if each.arrived is not None:
            came_N = anchor_N if arrived_N is None else arrived_N
            of.arrived = Arrived(of.base_N if from_N is None else from_N, came_N, came_N, each.arrived)
        if ahead_N is not None and lead_N is not None:
            of.ahead = Ahead(each.share, ahead_N, lead_N)
        of.carried_N = own(CARRIED)
        of.pending, of.launched, of.launches_diverged = Pending(*each.pending), Pending(*each.launched), each.diverged
        of.ends = dict(each.ends)
        fragments.append(of)
        local = own(LOCAL)
        local_N.append(anchor_N if local is None else local)
        kept_N.append(own(facts.made.keeps) if facts.made.keeps else None)
        if (launched_N := own(LAUNCHED)) is not None:
            taken[fragment] = launched_N
    return Restored(fragments, local_N, kept_N), taken


def _sending(sync: SyncFacts, of: Fragment, delta_N: Tensor | None) -> Sending:
    """A sync as it goes on."""
    key, nothing_N = SyncKey(sync.round, sync.fragment), torch.empty(0)
    launched_N = nothing_N if delta_N is None else delta_N
    taken, ended, landing = Taken(of.state, lambda: launched_N, sync.tokens, sync.steps), sync.ended, None
    if ended is not None:
        mixed = Mixed(nothing_N, ended.members, missed=ended.missed)
        stepped = Stepped(
            key,
            Verdict(mixed, missed=ended.late),
            TakeStep(mixed, None, ended.uncounted, again=False),
            Applied(ended.digest, ended.delta_norm, ended.residual_norm),
        )
        landing = Landing((), stepped, ended.excuse, 0.0, 0.0)
    return Sending(key, sync.step, sync.group, taken, landing)


def _land_passed(restored: Restored, syncs: Sequence[SyncFacts]) -> None:
    """Take in the steps of rounds that went by without a sync, which is still on its way with all of its work."""
    for fragment in (sync.fragment for sync in syncs if sync.ended is None):
        of, local_N = restored.fragments[fragment], restored.local_N[fragment]
        if of.arrived is not None:
            restored.local_N[fragment] = rebase(local_N, of.base_N, of.state.anchor_N)
            of.base_N, of.arrived = of.state.anchor_N, None


def _settle(restored: Restored, syncs: Sequence[SyncFacts], taken: Mapping[int, Tensor]) -> None:
    """Nothing is on its way any more. What was launched is work again, what was counted is not."""
    on_their_way = {sync.fragment: sync for sync in syncs}
    for fragment, of in enumerate(restored.fragments):
        sync, launched_N = on_their_way.get(fragment), taken.get(fragment)
        uncounted = None if sync is None or sync.ended is None else sync.ended.uncounted
        if of.arrived is not None and (sync is None or launched_N is None):
            of.lose_work()  # how much of it is in the new anchor is not known
            of.base_N = restored.local_N[fragment] = of.state.anchor_N
            continue
        if of.arrived is not None and launched_N is not None:
            # What was counted is in the new anchor and leaves the local parameters; the steps since its launch stay.
            local_N = rebase(restored.local_N[fragment], of.base_N, of.state.anchor_N)
            restored.local_N[fragment] = local_N + _counted(launched_N, uncounted)
            of.base_N, of.arrived = of.state.anchor_N, None
        if sync is not None:
            of.give_back(uncounted)


def _counted(launched_N: Tensor, uncounted: tuple[Span, ...] | None) -> Tensor:
    """What of the launched work is in the anchor."""
    if uncounted is None:
        return torch.zeros_like(launched_N)
    counted_N = launched_N.clone()
    for start, stop in uncounted:
        counted_N[start:stop] = 0
    return counted_N


def _cut_again(restored: Restored, old: Layout, new: Layout, rounds: Sequence[int]) -> Restored:
    """The same, settled, in other fragments, of which these rounds are next."""
    names = old.names
    local: dict[str, Tensor] = {}
    anchors: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    buffers: list[dict[str, Tensor]] = [{} for _ in restored.fragments[0].state.outer.buffers_N]
    for fragment, (of, local_N) in enumerate(zip(restored.fragments, restored.local_N, strict=True)):
        anchor_N, kept_N = of.state.anchor_N, restored.kept_N[fragment]
        moved_N = local_N if of.base_N is anchor_N else rebase(local_N, of.base_N, anchor_N)
        if of.carried_N is not None:
            moved_N = moved_N - of.carried_N
        local |= old.scatter(moved_N, fragment)
        anchors |= old.scatter(anchor_N, fragment)
        kept |= old.scatter(torch.zeros_like(anchor_N) if kept_N is None else kept_N, fragment)
        for named, buffer_N in zip(buffers, of.state.outer.buffers_N, strict=True):
            named |= old.scatter(buffer_N, fragment)
    fragments = []
    for fragment, within in enumerate(new.names):
        of_old = [of for of, inside in zip(restored.fragments, names, strict=True) if set(inside) & set(within)]
        anchor_N, num_steps = new.gather(anchors, fragment), max(of.state.outer.num_steps for of in of_old)
        outer = OuterState(tuple([new.gather(named, fragment) for named in buffers]), num_steps)
        of = Fragment(FragmentState.of(rounds[fragment], anchor_N, outer), anchor_N, doubtful=of_old[0].doubtful)
        of.pending = max((each.pending for each in of_old), key=lambda work: work.tokens)
        of.pending = replace(of.pending)
        fragments.append(of)
    numbers = range(new.num_fragments)
    has_kept = any(kept_N is not None for kept_N in restored.kept_N)
    return Restored(
        fragments,
        [new.gather(local, fragment) for fragment in numbers],
        [new.gather(kept, fragment) if has_kept else None for fragment in numbers],
    )


def _refit(restored: Restored, old: Made, new: Made, *, exact: bool) -> None:
    """Buffers and what feedback keeps, as far as rule and feedback of now can go on from them."""
    if old.keeps != new.keeps or not (exact or new.keeps == "residual"):
        restored.kept_N[:] = [None] * len(restored.kept_N)
    if old.buffers == new.buffers:
        return
    for of in restored.fragments:
        state = of.state
        known = dict(zip(old.buffers, state.outer.buffers_N, strict=True))
        buffers_N = tuple([known.get(name, torch.zeros_like(state.anchor_N)) for name in new.buffers])
        of.state = FragmentState.of(state.round, state.anchor_N, OuterState(buffers_N, state.outer.num_steps))
        of.ends.clear()


def _memory(state: WorkerState, facts: Facts, layout: Layout) -> Memory:
    """What the exchange goes on from."""
    roles = {key.removeprefix(EXCHANGE).partition("/")[0] for key in state.own if key.startswith(EXCHANGE)}
    tensors: dict[str, dict[int, Tensor]] = {role: {} for role in roles}
    for role in roles:
        for fragment in range(layout.num_fragments):
            if (values_N := _found(state.own, f"{EXCHANGE}{role}", layout, fragment)) is not None:
                tensors[role][fragment] = values_N
    return Memory(tensors, facts.exchange)


def _found(tensors: Mapping[str, Tensor], role: str, layout: Layout, fragment: int) -> Tensor | None:
    """The tensor [N] of a role, if it is there."""
    named = {name: tensors[key] for name in layout.names[fragment] if (key := f"{role}/{name}") in tensors}
    return layout.gather(named, fragment) if named else None


def _gather(tensors: Mapping[str, Tensor], role: str, layout: Layout, fragment: int, like_N: Tensor) -> Tensor:
    """The tensor [N] of a role; zeros if it is not there."""
    found_N = _found(tensors, role, layout, fragment)
    return torch.zeros_like(like_N) if found_N is None else found_N


# -- in words ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CarriedOver:
    """What a comeback is to people: a line each."""

    kept: tuple[str, ...]
    anew: tuple[str, ...]


def carried_over(state: WorkerState, options: RunOptions, parameters: Mapping[str, Tensor]) -> CarriedOver:
    """What carries over from a state to a run with these options and what starts anew, before anything is done.

    Raises:
        MismatchError: see ``come_back``.
    """
    facts = Facts.of(state)
    old = facts.made
    layout = Layout.of(parameters, options.plan.num_fragments, options.pattern)
    Layout.cut_as(parameters, old.shape.names)
    new, plan = Made.by(options, layout, options.feedback(layout.num_fragments).keeps), options.plan
    kept, anew = [f"weights and local work at step {state.step}"], list[str]()
    for name in new.buffers:
        (kept if name in old.buffers else anew).append(f"outer {name}")
    anew += [f"outer {name} is left out" for name in old.buffers if name not in new.buffers]
    same = _is_same(facts, new)
    if new.keeps:
        goes_on = new.keeps == old.keeps and (same or new.keeps == "residual")
        (kept if goes_on else anew).append(f"{new.keeps}s of error feedback")
    elif old.keeps:
        anew.append(f"{old.keeps}s of error feedback are left out")
    inner = ("inner optimizer", "data position") if facts.turned else ("inner optimizer and data position",)
    (kept if state.trainer.get("state") else anew).append(inner[0])
    anew += inner[1:]
    (kept if state.trainer else anew).append("random state")
    if not same:
        anew += _other_shape(facts, new, plan, state.step)
    return CarriedOver(tuple(kept), tuple(anew))


def _other_shape(facts: Facts, new: Made, plan: SyncPlan, step: int) -> list[str]:
    old, found = facts.made.shape, []
    if facts.turned:
        found.append(
            "the model: of stages it became a whole, or of a whole stages; of work not counted one worker's is left"
        )
    elif facts.cut_of < 0:
        found.append("the stage goes on at a later step than it was saved")
    elif facts.cut_of:
        found.append(f"the stage: its blocks come from {facts.cut_of} of another cut")
    if old.names != new.shape.names:
        found.append(f"the cut: {len(new.shape.names)} fragments in place of {len(old.names)}")
    if old.inner_steps != plan.inner_steps:
        found.append(
            f"rounds of {plan.inner_steps} inner steps in place of {old.inner_steps}: now {step // plan.inner_steps}"
        )
    if old.mixing != new.shape.mixing:
        found.append(f"mixing: {new.shape.mixing} in place of {old.mixing}")
    if facts.syncs:
        found.append(f"{len(facts.syncs)} fragments on their way: their work waits for the next round")
    return found
