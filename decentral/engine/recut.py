"""States of a pipeline's stages cut anew: from those of some old cut, that of a stage of another one. Pure.

Everything in a state is by the name of a parameter, in the whole model, so a stage's state is what its parameters have
in the states of those who held them; a whole model's is made of its stages' likewise, and they of that. Fragments stay
apart: whoever goes on from it has them cut again as the run is cut now (``resume``). Which stage each state was, and
where it comes from, is not known here.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from decentral.engine.facts import Facts, FragmentFacts, Span, SyncFacts
from decentral.errors import MismatchError
from decentral.outer.rule import OuterState
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.position import POSITION, Position
from decentral.pipeline.stored import HEAD
from decentral.state.snapshot import FragmentState, Snapshot
from decentral.state.worker_state import WorkerState
from decentral.tensors.layout import Layout, Slot

_Value = TypeVar("_Value")


def recut(states: Sequence[WorkerState], names: Collection[str]) -> WorkerState:
    """The state of a stage that has these parameters.

    Anchors, outer state, local parameters, residuals, work on its way and the inner optimizer go on by parameter. What
    the exchange remembers of its peers does not, nor do digests of rounds that are over: they were other fragments.

    Args:
        states: of stages between the same two inner steps, in order of their blocks. Those without any of the wanted
            parameters do not matter.
        names: of the parameters of the stage, in the whole model.

    Returns:
        The very state of which these are all parameters, if there is one; it goes on bit for bit.

    Raises:
        MismatchError: a parameter is in none of them or in several, or they are of other steps or settings.
    """
    wanted = frozenset(names)
    used = [state for state in states if not wanted.isdisjoint(state.anchors)]
    found = [name for state in used for name in state.anchors if name in wanted]
    if len(found) != len(wanted) or len({state.step for state in used}) != 1:
        raise MismatchError(
            f"{len(wanted)} parameters are wanted, and states of {sorted({state.step for state in used})} inner steps "
            f"have {len(found)} of them: they do not make a whole",
            hint="A stage is cut out of states of one step that have each of its parameters once.",
        )
    if len(used) == 1 and len(used[0].anchors) == len(wanted):
        return used[0]
    anchors = {name: value for state in used for name, value in state.anchors.items() if name in wanted}
    facts = _joined([Facts.of(state) for state in used], [state.anchors for state in used], wanted)
    outer = _behind_a_role([state.outer for state in used], wanted)
    return WorkerState(
        step=used[0].step,
        round=min(each.round for each in facts.fragments),
        tokens=max(state.tokens for state in used),
        digest=_digest(used[0].step, facts, anchors, outer),
        closed=all(state.closed for state in used),
        anchors=anchors,
        outer=outer,
        own=_behind_a_role([state.own for state in used], wanted),
        facts=facts.to_json(),
        trainer=_trainer([state.trainer for state in used], wanted),
    )


def moved_on(state: WorkerState, step: int, position: Position) -> WorkerState:
    """The state of a stage that goes on at another step than its own: the run has not waited for it.

    Work that no round has counted stays with it; what the exchange remembers of its peers does not.

    Args:
        state: see above.
        step: of the run.
        position: where its loop goes on.
    """
    facts = Facts.of(state)
    facts = replace(facts, exchange={}, cut_of=facts.cut_of or -1, course={**facts.course, "step": step})
    trainer = _at(state.trainer, position)
    return dataclasses.replace(state, step=step, facts=facts.to_json(), trainer=trainer)


def whole(states: Sequence[WorkerState]) -> WorkerState:
    """The state of a worker that has the whole model, of those of a head and of stages that together have all of it.

    Where heads were in their data says nothing of a worker's own, which it draws from anew.

    Raises:
        MismatchError: see ``recut``.
    """
    found = recut(states, [name for state in states for name in state.anchors])
    inner = {key: value for key, value in found.trainer.get("state", {}).items() if key != POSITION}
    return _turned(found, {**found.trainer, "state": inner})


def out_of_whole(state: WorkerState, cut: CutInForce, span: Span) -> WorkerState:
    """What a whole model's state has of a stage, or of a head, which draws from its data as if it had always done so.

    Args:
        state: of a worker that has the whole model.
        cut: see ``blocks_of``.
        span: the stage's blocks, or ``HEAD``.

    Raises:
        MismatchError: see ``blocks_of``.
    """
    return blocks_of(_turned(state, _at(state.trainer, Position(batch=state.step))), cut, *span)


def _turned(state: WorkerState, trainer: Mapping[str, Any]) -> WorkerState:
    facts = replace(Facts.of(state), turned=True)
    return dataclasses.replace(state, facts=facts.to_json(), trainer=trainer)


def _at(trainer: Mapping[str, Any], position: Position) -> dict[str, Any]:
    """A trainer's state whose loop goes on there."""
    return {**trainer, "state": {**trainer.get("state", {}), POSITION: position.to_plain()}}


