"""States of stages cut anew: everything goes with its parameter, and training goes on as if nothing had happened."""

import copy
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from msgspec import structs
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.engine.facts import EndedFacts, Facts, FragmentFacts, Made, Span, SyncFacts
from decentral.engine.options import RunOptions
from decentral.engine.recut import out_of_whole, recut, whole
from decentral.engine.resume import carried_over, come_back
from decentral.errors import MismatchError
from decentral.outer.diloco import DiLoCo
from decentral.pipeline.compute import HeadCompute, StageCompute
from decentral.pipeline.placement import CutInForce
from decentral.pipeline.position import POSITION, Position
from decentral.pipeline.stored import HEAD
from decentral.ports.model_blocks import ModelBlocks
from decentral.ports.trainer import Seat
from decentral.schedule.plan import SyncPlan
from decentral.state.worker_state import WorkerState
from decentral.tensors.layout import Layout
from decentral.workers import lm
from tests.unit.pipeline.models import NUM_BLOCKS, lm_batch, lm_blocks, lm_settings

FP32 = make_codec("fp32")
#: Cuts of the model's four blocks.
CUTS: dict[Any, list[tuple[int, int]]] = {
    1: [(0, 4)],
    2: [(0, 2), (2, 4)],
    "uneven": [(0, 1), (1, 4)],
    3: [(0, 1), (1, 2), (2, 4)],
    4: [(i, i + 1) for i in range(4)],
}


def options(num_fragments: int = 1) -> RunOptions:
    plan = SyncPlan(10, num_fragments)
    return RunOptions("run", b"{}", 9, plan, DiLoCo(momentum=0.5), codec=FP32, mean_codec=FP32)


def saved(stage: StageCompute, num_fragments: int = 1, step: int = 7, **position: Any) -> WorkerState:
    """The state of a stage as its worker saves it: what is on its way, and values that tell where they belong."""
    generator = torch.Generator().manual_seed(step)
    parameters = {name: value.clone() for name, value in stage.parameters().items()}

    def drawn(role: str) -> dict[str, Tensor]:
        return {f"{role}/{name}": torch.randn(value.shape, generator=generator) for name, value in parameters.items()}

    layout = Layout.of(parameters, num_fragments)
    ended = EndedFacts((), ((3, 9),), ((3, 9),), "d", 1.0, 0.0, None, False)
    facts = Facts(
        made=Made.by(options(num_fragments), layout, "residual"),
        fragments=tuple([FragmentFacts(0, 2, (), (50, 5), (70, 7), 0, ((0, "d"),), 1)] * num_fragments),
        syncs=tuple([SyncFacts(0, fragment, 5, 0.0, 70, 7, ended) for fragment in range(num_fragments)]),
        course={"pace": 1.0},
        since=3,
        exchange={"scales": []},
    )
    state = {
        **copy.deepcopy(stage.state_dict()),
        POSITION: Position(**{"committed": {0: step - 1}, **position}).to_plain(),
    }
    own = {**drawn("local"), **drawn("residual"), **drawn("launched")}
    trainer = {"state": state, "draws": {}}
    return WorkerState(step, 0, 90, "d", False, parameters, drawn("0"), own, facts.to_json(), trainer)


def built(blocks: ModelBlocks, cut: Sequence[tuple[int, int]]) -> list[StageCompute]:
    return [StageCompute(blocks, *span) for span in cut]


def cut_anew(states: Sequence[WorkerState], stages: Sequence[StageCompute]) -> list[WorkerState]:
    return [recut(states, stage.parameters()) for stage in stages]


def together(states: Sequence[WorkerState]) -> dict[str, Tensor]:
    """All tensors of all states by role and name, the inner optimizer's among them."""
    found: dict[str, Tensor] = {}
    for state in states:
        parts: list[tuple[str, Mapping[str, Tensor]]] = [
            ("w", state.anchors),
            ("outer", state.outer),
            ("own", state.own),
        ]
        parts += [(f"inner/{name}", entry) for name, entry in state.trainer["state"]["optimizer"].items()]
        named = {f"{part}/{key}": value for part, values in parts for key, value in values.items()}
        named = {key: value for key, value in named.items() if isinstance(value, Tensor)}
        assert found.keys().isdisjoint(named)
        found |= named
    return found


