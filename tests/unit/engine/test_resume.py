"""A worker's state read back: as it was, settled, and cut, stepped or mixed otherwise; and when it is saved."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decentral.codecs.codec import make_codec
from decentral.codecs.feedback import ErrorFeedback
from decentral.engine.options import RunOptions
from decentral.engine.resume import carried_over, come_back
from decentral.errors import MismatchError
from decentral.exchange.gossip.options import GossipOptions
from decentral.monitor.events import Resumed
from decentral.outer.diloco import DiLoCo
from decentral.outer.eager import Eager
from decentral.outer.ef21 import Ef21
from decentral.outer.noloco import NoLoCo
from decentral.outer.rule import OuterRule
from decentral.schedule.plan import SyncPlan
from decentral.sim.trainer import ToyProblem
from decentral.state.worker_state import WorkerState
from tests.unit.engine.swarm import FOUNDER, PROBLEM, THIRD, Plan, simulate

FP32, INT8 = make_codec("fp32"), make_codec("int8-b8")
LOSSY: dict[str, Any] = {"codec": INT8, "mean_codec": INT8, "feedback": ErrorFeedback}
PARAMETERS = PROBLEM.trainer(0).parameters()


USUAL, NESTEROV = SyncPlan(25), DiLoCo(momentum=0.5)


def options(plan: SyncPlan = USUAL, rule: OuterRule = NESTEROV, **changes: Any) -> RunOptions:
    return RunOptions("run", b"{}", 9, plan, rule, **{"codec": FP32, "mean_codec": FP32, **changes})


def left(**changes: Any) -> WorkerState:
    """The state of a worker that left three in the middle of a round, with work that no round has counted."""
    seen = simulate(Plan(rounds=9, stops={THIRD: 4.65}, options={"plan": USUAL, "rule": NESTEROV, **LOSSY, **changes}))
    assert not seen.errors
    return seen.states[THIRD]


def named(state: WorkerState, role: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{role}/"): value for key, value in state.own.items() if key.startswith(f"{role}/")}


def flat(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([values[name].flatten() for name in sorted(values)])


def test_a_state_says_all_in_names_and_plain_json() -> None:
    state = left()
    assert state.closed
    assert state.anchors.keys() == PARAMETERS.keys()
    assert state.outer.keys() == {f"0/{name}" for name in PARAMETERS}
    assert named(state, "local").keys() == named(state, "residual").keys() == PARAMETERS.keys()
    facts = json.loads(json.dumps(state.facts, allow_nan=False))
    back = come_back(replace(state, facts=facts), options(**LOSSY), PARAMETERS, go_on=True)
    (of,) = back.replica.fragments
    assert of.state.digest == state.digest
    assert (of.state.round, back.work_steps, of.doubtful) == (state.round, of.pending.steps, False)
    assert 0 < back.work_steps <= 25
    assert torch.equal(back.replica.local_N[0], flat(named(state, "local")))
    assert torch.equal(of.base_N, flat(state.anchors))


def test_a_work_of_one_who_left_in_order_goes_on_with_any_anchor_and_of_another_only_with_its_own() -> None:
    state = left()
    for closed in (True, False):
        again = simulate(Plan(rounds=2, options=LOSSY, restored={THIRD: replace(state, closed=closed)}))
        assert not again.errors
        (resumed,) = again.of(Resumed, THIRD)
        work = state.facts["fragments"][0]["pending"][1]
        assert work > 0
        assert (resumed.work_steps, resumed.dropped_steps) == ((work, 0) if closed else (0, work))


def test_a_whole_model_becomes_three_fragments_and_nothing_of_it_changes() -> None:
    state, plan = left(), SyncPlan(12, 3)
    back = come_back(state, options(plan, **LOSSY), PARAMETERS, go_on=True)
    assert len(back.replica.fragments) == 3
    assert back.rounds == list(plan.rounds_after(state.step))
    assert torch.equal(torch.cat([of.state.anchor_N for of in back.replica.fragments]), flat(state.anchors))
    assert torch.equal(torch.cat([of.state.outer.buffers_N[0] for of in back.replica.fragments]), flat(state.outer))
    assert torch.equal(torch.cat(back.replica.local_N), flat(named(state, "local")))
    residuals = [kept_N for kept_N in back.replica.kept_N if kept_N is not None]
    assert torch.equal(torch.cat(residuals), flat(named(state, "residual")))
    assert not back.syncs
    assert back.memory is None


@pytest.mark.parametrize(
    ("rule", "carried"),
    [
        (Ef21(DiLoCo(momentum=0.9)), [False, True]),
        (DiLoCo(momentum=0.5, nesterov=False), [False]),
        (NoLoCo(), [False]),
        (DiLoCo(momentum=0.0), []),
    ],
)
def test_momentum_goes_on_under_a_rule_that_means_the_same_by_it(rule: OuterRule, carried: list[bool]) -> None:
    state = left()
    back = come_back(state, options(rule=rule, **LOSSY), PARAMETERS, go_on=True)
    buffers = back.replica.fragments[0].state.outer.buffers_N
    assert [bool(buffer_N.any()) for buffer_N in buffers] == carried


def test_the_lead_of_eager_updates_becomes_local_work_again() -> None:
    """All that no anchor has lies between the anchor and where training stands."""
    eager = Eager(lr=0.7, momentum=0.5)
    state = left(eager=eager)
    facts = {**state.facts, "syncs": []}
    lead, carried = named(state, "ahead"), named(state, "carried")
    assert lead
    back = come_back(replace(state, facts=facts), options(**LOSSY), PARAMETERS, go_on=False)
    (of,), (local_N,) = back.replica.fragments, back.replica.local_N
    since_N = flat(named(state, "base")) - flat(named(state, "local"))
    work_N = since_N + flat(carried) if carried else since_N
    torch.testing.assert_close(of.state.anchor_N - local_N, work_N, rtol=0, atol=1e-6)


def test_a_state_of_another_model_or_release_is_refused() -> None:
    state = left()
    other = ToyProblem(seed=5, num_workers=3, num_tensors=4).trainer(0).parameters()
    with pytest.raises(MismatchError, match="not those of this model"):
        come_back(state, options(), other, go_on=True)
    with pytest.raises(MismatchError, match="cannot be read"):
        come_back(replace(state, facts={**state.facts, "made": 3}), options(), PARAMETERS, go_on=True)
    broken = {**state.facts, "fragments": []}
    with pytest.raises(MismatchError, match="fragments are not those of the cut"):
        carried_over(replace(state, facts=broken), options(), PARAMETERS)


def test_what_carries_over_is_said_in_words() -> None:
    state = left()
    same = carried_over(state, options(**LOSSY), PARAMETERS)
    assert same.kept == (
        f"weights and local work at step {state.step}",
        "outer momentum",
        "residuals of error feedback",
    )
    assert same.anew == ("inner optimizer and data position", "random state")
    changed = options(SyncPlan(20), NoLoCo(), mixing=GossipOptions(INT8, INT8))
    other = carried_over(state, changed, PARAMETERS)
    assert other.anew == (
        "outer velocity",
        "outer momentum is left out",
        "residuals of error feedback are left out",
        "inner optimizer and data position",
        "random state",
        f"rounds of 20 inner steps in place of 25: now {state.step // 20}",
        "mixing: gossip in rounds in place of all-reduce",
    )


def test_a_validated_anchor_says_its_loss_and_others_do_not() -> None:
    seen = simulate(Plan(rounds=3, starts={FOUNDER: 0.0}, options={"eval_every_rounds": 1}))
    assert not seen.errors
    assert math.isfinite(seen.states[FOUNDER].val_loss)
    seen = simulate(Plan(rounds=3, starts={FOUNDER: 0.0}, options={"eval_every_rounds": 2}))
    assert math.isnan(seen.states[FOUNDER].val_loss), "another round came after the last validation"
