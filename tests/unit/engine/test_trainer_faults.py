"""Trainers that hang, raise, or train another model: what the others see of it, and what becomes of the worker."""

import math

import pytest
import torch

from decentral.errors import MismatchError, TrainerError, UnreachableError
from decentral.monitor.events import PeerLost, StretchDone
from decentral.ports.trainer import StepReport, Trainer
from decentral.schedule.plan import SyncPlan
from decentral.sim.faults import Fault, Kind
from decentral.sim.local_steps import LocalSteps
from decentral.sim.trainer import ToyProblem
from decentral.sim.world import SimPeer
from decentral.swarm.presence import State
from tests.unit.engine.swarm import FOUNDER, PROBLEM, SECOND, STEP_S, THIRD, Plan, Seen, ordinary, simulate

ROUND_S = 10 * STEP_S


class Slow:
    """A trainer one of whose steps takes long."""

    def __init__(
        self, peer: SimPeer, at_step: int, for_s: float, fault: Exception | None = None, step_s: float = STEP_S
    ) -> None:
        self._inner = ordinary(peer, step_s)
        self._charge = peer.clock.charge
        self._at_step, self._for_s, self._fault = at_step, for_s, fault
        self.parameters, self.load, self.validate = self._inner.parameters, self._inner.load, self._inner.validate

    def train_steps(self, first_step: int, count: int) -> StepReport:
        if first_step <= self._at_step < first_step + count:
            if self._fault is not None:
                raise self._fault
            self._charge(self._for_s)
        return self._inner.train_steps(first_step, count)


def hanging(for_s: float, at_step: int = 45, rounds: int = 60, looks: tuple[float, ...] = ()) -> Seen:
    trainers = {THIRD: lambda peer: Slow(peer, at_step, for_s)}
    return simulate(Plan(rounds=rounds, trainers=trainers, looks=looks))


def test_nobody_waits_for_a_trainer_that_hangs_and_it_comes_back() -> None:
    seen = hanging(40.0, looks=(30.0,))
    assert seen.records[0][THIRD].state is State.STALLED
    assert seen.records[0][THIRD].metrics.reason.startswith("no inner step for ")
    rounds = seen.mixed(FOUNDER)
    without = [mixed for mixed in rounds.values() if THIRD not in mixed.members]
    waited = [mixed for mixed in without if mixed.waiting_s > ROUND_S]
    assert len(waited) <= 3, "10 s until it is noticed, in rounds that wait 5 s each"
    assert without[: len(waited)] == waited, "and then no more"
    assert all(mixed.waiting_s < 0.5 * ROUND_S for mixed in without[len(waited) :])
    assert len(without) > 15
    assert all(len(rounds[number].members) == 3 for number in range(55, 60)), "it is back"
    assert all(outcome.done for outcome in seen.outcomes.values())
    assert len({outcome.digest for outcome in seen.outcomes.values()}) == 1


@pytest.mark.parametrize(
    ("round_s", "at_step"),
    [
        (5.0, 29),
        pytest.param(5.0, 20, marks=pytest.mark.slow),
        pytest.param(9.0, 24, marks=pytest.mark.slow),
        pytest.param(9.0, 29, marks=pytest.mark.slow),
        pytest.param(25.0, 25, marks=pytest.mark.slow),
        pytest.param(25.0, 29, marks=pytest.mark.slow),
    ],
)
def test_a_trainer_that_hangs_costs_the_others_no_round_of_twice_the_usual_time(round_s: float, at_step: int) -> None:
    """Of rounds that are no shorter than the least patience, wherever in the round it hangs."""
    step_s = round_s / 10
    hung = {THIRD: lambda peer: Slow(peer, at_step, 4 * round_s, step_s=step_s)}
    seen = simulate(Plan(rounds=6, step_s={FOUNDER: step_s, SECOND: step_s}, trainers=hung))
    syncs = [mixed.waiting_s + mixed.transfer_s for mixed in seen.mixed(FOUNDER).values()]
    usual_s = round_s + syncs[1]
    without = [mixed for mixed in seen.mixed(FOUNDER).values() if len(mixed.members) == 2]
    assert len(without) >= 2
    assert round_s + max(syncs) <= 2 * usual_s


def test_a_trainer_that_is_a_little_slow_is_not_taken_for_hung() -> None:
    seen = hanging(8.0, looks=(9.0, 11.0))
    assert [look[THIRD].state for look in seen.records] == [State.TRAINING] * 2