def trained(
    blocks: ModelBlocks, cut: Sequence[tuple[int, int]], steps: range, states: Sequence[WorkerState] = ()
) -> tuple[HeadCompute, list[StageCompute], list[float]]:
    """A head and stages after some steps, from the states if there are any; with their losses."""
    head, stages = HeadCompute(blocks), built(blocks, cut)
    for stage, state in zip(stages, states, strict=False):
        stage.load(state.anchors)
        stage.load_state_dict(state.trainer["state"])
    return head, stages, [step_of(head, stages, step) for step in steps]


def step_of(head: HeadCompute, stages: Sequence[StageCompute], step: int) -> float:
    batch, total = lm_batch(step), 0.0
    for index, (inputs, targets) in enumerate(batch):
        key = (0, step, index)
        x = head.embed(key, inputs)
        for stage in stages:
            x = stage.forward(key, x)
        loss, gradient = head.loss(key, x, targets)
        for stage in reversed(stages):
            gradient = stage.backward(key, gradient)
        head.finish(key, gradient)
        total += loss / len(batch)
    for part in (head, *stages):
        part.apply([0], len(batch), step)
    return total


@pytest.fixture(scope="module")
def blocks() -> ModelBlocks:
    """Without clipping, which goes by the stage: cut otherwise it is another one."""
    return replace(lm_blocks(), clip_norm=math.inf)


@pytest.mark.parametrize("cut", ["uneven", 4])
def test_training_goes_on_under_any_cut_as_under_the_old_one(blocks: ModelBlocks, cut: Any) -> None:
    head, stages, _ = trained(blocks, CUTS[3], range(2))
    weights = {name: value.clone() for name, value in head.parameters().items()}
    states, inner = [saved(stage, step=2) for stage in stages], copy.deepcopy(head.state_dict())
    expected = [step_of(head, stages, step) for step in range(2, 4)]
    again, others, _ = trained(blocks, CUTS[cut], range(0), cut_anew(states, built(blocks, CUTS[cut])))
    again.load(weights)
    again.load_state_dict(inner)
    assert [step_of(again, others, step) for step in range(2, 4)] == pytest.approx(expected, abs=1e-6)
    ended = {name: value for stage in stages for name, value in stage.parameters().items()}
    assert all(torch.allclose(v, ended[n], atol=1e-6) for s in others for n, v in s.parameters().items())


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 2), (3, "uneven"), (3, 4), (4, "uneven")])
def test_every_value_goes_with_its_parameter_and_back(blocks: ModelBlocks, old: Any, new: Any) -> None:
    _, stages, _ = trained(blocks, CUTS[old], range(1))
    states = [saved(stage, step=7) for stage in stages]
    there = cut_anew(states, built(blocks, CUTS[new]))
    before, after = together(states), together(there)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for state, stage in zip(there, built(blocks, CUTS[new]), strict=True):
        back = come_back(state, options(), stage.parameters(), go_on=True)
        layout = Layout.of(stage.parameters())
        (of,) = back.replica.fragments
        assert torch.equal(of.state.anchor_N, layout.gather(state.anchors, 0))
        momentum = {name: state.outer[f"0/{name}"] for name in layout.names[0]}
        assert torch.equal(of.state.outer.buffers_N[0], layout.gather(momentum, 0))
    home = cut_anew(there, stages)
    assert all(torch.equal(value, before[key]) for key, value in together(home).items())


def test_a_stage_that_stays_goes_on_bit_for_bit_and_of_others_what_is_anew_is_told(blocks: ModelBlocks) -> None:
    states = [saved(stage, healed_at=heal) for stage, heal in zip(built(blocks, CUTS[3]), (None, 2, 5), strict=True)]
    same, joined = cut_anew(states, built(blocks, [(0, 1), (1, 4)]))
    assert same is states[0]
    position = Position.of(joined.trainer["state"])
    assert (position.committed, position.healed_at, math.isnan(position.grad_norm)) == ({0: 6}, 5, True)
    told = carried_over(joined, options(), built(blocks, [(1, 4)])[0].parameters())
    assert "the stage: its blocks come from 2 of another cut" in told.anew
    assert "outer momentum" in told.kept
    back = come_back(joined, options(), built(blocks, [(1, 4)])[0].parameters(), go_on=True)
    assert (back.syncs, back.memory) == ([], None)