def blocks_of(state: WorkerState, cut: CutInForce, first: int, stop: int) -> WorkerState:
    """What the state of a stage has of the blocks [first, stop); for none, what it has of a head.

    Args:
        state: of any cut of the model.
        cut: knows which names are those of a block.
        first: see above.
        stop: see above.

    Raises:
        MismatchError: it has nothing of them.
    """
    spans = {name: cut.span_of([name]) for name in state.anchors}
    wanted = [HEAD] if (first, stop) == HEAD else [(block, block + 1) for block in range(first, stop)]
    return recut([state], [name for name, span in spans.items() if span in wanted])


def _behind_a_role(found: Iterable[Mapping[str, _Value]], wanted: Collection[str]) -> dict[str, _Value]:
    """Of tensors by ``<role>/<parameter>`` those of wanted parameters."""
    return {key: value for each in found for key, value in each.items() if key.partition("/")[2] in wanted}


def _joined(found: Sequence[Facts], parameters: Sequence[Mapping[str, Any]], wanted: Collection[str]) -> Facts:
    """One after the other the fragments that have something wanted, with what is on its way of them."""
    made = found[0].made
    if any(replace(each.made, shape=made.shape) != made for each in found):
        raise MismatchError(
            "states of stages that were made by different methods cannot be cut anew",
            hint="All stages of a step are saved by workers with the same settings: take another checkpoint.",
        )
    names: list[tuple[str, ...]] = []
    fragments: list[FragmentFacts] = []
    syncs: list[SyncFacts] = []
    for facts, named in zip(found, parameters, strict=True):
        layout, places = Layout.cut_as(named, facts.made.shape.names), dict[int, int]()
        kept = [[slot for slot in slots if slot.name in wanted] for slots in layout.fragments]
        for fragment, slots in enumerate(kept):
            if slots:
                places[fragment] = len(fragments)
                names.append(tuple([slot.name for slot in slots]))
                fragments.append(_fragment(facts.fragments[fragment], slots))
        syncs += [
            _sync(sync, places[sync.fragment], kept[sync.fragment]) for sync in facts.syncs if kept[sync.fragment]
        ]
    return replace(
        found[0],
        made=replace(made, shape=replace(made.shape, names=tuple(names))),
        fragments=tuple(fragments),
        syncs=tuple(syncs),
        exchange={},
        cut_of=len(found),
    )


def _fragment(facts: FragmentFacts, slots: Sequence[Slot]) -> FragmentFacts:
    arrived = None if facts.arrived is None else _within(facts.arrived, slots)
    return replace(facts, arrived=arrived, counted=(), ends=(), num_members=0)


def _sync(sync: SyncFacts, fragment: int, slots: Sequence[Slot]) -> SyncFacts:
    ended = sync.ended
    if ended is not None:
        uncounted = None if ended.uncounted is None else _within(ended.uncounted, slots)
        ended = replace(ended, uncounted=uncounted, missed=_within(ended.missed, slots))
    return replace(sync, fragment=fragment, ended=ended)


def _within(spans: Sequence[Span], slots: Sequence[Slot]) -> tuple[Span, ...]:
    """Ranges of values of a fragment of which only these slots are left, which follow each other now."""
    moved: list[Span] = []
    begin = 0
    for slot in slots:
        parts = [(max(first, slot.start), min(stop, slot.stop)) for first, stop in spans]
        moved += [(begin + low - slot.start, begin + high - slot.start) for low, high in parts if low < high]
        begin += slot.stop - slot.start
    return tuple(moved)


def _digest(step: int, facts: Facts, anchors: Mapping[str, Any], outer: Mapping[str, Any]) -> str:
    """See ``WorkerState.digest``."""
    layout, numbers, states = Layout.cut_as(anchors, facts.made.shape.names), range(len(facts.made.buffers)), []
    for fragment, each in enumerate(facts.fragments):
        named = [{name: outer[f"{n}/{name}"] for name in anchors if f"{n}/{name}" in outer} for n in numbers]
        buffers_N = [layout.gather(values, fragment) for values in named]
        state = OuterState(tuple(buffers_N), each.num_steps)
        states.append(FragmentState.of(each.round, layout.gather(anchors, fragment), state))
    return Snapshot(step, tuple(states)).name


def _trainer(found: Sequence[Mapping[str, Any]], wanted: Collection[str]) -> dict[str, Any]:
    """The inner optimizers by parameter, where the loops were, and the random state of the first."""
    states = [trainer.get("state", {}) for trainer in found]
    optimizer = {
        name: entry for state in states for name, entry in state.get("optimizer", {}).items() if name in wanted
    }
    position = Position.joined([Position.of(state) for state in states])
    return _at({**found[0], "state": {"optimizer": optimizer}}, position)