def test_how_long_it_hangs_is_told_anew_at_every_beat() -> None:
    seen = hanging(40.0, looks=(20.0, 30.0, 40.0))
    said = [look[THIRD].metrics.reason for look in seen.records]
    seconds = [float(text.split()[4]) for text in said]
    assert 10.0 <= seconds[0] <= 20.0
    assert 8.0 <= seconds[1] - seconds[0] <= 12.0
    assert 8.0 <= seconds[2] - seconds[1] <= 12.0


def test_a_process_that_was_stopped_is_not_its_trainers_fault() -> None:
    plan = Plan(rounds=20, faults=[Fault(Kind.PAUSE, 4.0, (2,), 30.0)], looks=(36.0, 38.0))
    seen = simulate(plan)
    assert not seen.unfired
    assert all(look[THIRD].state is not State.STALLED for look in seen.records)


def test_with_overlap_what_is_on_its_way_lands_and_the_state_stays() -> None:
    """The round in flight ends while the trainer hangs: that must not say that the worker trains."""
    trainers = {THIRD: lambda peer: Slow(peer, 51, 40.0)}
    overlap = {"plan": SyncPlan(10, delay_steps=3)}
    seen = simulate(Plan(rounds=40, trainers=trainers, options=overlap, looks=(30.0,)))
    assert seen.records[0][THIRD].state is State.STALLED
    assert all(outcome.done for outcome in seen.outcomes.values())
    assert len({outcome.digest for outcome in seen.outcomes.values()}) == 1


def test_a_fault_of_a_trainer_ends_the_worker_with_that_fault_and_the_others_hear_of_it() -> None:
    fault = TrainerError(ValueError("a bad batch"), "taking inner steps 20 to 29")
    trainers = {THIRD: lambda peer: Slow(peer, 25, 0.0, fault)}
    seen = simulate(Plan(rounds=12, trainers=trainers))
    assert seen.errors == {THIRD: fault}
    assert PeerLost(THIRD, "it left") in seen.of(PeerLost, FOUNDER)
    without = [mixed for mixed in seen.mixed(FOUNDER).values() if THIRD not in mixed.members]
    assert len(without) >= 8
    assert all(mixed.waiting_s < 0.5 * ROUND_S for mixed in without), "nobody waits for it"


class Told(LocalSteps):
    """Remembers that it was told that it is over, and what the parameters were then."""

    def __init__(self, peer: SimPeer, trainer: Trainer, told: list[dict[str, torch.Tensor]]) -> None:
        super().__init__(trainer, peer.clock)
        self._model, self._told = trainer, told

    def over(self) -> None:
        self._told.append({name: value.clone() for name, value in self._model.parameters().items()})


@pytest.mark.parametrize("end", ["done", "stopped", "failed"])
def test_the_inner_loop_is_told_once_that_it_is_over(end: str) -> None:
    told: list[dict[str, torch.Tensor]] = []
    fault = {"failed": OSError("gone")}.get(end)
    alone = Plan(
        rounds=3,
        starts={FOUNDER: 0.0},
        stops={FOUNDER: 1.5} if end == "stopped" else {},
        trainers={FOUNDER: lambda peer: Slow(peer, 15, 0.0, fault)},
        inner=lambda peer, trainer: Told(peer, trainer, told),
        options={"mix_alpha": 0.5},
    )
    seen = simulate(alone)
    assert len(told) == 1
    assert (FOUNDER in seen.errors) == (end == "failed")
    if end == "done":
        for name, value in seen.outcomes[FOUNDER].anchors.items():
            assert torch.equal(told[0][name], value), "the model ends as what the swarm agreed on"
    assert math.isfinite(seen.of(StretchDone, FOUNDER)[0].loss)


def test_who_trains_another_model_is_refused_at_once() -> None:
    other = ToyProblem(seed=5, num_workers=3, num_values=PROBLEM.num_values + 6)
    trainers = {SECOND: lambda peer: other.trainer(1, peer.clock.charge, step_s=STEP_S)}
    seen = simulate(Plan(rounds=3, trainers=trainers))
    error = seen.errors[SECOND]
    assert isinstance(error, MismatchError)
    assert not isinstance(error, UnreachableError)
    assert "it trains another model" in error.message
    assert "names and shapes" in error.hint
    first = [at_s for at_s, sender, _, method in seen.messages if sender == SECOND and method == "state.head"]
    assert len(first) == 1, "it does not ask again and again"