def test_stages_become_a_whole_model_and_stages_again(blocks: ModelBlocks) -> None:
    """A trainer of the whole model takes all of it, its inner optimizer too; and nothing is lost on the way there."""
    head, stages, _ = trained(blocks, CUTS[3], range(2))
    states = [saved(part, step=2) for part in (head, *stages)]  # type: ignore[arg-type]
    one = whole(states)
    trainer = lm.build(lm_settings(), Seat(run_seed=3, stream_seed=0, total_steps=50))
    parameters = trainer.parameters()
    back = come_back(one, options(2), parameters, go_on=True)
    assert [of.pending.steps for of in back.replica.fragments] == [5, 5]
    trainer.load(one.anchors)
    trainer.load_state_dict(one.trainer["state"])
    inner = trainer.state_dict()["optimizer"]
    assert inner.keys() == parameters.keys()
    assert all(
        torch.equal(inner[n]["exp_avg"], v["exp_avg"])
        for s in states
        for n, v in s.trainer["state"]["optimizer"].items()
    )
    told = carried_over(one, options(), parameters)
    assert {"inner optimizer", "outer momentum"} <= {*told.kept}
    assert "data position" in told.anew
    assert any(line.startswith("the model: of stages it became a whole") for line in told.anew)

    cut = CutInForce(num_blocks=NUM_BLOCKS)
    there = [out_of_whole(one, cut, span) for span in (HEAD, *CUTS[3])]
    before, after = together(states), together(there)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for state, part in zip(there, (head, *stages), strict=True):
        assert Position.of(state.trainer["state"]).batch == 2
        assert "data position" in carried_over(state, options(), part.parameters()).anew


def test_ranges_of_a_fragment_stay_with_their_values(blocks: ModelBlocks) -> None:
    """Drawn ranges, fragments and cuts: what was uncounted of a parameter is so wherever it lies."""
    for seed in range(10):
        draw = random.Random(seed)
        first = draw.randint(0, 1)
        states, marks = [], dict[str, Tensor]()
        for stage in built(blocks, [(0, 2), (2, 4)]):
            state, facts = (made := saved(stage, draw.randint(1, 2))), Facts.of(made)
            layout = Layout.cut_as(state.anchors, facts.made.shape.names)
            syncs = []
            for sync in facts.syncs:
                assert sync.ended is not None
                numel = layout.numel(sync.fragment)
                cuts = sorted(draw.sample(range(numel + 1), 6))
                spans = tuple(zip(cuts[::2], cuts[1::2], strict=True))
                marks |= marked(layout, sync.fragment, spans)
                syncs.append(structs.replace(sync, ended=structs.replace(sync.ended, uncounted=spans, missed=spans)))
            states.append(replace(state, facts=structs.replace(facts, syncs=tuple(syncs)).to_json()))
        (stage,) = built(blocks, [(first, draw.randint(first + 1, NUM_BLOCKS))])
        facts = Facts.of(recut(states, stage.parameters()))
        layout = Layout.cut_as(stage.parameters(), facts.made.shape.names)
        found = dict[str, Tensor]()
        for sync in facts.syncs:
            assert sync.ended is not None
            assert sync.ended.uncounted == sync.ended.missed
            found |= marked(layout, sync.fragment, sync.ended.missed)
        assert found.keys() == stage.parameters().keys(), f"seed {seed}"
        assert all(torch.equal(value, marks[name]) for name, value in found.items()), f"seed {seed}"


def marked(layout: Layout, fragment: int, spans: Sequence[Span]) -> dict[str, Tensor]:
    values_N = torch.zeros(layout.numel(fragment))
    for start, stop in spans:
        values_N[start:stop] = 1
    return layout.scatter(values_N, fragment)


def test_what_makes_no_whole_is_refused(blocks: ModelBlocks) -> None:
    states = [saved(stage) for stage in built(blocks, CUTS[4])]
    (stage,) = built(blocks, [(1, 3)])
    for wrong in (states[:2], [*states, states[1]], [states[1], replace(states[2], step=8)]):
        with pytest.raises(MismatchError, match="do not make a whole"):
            recut(wrong, stage.parameters())
